"""What each device is told to run: the desired documents of hub.db, and how they change.

A document changes in three ways only. A rollout wishes something of a device (`granted`), a device that nobody has
told anything yet or that the end of a rollout passed over gets what was promoted to it (`latecomers`), and the
configuration that is in force for it is another one, or it is held or released (`configured`). Models that are not
meant stay as they are. A held device is told so, and begins nothing: what it is told to run is what it will run once it
is released.
Writing is the conductor's, in the transaction that holds the rollouts' states; revisions rise strictly.

No device can do harm to another's document. What cannot be sent is not stored (`Changes`); a row that cannot be read
counts as an empty document of the same revision; and a revision that no hub can have given is not outbid (`REACH`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.built import built
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.desired import Config, Desired, DesiredModel, Probation, encode
from edgewright_contracts.errors import ContractError

from ..storage import control
from .specification import RolloutSpec
from .wishes import Wish

MODELS: Final = 32  # of one device, which is what its document holds
REACH: Final = 10**6  # revisions that a device may be ahead of a hub that was restored from a backup
CROWD: Final = 256  # devices; fewer may all come at once
ARRIVALS_PER_S: Final = 16  # downloads that begin, of a larger fleet
FLOOR: Final = "desired.floor"  # the cursor with the revision above which a first document begins (`backup.restore`)
_CHUNK: Final = 500  # devices in one SELECT
_LOG = logging.getLogger(__name__)


class Documents:
    """All of them, by device. A document that is in memory is read again only when its revision has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, Desired]] = {}  # with the revision of its row
        self._beyond: set[str] = set()

    def read(self, connection: sa.Connection) -> Mapping[str, Desired]:
        d = control.desired.c
        revisions = {row.device: row.rev for row in connection.execute(sa.select(d.device, d.rev))}
        known = {device: one for device, one in self._known.items() if one[0] == revisions.get(device)}
        missing = [device for device in revisions if device not in known]
        for at in range(0, len(missing), _CHUNK):
            some = sa.select(d.device, d.document).where(d.device.in_(missing[at : at + _CHUNK]))
            known |= {row.device: (revisions[row.device], _readable(row)) for row in connection.execute(some)}
        self._known = known
        return {device: document for device, (_, document) in known.items()}

    def ahead(self, documents: Mapping[str, Desired], held: Mapping[str, int]) -> dict[str, int]:
        """Of `held`, the revisions that devices hold and this hub.db never wrote: it was restored from a backup.

        One further ahead than REACH is the device's fault, not a backup's; it is logged once and left alone.
        """
        found = {d: rev for d, rev in held.items() if d in documents and rev > documents[d].rev}
        beyond = {d for d, rev in found.items() if rev > documents[d].rev + REACH or rev >= MAX_COUNT}
        for device in sorted(beyond - self._beyond):
            _LOG.warning(
                "%s says that it holds revision %d of its document, this hub is at %d: not believed. The device "
                "ignores this hub until it is enrolled anew",
                device,
                found[device],
                documents[device].rev,
            )
        self._beyond = beyond
        return {device: rev for device, rev in found.items() if device not in beyond}


def floor(connection: sa.Connection) -> int:
    """0, unless this hub was restored: the one before may have told devices more than hub.db knows."""
    c = control.cursors.c
    return int(connection.execute(sa.select(c.position).where(c.name == FLOOR)).scalar() or 0)


def retained(engine: sa.Engine) -> list[tuple[str, bytes]]:
    """Every document as it goes out, by device: what a hub that starts, or finds its broker again, publishes."""
    d = control.desired.c
    with engine.connect() as connection:
        rows = connection.execute(sa.select(d.device, d.document)).all()
    return [(row.device, msgspec.json.encode(row.document, order="deterministic")) for row in rows]


def _readable(row: Any) -> Desired:
    try:
        return msgspec.convert(row.document, built(Desired))
    except (msgspec.ValidationError, ContractError) as error:
        _LOG.error("the document of %s in hub.db cannot be read and counts as empty: %s", row.device, error)
        rev = row.document.get("rev") if isinstance(row.document, dict) else None
        return Desired(rev=rev if isinstance(rev, int) and 0 <= rev < MAX_COUNT else 0)


class Changes:
    """The documents that one transaction changes, each proven to be sendable before it is kept.

    `ahead`: what `Documents.ahead` found; these devices are sent their document under a higher revision. `config_of`:
    what is in force for a device. `held`: devices on which nothing shall change.
    """

    def __init__(
        self,
        documents: Mapping[str, Desired],
        ahead: Mapping[str, int],
        config_of: Callable[[str], Config],
        held: Set[str] = frozenset(),
        floor: int = 0,
    ) -> None:
        self._documents, self._ahead, self._config_of, self._held = documents, ahead, config_of, held
        self._floor = floor
        self._changed: dict[str, Desired] = {}
        self.bodies: dict[str, bytes] = {}  # by device, as they go out
        for device in ahead:
            self._keep(device, documents[device])

    def grant(self, wish: Wish, rollout_id: str, spec: RolloutSpec | None) -> None:
        """A document that would not be valid with the wish stays as it is; the log says why."""
        config = self._config_of(wish.device)
        before = self._changed.get(wish.device) or self._documents.get(wish.device) or Desired(rev=0, config=config)
        after = self._marked(wish.device, granted(before, wish, rollout_id, spec, config))
        if after != before or wish.again:
            self._keep(wish.device, after)

    def configure(self, device: str) -> None:
        """A device that has no document is given one only for what an operator set."""
        config = self._config_of(device)
        before = self._documents.get(device)
        if before is None and config.version:
            self._keep(device, Desired(rev=0, config=config))
        elif before is not None and (after := self._marked(device, configured(before, config))) != before:
            self._keep(device, after)

    def rows(self) -> list[dict[str, Any]]:
        """For control.desired."""
        return [{"device": d, "rev": one.rev, "document": msgspec.to_builtins(one)} for d, one in self._changed.items()]

    def _marked(self, device: str, document: Desired) -> Desired:
        return msgspec.structs.replace(document, hold=True if device in self._held else msgspec.UNSET)

    def _keep(self, device: str, document: Desired) -> None:
        own = self._documents[device].rev if device in self._documents else self._floor
        document = msgspec.structs.replace(document, rev=max(own, self._ahead.get(device, 0)) + 1)
        try:
            self.bodies[device] = encode(document)
        except ContractError as error:
            _LOG.error("%s cannot be told what was decided for it: %s", device, error)
        else:
            self._changed[device] = document


def spread(config: Config, devices: int) -> Config:
    """The configuration of so many devices: a large fleet does not come for the same package in one moment.

    Powers of two, so that a fleet that grows by one changes no document.
    """
    if devices < CROWD:
        return config
    spread_s = max(config.download.spread_s, float(2 ** (devices.bit_length() - 1) // ARRIVALS_PER_S))
    return msgspec.structs.replace(config, download=msgspec.structs.replace(config.download, spread_s=spread_s))


def granted(document: Desired, wish: Wish, rollout_id: str, spec: RolloutSpec | None, config: Config) -> Desired:
    """The document with this wish; other models stay as they are."""
    trial = spec if wish.trial else None
    entry = DesiredModel(
        name=wish.model,
        digest=wish.digest,
        rollout=rollout_id if trial else "",
        not_before=wish.not_before,
        not_after=wish.not_after,
        probation=trial.probation if trial else Probation(),
    )
    others = [m for m in document.models if m.name != entry.name]
    window_s = trial.window_s if trial else config.rollout_window_s
    return msgspec.structs.replace(
        document,
        models=tuple(sorted((*others, entry), key=lambda m: m.name)),
        config=msgspec.structs.replace(config, rollout_window_s=window_s),
    )


def configured(document: Desired, config: Config) -> Desired:
    """The document with this configuration; the windows of a trial stay as its rollout asked for them."""
    if any(model.rollout for model in document.models):
        config = msgspec.structs.replace(config, rollout_window_s=document.config.rollout_window_s)
    return msgspec.structs.replace(document, config=config)


def room(document: Desired | None) -> int:
    """How many further models the document can hold."""
    return MODELS - len(document.models) if document else MODELS


def told(document: Desired | None, model: str) -> bool:
    return entry(document, model) is not None


def current(document: Desired | None, model: str) -> str | None:
    one = entry(document, model)
    return one.digest if one else None


def entry(document: Desired | None, model: str) -> DesiredModel | None:
    """What the document says of the model; None: nothing."""
    return next((m for m in document.models if m.name == model), None) if document else None
