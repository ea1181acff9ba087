"""All streams of a hub in memory, and what is decided over them: alarms of devices, of cohorts, and skew. Pure.

Guarantee: as long as nothing moves, at most as many pages a month are expected, over all streams together, as the
budget allows (`budget`). What a device counted under other channels than its package has, or in a context that its
package does not declare, is counted apart (`foreign`) and never merged: a device cannot invent streams.

Order: windows → `take` → `decide`; then `verdicts` says what people read. A stream whose device went on to another
digest has ended; its windows that come late are counted there and begin nothing again (`running`). Cost: about 0.2 ms a
window in calls of hundreds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from . import feed, skew
from .arrivals import Window, turns
from .budget import Budget
from .cohorts import SILENT_MS, Cohort, cohort
from .groups import DriftPolicy, Group
from .kinds import FEED
from .measures import Floats
from .references import References
from .running import Running
from .streams import EVIDENCE, OWN, SKEWED, Index

IDLE_MS: Final = 24 * 3600_000  # streams of a digest that nobody ran for so long are dropped
SHOWN: Final = 20  # devices of a cohort whose channels are looked at


class GroupKey(NamedTuple):
    digest: str
    variant: str
    context: str
    part: str


class Key(NamedTuple):
    scope: str
    subject: str
    digest: str
    variant: str
    context: str
    part: str

    @property
    def group(self) -> GroupKey:
        return GroupKey(*self[2:])


class Watch:
    def __init__(self, policy: DriftPolicy, references: References) -> None:
        self.policy = policy
        self.references = references
        self.groups: dict[GroupKey, Group] = {}
        self.cohorts: dict[Key, Cohort] = {}
        self.levels: dict[GroupKey, Floats] = {}  # log e of each stream of a group
        self.members: Mapping[str, tuple[str, ...]] = {}  # of each device its fleet, and the cohorts that it is in
        self._rows: dict[GroupKey, tuple[int, dict[str, Index]]] = {}  # of each cohort, as long as so many devices
        self.running = Running()
        self.budget = Budget()

    def group(self, key: GroupKey) -> Group | None:
        """None while no reference is known."""
        if key not in self.groups:
            reference = self.references.of(key.digest, key.variant)
            if reference is None or key.part not in (*reference.channels, FEED):
                return None
            if key.part == FEED:
                self.groups[key] = Group(self.policy, feed.CHANNELS)
            else:
                self.groups[key] = Group(self.policy, reference.channels[key.part], reference.cells[key.part])
        return self.groups[key]

    def stream(self, key: Key) -> tuple[Group, int]:
        group = self.groups[key.group]
        return group, group.streams.index[key.subject]

    def known(self, key: Key) -> bool:
        if key.scope == "cohort":
            return key in self.cohorts
        return key.group in self.groups and key.subject in self.groups[key.group].streams.index

    def belong(self, members: Mapping[str, tuple[str, ...]]) -> set[Key]:
        """The fleet of each device, first, and the named cohorts that it is in. The keys whose verdict changed by it:
        streams of other devices have ended, and cohorts that nobody is in."""
        if members != self.members:
            self.members, self._rows = members, {}
        changed: set[Key] = set()
        for group_key, group in self.groups.items():
            s = group.streams
            for at, device in enumerate(s.devices):
                if device not in members and not s.ended[at]:
                    s.ended[at] = True
                    self.running.forget(device, self.references.model(group_key.digest))
                    changed.add(Key("device", device, *group_key))
        for key in [key for key in self.cohorts if key.subject not in self.rows_of(key.group)]:
            del self.cohorts[key]
            changed.add(key)
        return changed | self.decide_cohorts({key.group for key in changed})

    def cohorts_of(self, device: str) -> tuple[str, ...]:
        return self.members.get(device, ("",))

    def take(self, rows: Sequence[Any]) -> set[Key]:
        """Give the windows to their groups, those of one device in the order of their arrival."""
        touched: set[Key] = set()
        waiting: dict[GroupKey, list[Window]] = defaultdict(list)
        for row in rows:
            reference = self.references.of(row.digest, row.variant)
            if reference is None or row.phase == "shadow":
                continue
            model = self.references.model(row.digest)
            ran, late = self.running.digest(row.device, model), self.running.late(row, model)
            if not late and ran != row.digest:
                touched |= self._went_on(row.device, row.digest)
            declared = self.references.declares(row.digest, row.context)
            cells = reference.counts(row) if declared else None
            length = max(0, row.mono_end_ms - row.mono_start_ms)
            for part in (*reference.channels, FEED):
                key = GroupKey(row.digest, row.variant, row.context if declared else "", part)
                group = self.group(key)
                assert group is not None
                at = group.baselines.enter(row.device, self.cohorts_of(row.device)[0])
                group.streams.ended[at] = late
                touched.add(Key("device", row.device, *key))
                if cells is None:
                    group.streams.foreign[at] += 1
                elif part == FEED:
                    if row.n:
                        waiting[key].append(Window(at, feed.counts(row), row.n, row.start_ms, length, row.arrived_ms))
                elif row.n_monitored:
                    mine = np.zeros((group.streams.channels, group.streams.cells))
                    for into, where in zip(mine, reference.slices[part], strict=True):
                        into[: where.stop - where.start] = cells[where]
                    waiting[key].append(Window(at, mine, row.n_monitored, row.start_ms, length, row.arrived_ms))
        for key, windows in waiting.items():
            group = self.groups[key]
            for turn in turns(windows):
                rows_at, n, start_ms, length_ms = (np.array([w[i] for w in turn]) for i in (0, 2, 3, 4))
                group.streams.arrived_ms[rows_at] = [w.arrived_ms for w in turn]
                group.take(rows_at, np.stack([w.cells for w in turn]), n, start_ms, length_ms)
        return touched

    def _went_on(self, device: str, digest: str) -> set[Key]:
        """A device runs this digest now. The streams that end or begin again by it."""
        model, changed = self.references.model(digest), set()
        for key, group in self.groups.items():
            at, ended = group.streams.index.get(device), key.digest != digest
            if at is None or group.streams.ended[at] == ended or self.references.model(key.digest) != model:
                continue
            group.streams.ended[at] = ended
            changed.add(Key("device", device, *key))
        return changed

    def forget(self, now_ms: int) -> set[str]:
        """Drop the digests whose streams all ended, none heard for a day. Only for when all that ended is stored."""
        live = {key.digest for key, group in self.groups.items() if not _idle(group, now_ms - IDLE_MS)}
        gone = {key for key in self.groups if key.digest not in live}
        for key in gone:
            del self.groups[key]
            self.levels.pop(key, None)
            self._rows.pop(key, None)
        return {key.digest for key in gone}

    def watched(self) -> int:
        """Streams that share the budget: also those that are not tested yet, so that nobody's share shrinks later."""
        counts = ((~group.streams.ended[: len(group.streams.devices)]).sum() for group in self.groups.values())
        return max(1, int(sum(counts)))

    def watched_cohorts(self) -> int:
        """Streams of cohorts, of those that have a device whose stream goes on."""
        counts = (
            sum(not group.streams.ended[rows].all() for rows in self.rows_of(key).values())
            for key, group in self.groups.items()
        )
        return max(1, sum(counts))

    def decide(self, touched: set[Key]) -> set[Key]:
        """Alarms of the streams that heard something, and of their cohorts. The other keys whose verdict changed."""
        streams = self.watched()
        need, p_need = self.budget.device_need(streams), self.budget.skew_p(streams)
        groups: dict[GroupKey, list[int]] = defaultdict(list)
        for key in touched:
            groups[key.group].append(self.groups[key.group].streams.index[key.subject])
        for group_key, rows in groups.items():
            group, at = self.groups[group_key], np.array(rows)
            s = group.streams
            at = at[~s.ended[at]]
            for one in at[(group.log_e(at) >= need) & ~s.alarm[at] & s.tested[at]].tolist():
                if not any(m.js_beyond_chance >= self.policy.js_floor for m in group.moved(one)):
                    continue
                if s.against[one] and not skew.left_own(group, one):
                    skew.begin_past(group, one)
                else:
                    s.alarm[one] = True
                    s.since_ms[one] = s.start_ms[one, EVIDENCE]
            if group_key.part != FEED:
                for one in at.tolist():
                    skew.check(group, one, p_need)
        return self.decide_cohorts(set(groups))

    def decide_cohorts(self, groups: set[GroupKey]) -> set[Key]:
        need = self.budget.cohort_need(self.watched_cohorts())
        changed: set[Key] = set()
        for group_key in groups:
            group = self.groups[group_key]
            s, every = group.streams, np.arange(len(group.streams.devices))
            if not every.size:
                continue
            levels = self.levels[group_key] = group.log_e(every)
            skewed = s.skew[every] == SKEWED
            # Who is compared with others, having no past yet, cannot say that the cohort moved.
            live = ((s.tested[every] & (s.against[every] == 0)) | skewed) & ~s.ended[every]
            live &= s.arrived_ms[every] > s.arrived_ms.max() - SILENT_MS
            for name, members in self.rows_of(group_key).items():
                key, mine = Key("cohort", name, *group_key), members[live[members]]
                now = None
                if mine.size:
                    devices = [s.devices[at] for at in mine]
                    since = np.where(skewed & ~s.alarm[every], s.start_ms[every, OWN], s.since_ms[every])
                    now = cohort(devices, levels[mine], s.alarm[mine], skewed[mine], since[mine], need=need)
                    if now.alarm and not self._far(group, now):
                        now = now._replace(alarm=False, devices=now.devices if now.skewed else ())
                if now != self.cohorts.get(key):
                    changed.add(key)
                if now is None:
                    self.cohorts.pop(key, None)
                else:
                    self.cohorts[key] = now
        return changed

    def rows_of(self, key: GroupKey) -> dict[str, Index]:
        """The devices of each cohort, as rows of a group."""
        devices = self.groups[key].streams.devices
        if key not in self._rows or self._rows[key][0] != len(devices):
            found: dict[str, list[int]] = defaultdict(list)
            for at, device in enumerate(devices):
                for name in self.cohorts_of(device):
                    found[name].append(at)
            self._rows[key] = len(devices), {name: np.array(rows) for name, rows in found.items()}
        return self._rows[key][1]

    def _far(self, group: Group, one: Cohort) -> bool:
        """Whether any channel of a device of a cohort in alarm moved far enough to be worth a person's time."""
        moves = (group.moved(group.streams.index[device]) for device in one.devices[:SHOWN])
        return any(m.js_beyond_chance >= self.policy.js_floor for several in moves for m in several)


def _idle(group: Group, before_ms: int) -> bool:
    s, used = group.streams, len(group.streams.devices)
    return bool(s.ended[:used].all() and s.arrived_ms[:used].max(initial=0) < before_ms)
