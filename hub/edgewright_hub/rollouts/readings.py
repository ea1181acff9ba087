"""What a tick of rollouts reads of telemetry.db: what arrived behind the cursors, who was heard when, and the past of
devices that a rollout takes in. Nothing is written.

The past of a device is its hours (`ingest.device_hours`) and the windows that are not in them yet: exact, however far
behind they are. How much windows vary is told by those of some of the devices (`evidence.ENOUGH`): by all of the day,
or, where these are more than `SAMPLE`, by the newest of them.

Cost of a past: 15 µs for each hour of a device and for each window that is looked at. Of 1,000 devices that report once
a minute 5 s of CPU (from all windows: 49 s), of 10,000 every 5 minutes 9 s (77 s), and 200 MB while it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.desired import Desired

from ..fleet.selectors import Device
from ..ingest.device_hours import CURSOR, HOUR_MS
from ..storage import telemetry
from . import admission, evidence
from .abilities import Abilities
from .desired_documents import current
from .members import Member
from .processes import Floats, Process
from .promoted import Promoted, promoted_for
from .specification import RolloutSpec
from .state import GOING_BACK, RolloutState

PRE_MS: Final = 24 * HOUR_MS  # how far back the period before a rollout reaches, and to the begin of that hour
BATCH: Final = 5_000  # windows or events read in one tick
TOGETHER: Final = 50  # devices whose past is read in one SELECT
SAMPLE: Final = 300_000  # windows that tell how much they vary
TIMED: Final = 100  # devices that tell how much of the time they report
LABELLED_MS: Final = 60 * 24 * HOUR_MS  # that tell how late labels come
UNUSED_MS: Final = 24 * HOUR_MS  # before a version that began within them


T = TypeVar("T")


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
        elsewhere: Set[str],
        now_ms: int,
    ) -> tuple[Member, ...]:
        """Devices that were enrolled after the rollout began, or can run its release only now; without those that
        belong to another rollout of the model (`elsewhere`)."""
        if state.state in GOING_BACK or spec.devices:
            return ()
        known = {*state.members.devices, *elsewhere}
        had = {d: current(documents.get(d), spec.model) for d in admission.chosen(spec, fleet) if d not in known}
        for device in had:
            had[device] = had[device] or promoted_for(promoted, fleet[device], spec.model)
        new = {
            device: digest
            for device, digest in had.items()
            if digest != spec.digest and not abilities.why_not(device, spec.digest)
        }
        return self._members(spec, fleet, new, now_ms) if new else ()

    def reported_s(self, previous: Mapping[str, str | None], now_ms: int) -> float:
        """Seconds that each of the devices that reported anything did in the period before, in the mean of `TIMED`."""
        w = telemetry.windows.c
        some = _spread(list(previous), TIMED)
        query = sa.select(w.device, sa.func.sum(w.mono_end_ms - w.mono_start_ms)).group_by(w.device)
        where = (*_ran(w, some, previous), w.start_ms >= now_ms - PRE_MS, w.phase != "shadow")
        with self._engine.connect() as connection:
            found = [float(ms) / 1000 for _, ms in connection.execute(query.where(*where))]
        return sum(found) / len(found) if found else 0.0

    def labelled(self, digests: Sequence[str], now_ms: int) -> list[tuple[Floats, Floats]]:
        """Inferences and labels of each version that began within `LABELLED_MS`: float64[hours] since it did."""
        r, short = telemetry.rollups.c, sorted({digest[:16] for digest in digests})
        begin = now_ms - LABELLED_MS
        query = sa.select(r.digest, r.t0_ms, sa.func.sum(r.n), sa.func.sum(r.labels_n)).group_by(r.digest, r.t0_ms)
        where = (r.tier_s == HOUR_MS // 1000, r.t0_ms >= begin, r.digest.in_(short), r.phase != "shadow")
        found: dict[str, list[tuple[int, float, float]]] = {}
        with self._engine.connect() as connection:
            for digest, t0_ms, n, labels in connection.execute(query.where(*where).order_by(r.t0_ms)):
                found.setdefault(digest, []).append((t0_ms, float(n), float(labels)))
        out = []
        for hours in found.values():
            if hours[0][0] < begin + UNUSED_MS:
                continue
            at = np.array([(t0_ms - hours[0][0]) // HOUR_MS for t0_ms, _, _ in hours])
            counts = np.zeros((2, int(at[-1]) + 1))
            counts[:, at] = np.array([(n, labels) for _, n, labels in hours]).T
            out.append((counts[0], counts[1]))
        return out

    def before(
        self, spec: RolloutSpec, fleet: Mapping[str, Device], previous: Mapping[str, str | None], now_ms: int
    ) -> tuple[tuple[Member, ...], tuple[Process, ...]]:
        """Members with what they counted in the 24 hours before, and processes with its dispersion."""
        members = self._members(spec, fleet, previous, now_ms)
        some = _spread(members, evidence.ENOUGH)
        windows = self._windows(spec, [member.device for member in some], previous, now_ms)
        return members, evidence.dispersed(spec.gate.metrics, some, windows)

    def _members(
        self, spec: RolloutSpec, fleet: Mapping[str, Device], previous: Mapping[str, str | None], now_ms: int
    ) -> tuple[Member, ...]:
        members = evidence.before(spec.gate.metrics, previous, self._counted(spec, previous, now_ms))
        groups = admission.groups(spec, [fleet[m.device] for m in members])
        return tuple(msgspec.structs.replace(m, group=g) for m, g in zip(members, groups, strict=True))

    def _counted(self, spec: RolloutSpec, previous: Mapping[str, str | None], now_ms: int) -> Iterator[Sequence[Any]]:
        """Hours of the devices with what they ran, and windows that are in none of them yet. In one SELECT: the cursor
        may move between two."""
        h, w, c = telemetry.device_hours.c, telemetry.windows.c, telemetry.cursors.c
        added = sa.select(c.position).where(c.name == CURSOR).scalar_subquery()
        since, names = _since(now_ms), _columns(spec)
        for some in _parts(list(previous)):
            hours = sa.select(*(h[name] for name in names))
            hours = hours.where(*_ran(h, some, previous), h.t0_ms >= since, h.phase != "shadow")
            later = sa.select(*(w[name] for name in names)).where(w.id > sa.func.coalesce(added, 0))
            later = later.where(*_ran(w, some, previous), w.start_ms >= since, w.phase != "shadow")
            yield self._mine(hours.union_all(later), previous)

    def _windows(
        self, spec: RolloutSpec, devices: Sequence[str], previous: Mapping[str, str | None], now_ms: int
    ) -> Iterator[Sequence[Any]]:
        """The newest of these devices, with what they ran."""
        w = telemetry.windows.c
        since = self._newest(devices, previous, now_ms)
        for some in _parts(devices):
            query = sa.select(w.start_ms, *(w[name] for name in _columns(spec)))
            query = query.where(*_ran(w, some, previous), w.start_ms >= since, w.phase != "shadow")
            yield self._mine(query, previous)

    def _newest(self, devices: Sequence[str], previous: Mapping[str, str | None], now_ms: int) -> int:
        """From when on these devices have `SAMPLE` windows, if they have so many. From an index alone, without
        phases: windows of a shadow count too."""
        w = telemetry.windows.c
        begin = w.start_ms - w.start_ms % HOUR_MS
        query = sa.select(begin, sa.func.count()).group_by(begin).order_by(begin.desc())
        since, left = _since(now_ms), SAMPLE
        with self._engine.connect() as connection:
            found = connection.execute(query.where(*_ran(w, devices, previous), w.start_ms >= since)).all()
        for hour, n in found:
            if n > left:
                end = min(hour + HOUR_MS, max(now_ms, hour))
                return int(end - (end - hour) * left / n)
            left -= n
        return since

    def _mine(self, query: Any, previous: Mapping[str, str | None]) -> Sequence[Any]:
        """Rows with what the device itself ran, not another one."""
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [row for row in rows if row.digest == (previous[row.device] or "")[:16]]


def _since(now_ms: int) -> int:
    return now_ms - PRE_MS - (now_ms - PRE_MS) % HOUR_MS


def _columns(spec: RolloutSpec) -> tuple[str, ...]:
    """Outcomes are documents, which cost more to read than all the rest: only where a gate is about them."""
    return (*evidence.COUNTED, "outcomes") if spec.gate.outcomes else evidence.COUNTED


def _ran(table: Any, devices: Sequence[str], previous: Mapping[str, str | None]) -> tuple[sa.ColumnElement[bool], ...]:
    """Of the columns of windows or hours: these devices, with what any of them ran."""
    digests = sorted({digest[:16] for device in devices if (digest := previous[device])})
    return table.device.in_(devices), table.digest.in_(digests)


def _parts(devices: Sequence[str]) -> Iterator[Sequence[str]]:
    return (devices[at : at + TOGETHER] for at in range(0, len(devices), TOGETHER))


def _spread(some: Sequence[T], most: int) -> Sequence[T]:
    """So many of them at most, evenly."""
    return some[:: max(1, -(-len(some) // most))]
