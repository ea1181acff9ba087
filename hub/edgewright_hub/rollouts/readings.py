"""What a tick of rollouts reads of telemetry.db: what arrived behind the cursors, who was heard when, and the past of
devices that a rollout takes in. Nothing is written.

Cost: for each device that joins, its windows of `PRE_MS`, 25 µs each, of so many devices at once that they take some
megabytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.desired import Desired

from ..fleet.selectors import Device
from ..storage import telemetry
from . import admission, evidence
from .abilities import Abilities
from .desired_documents import current
from .members import Member
from .processes import Process
from .promoted import Promoted, promoted_for
from .specification import RolloutSpec
from .state import GOING_BACK, RolloutState

PRE_MS: Final = 24 * 3600_000  # how far back the period before a rollout reaches
BATCH: Final = 5_000  # windows or events read in one tick
TOGETHER: Final = 50  # devices whose past is read in one SELECT


class Readings:
    def __init__(self, telemetry_engine: sa.Engine) -> None:
        self._engine = telemetry_engine

    def arrived(self, cursors: Mapping[str, int], *, reading: bool) -> tuple[Sequence[Any], Sequence[Any]]:
        """Rows behind the cursors; without a rollout only the last ones, to move the cursors on."""
        w, e = telemetry.windows.c, telemetry.events.c
        columns = tuple(w[name] for name in evidence.COLUMNS)
        with self._engine.connect() as connection:
            found = []
            for name, key, wanted in (("windows", w.id, columns), ("events", e.id, tuple(e))):
                query = sa.select(*wanted).where(key > cursors.get(f"rollout.{name}", 0))
                if reading:
                    found.append(connection.execute(query.order_by(key).limit(BATCH)).all())
                else:
                    found.append(connection.execute(query.order_by(key.desc()).limit(1)).all())
        return found[0], found[1]

    def held(self) -> dict[str, int]:
        """The revision of its desired document that each device said it holds."""
        d = telemetry.devices.c
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(d.device, d.desired_rev).where(d.desired_rev > 0))
            return {row.device: row.desired_rev for row in rows}

    def heard(self) -> dict[str, evidence.Heard]:
        """When each device was heard last, and when it is due."""
        d = telemetry.devices.c
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(d.device, d.online, d.last_seen_ms, d.next_due_ms)).all()
        return {r.device: evidence.Heard(r.online, r.last_seen_ms, r.next_due_ms) for r in rows}

    def joined(
        self,
        spec: RolloutSpec,
        state: RolloutState,
        fleet: Mapping[str, Device],
        documents: Mapping[str, Desired],
        promoted: Sequence[Promoted],
        abilities: Abilities,
        now_ms: int,
    ) -> tuple[Member, ...]:
        """Devices that were enrolled after the rollout began, or can run its release only now."""
        if state.state in GOING_BACK or spec.devices:
            return ()
        known = set(state.members.devices)
        had = {d: current(documents.get(d), spec.model) for d in admission.chosen(spec, fleet) if d not in known}
        for device in had:
            had[device] = had[device] or promoted_for(promoted, fleet[device], spec.model)
        new = {
            device: digest
            for device, digest in had.items()
            if digest != spec.digest and not abilities.why_not(device, spec.digest)
        }
        return self.before(spec, fleet, new, now_ms)[0] if new else ()

    def reported_s(self, previous: Mapping[str, str | None], now_ms: int) -> float:
        """Seconds that each of the devices that reported anything did in the period before, in the mean."""
        w = telemetry.windows.c
        digests = sorted({digest[:16] for digest in previous.values() if digest})
        query = sa.select(w.device, sa.func.sum(w.mono_end_ms - w.mono_start_ms)).group_by(w.device)
        where = (w.start_ms >= now_ms - PRE_MS, w.digest.in_(digests), w.phase != "shadow")
        with self._engine.connect() as connection:
            found = [float(ms) / 1000 for device, ms in connection.execute(query.where(*where)) if device in previous]
        return sum(found) / len(found) if found else 0.0

    def before(
        self, spec: RolloutSpec, fleet: Mapping[str, Device], previous: Mapping[str, str | None], now_ms: int
    ) -> tuple[tuple[Member, ...], tuple[Process, ...]]:
        """Members with what they counted in the 24 hours before."""
        members, processes = evidence.before(spec.gate.metrics, previous, self._past(previous, now_ms))
        groups = admission.groups(spec, [fleet[m.device] for m in members])
        return tuple(msgspec.structs.replace(m, group=g) for m, g in zip(members, groups, strict=True)), processes

    def _past(self, previous: Mapping[str, str | None], now_ms: int) -> Iterator[tuple[str, Sequence[Any]]]:
        """The windows of each device in the 24 hours before, with what it ran then."""
        w = telemetry.windows.c
        columns = tuple(w[name] for name in evidence.COLUMNS)
        devices = list(previous)
        for at in range(0, len(devices), TOGETHER):
            some = devices[at : at + TOGETHER]
            digests = sorted({digest[:16] for device in some if (digest := previous[device])})
            where = (w.device.in_(some), w.digest.in_(digests), w.start_ms >= now_ms - PRE_MS, w.phase != "shadow")
            rows: dict[str, list[Any]] = defaultdict(list)
            if digests:
                with self._engine.connect() as connection:
                    for row in connection.execute(sa.select(*columns).where(*where).order_by(w.id)):
                        if row.digest == (previous[row.device] or "")[:16]:
                            rows[row.device].append(row)
            for device in some:
                yield device, rows.pop(device, ())
