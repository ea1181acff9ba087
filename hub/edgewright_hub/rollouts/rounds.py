"""A round of all rollouts: what was reported since the last one, a step of each, and what is written of it.

Order in a round: later devices get what is promoted; then events, then windows, both in the order of their arrival;
then documents follow the configuration that operators set. All of it is one transaction of hub.db.

A rollout whose step fails says so in its reason and stands still, without what was reported meanwhile; the others go
on. Only a database that fails stops a round, which is then repeated whole.

A step writes the whole state of its rollout, 60 to 100 bytes a device: a twentieth of what it costs the CPU, and most
of what it costs the disk. So a large fleet is stepped less often than each second (`PACE_MS`), but at least ten times
in a window; who is to go back from a revoked package waits for nothing, and neither do commands of people.
Cost: 10 µs for each device; where rollouts are stepped, 10 µs more.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.desired import Desired

from ..fleet.roster import Roster
from ..fleet.selectors import Device
from ..storage import control
from ..storage.store import upsert
from . import admission, desired_documents, evidence, hours, notices, revocation, rollout
from .abilities import Abilities
from .claims import Claims
from .configuration import Configurations
from .desired_documents import Changes, Documents
from .downloads import Patches, expected
from .gates import SequentialGate
from .latecomers import Latecomers
from .members import Members
from .progress import unpacked
from .promoted import Promoted, promoted
from .readings import BATCH, Readings
from .records import columns
from .specification import RolloutSpec, stored
from .state import ACTIVE
from .wishes import Wish

OFTEN: Final = 1000  # devices; the rollouts of fewer are stepped in every round
PACE_MS: Final = 0.5  # for each further device, between two steps
_LOG = logging.getLogger(__name__)

Grant = tuple[Wish, str, RolloutSpec | None]  # a wish, the rollout that has it ("": none), and its specification


class Rounds:
    """Used by one thread at a time: the conductor's lock is held."""

    def __init__(
        self,
        control_engine: sa.Engine,
        readings: Readings,
        roster: Roster,
        documents: Documents,
        configurations: Configurations,
        abilities: Abilities,
        patches: Patches,
        latecomers: Latecomers,
    ) -> None:
        self._control, self._readings, self._roster = control_engine, readings, roster
        self._documents, self._configurations = documents, configurations
        self._abilities, self._patches = abilities, patches
        self.latecomers = latecomers
        self._settled: dict[str, tuple[Device, Desired | None, int]] = {}  # whose documents follow the configuration
        self._stepped: tuple[float, set[str]] = (float("-inf"), set())  # when, and which rollouts

    def go(self, now_ms: int) -> tuple[bool, Mapping[str, bytes]]:
        """Whether there is more to read, and the documents that changed, by device, to be published now."""
        with self._control.connect() as connection:
            fleet, documents = self._roster.read(connection), self._documents.read(connection)
            cursors, withdrawn = _cursors(connection), admission.withdrawn(connection)
            r = control.rollouts.c
            under_way = connection.execute(sa.select(r.id, r.spec).where(r.state.in_(ACTIVE))).all()
            due = self._due(under_way, withdrawn, len(fleet), now_ms)
            query = sa.select(control.rollouts).where(r.state.in_(ACTIVE)).order_by(r.created_ms, r.id)
            active = connection.execute(query).all() if under_way and due else []
            done = self.promoted(connection, active)
            blocked = admission.blocked(connection, {row.spec["digest"] for row in active if row.state == "running"})
            ahead = self._documents.ahead(documents, self._readings.held())
            changes = self.changes(connection, documents, ahead, fleet)
        self._configure(fleet, documents, changes)
        late = self.latecomers.wishes(fleet, documents, done, [row.spec for row in under_way], now_ms)
        grants: list[Grant] = [(wish, "", None) for wish in late]
        if not due:
            return False, self._written({}, grants, changes, [], {})
        windows, events = self._readings.arrived(cursors, reading=bool(active))
        stepped: dict[str, dict[str, Any]] = {}
        told: list[Callable[[sa.Connection], None]] = []  # what people are to know
        heard = {d: one for d, one in self._readings.heard().items() if d in fleet} if active else {}
        present = frozenset(device for device, one in heard.items() if one.present(now_ms))
        claims = Claims(active)
        for row in active:
            try:
                spec, before = stored(row.spec), unpacked(row.progress)
                elsewhere = claims.elsewhere(spec.model, row.id)
                joined = self._readings.joined(spec, before, fleet, documents, done, self._abilities, elsewhere, now_ms)
                whole = rollout.enrol(before, joined)
                if whole.state == "running" and (why := blocked.get(spec.digest)):
                    whole, _ = rollout.command(whole, spec, "pause", f"{spec.version} is blocked: {why}", now_ms)
                    told.append(partial(notices.blocked, rollout_id=row.id, spec=spec, why=why, now_ms=now_ms))
                seen = evidence.observe(spec, whole, windows, events, present, heard, now_ms)
                meant, devices = frozenset(admission.chosen(spec, fleet)), whole.members.devices
                seen = dataclasses.replace(
                    seen,
                    retired=np.array([d not in fleet for d in devices], np.bool_),
                    left=np.array([d in fleet and (d not in meant or d in elsewhere) for d in devices], np.bool_),
                    held=np.array([d in fleet and fleet[d].held for d in devices], np.bool_),
                    open=hours.open_now(spec, whole.members, fleet, now_ms),
                    withdrawn=withdrawn.get(spec.digest, ""),
                    **self._known(spec, whole.members),
                )
                after, more = rollout.step(whole, spec, seen, SequentialGate(spec.gate), now_ms)
            except sa.exc.SQLAlchemyError:
                raise
            except Exception as error:
                said = f"this rollout cannot be judged ({type(error).__name__}: {error}); the hub's log says more"
                if row.progress.get("reason") != said:
                    _LOG.exception("rollout %s cannot be judged", row.id)
                    progress = {**row.progress, "reason": said, "headway": {}}  # which is looked at anew afterwards
                    stepped[row.id] = {"progress": progress, "updated_ms": now_ms}
                    told.append(partial(notices.stuck, rollout_id=row.id, said=said, now_ms=now_ms))
                continue
            claims.renew(spec.model, after)
            wishes = hours.timed(more.expand(after.members, spec), spec, fleet, now_ms)
            wishes = revocation.safe(wishes, spec, fleet, documents, done, withdrawn.keys())
            if wishes:
                after = msgspec.structs.replace(after, members=revocation.heading(after.members, wishes, spec.digest))
            grants += [(wish, after.id, spec) for wish in wishes]
            if after != before:
                stepped[after.id] = columns(after, now_ms)
                tell = partial(notices.moved, before=before, after=after, spec=spec, fleet=fleet, now_ms=now_ms)
                told.append(tell)
        positions = {"rollout.windows": windows, "rollout.events": events}
        moved = {name: rows[-1].id for name, rows in positions.items() if rows}
        more_to_read = max(len(windows), len(events)) == BATCH
        bodies = self._written(stepped, grants, changes, told, moved)
        self._stepped = (float("-inf") if more_to_read else now_ms), {row.id for row in active}
        return more_to_read, bodies

    def _due(self, under_way: Sequence[Any], withdrawn: Mapping[str, str], devices: int, now_ms: int) -> bool:
        """Whether the rollouts are stepped now. What was reported waits behind the cursors until then."""
        last_ms, which = self._stepped
        pace_ms = min([PACE_MS * max(0, devices - OFTEN), *(100 * row.spec["window_s"] for row in under_way)])
        return (
            not 0 <= now_ms - last_ms < pace_ms  # the clock may have been put back
            or which != {row.id for row in under_way}
            or any(row.spec["digest"] in withdrawn for row in under_way)
        )

    def _configure(self, fleet: Mapping[str, Device], documents: Mapping[str, Desired], changes: Changes) -> None:
        """Of the devices that changed, or if settings did."""
        version = self._configurations.changed
        for name, device in fleet.items():
            document = documents.get(name)
            known = self._settled.get(name)
            if known is None or known[0] is not device or known[1] is not document or known[2] != version:
                changes.configure(name)
                if name not in changes.bodies:
                    self._settled[name] = (device, document, version)

    def _written(
        self,
        stepped: Mapping[str, Mapping[str, Any]],
        grants: Sequence[Grant],
        changes: Changes,
        told: Sequence[Callable[[sa.Connection], None]],
        moved: Mapping[str, int],
    ) -> Mapping[str, bytes]:
        if stepped or moved or grants or changes.bodies:
            with self._control.begin() as connection:
                write(connection, stepped, grants, changes)
                for tell in told:
                    tell(connection)
                rows = [{"name": name, "position": position} for name, position in moved.items()]
                upsert(connection, control.cursors, rows, keys=["name"])
        return changes.bodies

    def promoted(self, connection: sa.Connection, active: Sequence[Any] = (), but: str = "") -> list[Promoted]:
        """What later devices get, as far as they can run it, but for what one rollout promoted. The packages that
        rollouts are about are known then too."""
        self.latecomers.read(connection)
        found = promoted(connection, lambda device, digest: not self._abilities.why_not(device, digest), but)
        about = {digest for row in active for digest in (row.spec["digest"], *_before(row.progress))}
        self._abilities.read(connection, {one.digest for one in found} | about)
        return found

    def _known(self, spec: RolloutSpec, members: Members) -> dict[str, Any]:
        """Of each device: whether it cannot run the release, and the bytes that it downloads where they are capped."""
        unable = np.array([bool(self._abilities.why_not(d, spec.digest)) for d in members.devices], np.bool_)
        if spec.bandwidth_bytes_s is None:
            return {"unable": unable}
        return {"unable": unable, "bytes": expected(members, spec.digest, self._abilities, self._patches)}

    def changes(
        self,
        connection: sa.Connection,
        documents: Mapping[str, Desired],
        ahead: Mapping[str, int],
        fleet: Mapping[str, Device],
    ) -> Changes:
        self._configurations.read(connection, len(documents))
        return Changes(
            documents,
            ahead,
            lambda device: self._configurations.of(fleet.get(device) or Device(device)),
            held={device.id for device in fleet.values() if device.held},
            floor=desired_documents.floor(connection),
        )


def write(
    connection: sa.Connection,
    stepped: Mapping[str, Mapping[str, Any]],  # columns of control.rollouts, by id
    grants: Iterable[Grant],
    changes: Changes,
) -> None:
    for rollout_id, values in stepped.items():
        connection.execute(control.rollouts.update().where(control.rollouts.c.id == rollout_id).values(**values))
    for wish, rollout_id, spec in grants:
        changes.grant(wish, rollout_id, spec)
    upsert(connection, control.desired, changes.rows(), keys=["device"])


def _cursors(connection: sa.Connection) -> dict[str, int]:
    return {row.name: row.position for row in connection.execute(sa.select(control.cursors))}


def _before(progress: Mapping[str, Any]) -> Sequence[str]:
    """The digests that devices go back to."""
    members = progress.get("members")
    return members["digests"] if isinstance(members, dict) else ()
