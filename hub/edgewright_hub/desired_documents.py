"""What each device is told to run: the desired documents of hub.db, and how they change.

A document changes in two ways only. A rollout wishes something of a device (`granted`), and a device that nobody has
told anything yet gets what was promoted to its fleet (`newcomers`). Models that are not meant stay as they are.
Writing is the conductor's, in the transaction that holds the rollouts' states; revisions rise strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.desired import Config, Desired, DesiredModel, Probation

from . import control
from .rollout import Wish
from .specification import RolloutSpec

_CHUNK: Final = 500  # devices in one SELECT


class Documents:
    """All of them, by device. A document that is in memory is read again only when its revision has changed."""

    def __init__(self) -> None:
        self._known: dict[str, Desired] = {}

    def read(self, connection: sa.Connection) -> Mapping[str, Desired]:
        d = control.desired.c
        revisions = {row.device: row.rev for row in connection.execute(sa.select(d.device, d.rev))}
        known = {device: one for device, one in self._known.items() if one.rev == revisions.get(device)}
        missing = [device for device in revisions if device not in known]
        for at in range(0, len(missing), _CHUNK):
            some = sa.select(d.device, d.document).where(d.device.in_(missing[at : at + _CHUNK]))
            known |= {row.device: msgspec.convert(row.document, Desired) for row in connection.execute(some)}
        self._known = known
        return known


def granted(document: Desired, wish: Wish, rollout_id: str, spec: RolloutSpec | None, config: Config) -> Desired:
    """The document with this wish; other models stay as they are."""
    trial = spec if wish.trial else None
    entry = DesiredModel(
        name=wish.model,
        digest=wish.digest,
        rollout=rollout_id if trial else "",
        probation=trial.probation if trial else Probation(),
    )
    others = [m for m in document.models if m.name != entry.name]
    window_s = trial.window_s if trial else config.rollout_window_s
    return msgspec.structs.replace(
        document,
        models=tuple(sorted((*others, entry), key=lambda m: m.name)),
        config=msgspec.structs.replace(config, rollout_window_s=window_s),
    )


def promoted(connection: sa.Connection) -> dict[tuple[str, str], str]:
    """Digest of the last rollout to a whole fleet that ended well, by (fleet, model); fleet "" is all of them."""
    r = control.rollouts.c
    query = sa.select(r.spec).where(r.state == "done").order_by(r.updated_ms)
    found: dict[tuple[str, str], str] = {}
    for row in connection.execute(query):
        spec = msgspec.convert(row.spec, RolloutSpec)
        if spec.devices:
            continue
        if not spec.fleet:  # newer than whatever single fleets had
            found = {key: digest for key, digest in found.items() if key[1] != spec.model}
        found[spec.fleet, spec.model] = spec.digest
    return found


def promoted_for(promoted: Mapping[tuple[str, str], str], fleet: str, model: str) -> str | None:
    return promoted.get((fleet, model)) or promoted.get(("", model))


def newcomers(
    fleets: Mapping[str, str], documents: Mapping[str, Desired], promoted: Mapping[tuple[str, str], str]
) -> list[Wish]:
    """Devices that nobody has told anything yet get what their fleet runs."""
    models = sorted({model for _, model in promoted})
    return [
        Wish(device, model, digest, trial=False)
        for device, fleet in fleets.items()
        for model in models
        if (digest := promoted_for(promoted, fleet, model)) and not told(documents.get(device), model)
    ]


def told(document: Desired | None, model: str) -> bool:
    return document is not None and any(m.name == model for m in document.models)


def current(document: Desired | None, model: str) -> str | None:
    return next((m.digest for m in document.models if m.name == model), None) if document else None
