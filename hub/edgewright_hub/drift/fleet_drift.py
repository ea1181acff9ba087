"""Drift of every device and of every cohort, from the windows they report: which moved, since when, in what, how.

Guarantee: as long as nothing moves, at most as many pages a month are expected, for the whole fleet, as the operator
set (`budget`). What a device counted under other channels than its package has, or in a context that its package does
not declare, is counted apart (`foreign`) and never merged: a device cannot invent streams. State and position are
written in one transaction of hub.db.

Order in a tick: read the new windows, give each to the streams of its parts (`groups`), decide over all streams that
heard something, then over the cohorts made of them, store what changed. A stream whose device went on to another digest
has `ended`. Cost: about 0.3 ms a window in ticks of a hundred; all streams are kept in memory (`streams`).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.errors import RequestError

from ..storage import control, telemetry
from ..storage.store import upsert
from . import decisions, feed, paging
from .budget import Budget
from .cohorts import SILENT_MS, Cohort, cohort
from .groups import DriftPolicy, Group
from .kinds import FEED, PARTS, evidence, kinds, severity
from .measures import Floats
from .moves import Moved, widest
from .references import References
from .streams import BASELINES, EVIDENCE, OWN, SKEWED

Verdict = Literal["ok", "alarm", "ended", "learning"]
KEY: Final = ("scope", "subject", "digest", "variant", "context", "part")
CURSOR: Final = "drift.windows"
BATCH: Final = 5_000
FORGET_MS: Final = 30 * 24 * 3600_000  # after this a stream that ended is not kept any more
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


class FleetDrift:
    """Reads telemetry.db behind a cursor and keeps the table `drift`. One instance for a hub.db."""

    def __init__(
        self,
        control_engine: sa.Engine,
        telemetry_engine: sa.Engine,
        blobs: Path,
        policy: DriftPolicy = DriftPolicy(),  # noqa: B008 (frozen)
    ) -> None:
        self.policy = policy
        self._control = control_engine
        self._telemetry = telemetry_engine
        self._lock = threading.Lock()
        self._references = References(blobs)
        self._forget()

    def _forget(self) -> None:
        self._groups: dict[GroupKey, Group] = {}
        self._cohorts: dict[Key, Cohort] = {}
        self._levels: dict[GroupKey, Floats] = {}  # log e of each stream of a group
        self._running: dict[tuple[str, str], str] = {}  # (device, model) → digest of its newest window
        self._budget = Budget()
        self._position: int | None = None

    def tick(self, now_ms: int) -> bool:
        """Take the new windows in. True when there was more to read than one tick takes."""
        with self._lock:
            self._load(now_ms)
            rows = self._read()
            if not rows:
                return False
            try:
                touched = self._take(rows, self._refresh(rows))
                touched |= self._decide(touched)
                self._position = rows[-1].id
                self._store(touched, now_ms)
            except Exception:
                self._position = None  # what is in memory is ahead of hub.db: load again
                raise
            return len(rows) == BATCH

    # What operators decide.

    def budget(self) -> dict[str, Any]:
        """False pages a month that are allowed, by how many streams they are shared, and what a page needs."""
        with self._lock:
            self._load(0)
            streams, cohorts = self._tested(), max(1, len(self._cohorts))
            return {
                "false_pages_a_month": self._budget.false_pages_a_month,
                "streams": streams,
                "log_e_device": self._budget.device_need(streams),
                "log_e_cohort": self._budget.cohort_need(cohorts),
            }

    def set_budget(self, pages: float, *, who: str, reason: str, now_ms: int) -> dict[str, Any]:
        """Raises RequestError."""
        decisions.check("budget", reason)
        budget = Budget(pages)
        with self._lock:
            self._load(now_ms)
            detail = {"false_pages_a_month": pages, "before": self._budget.false_pages_a_month}
            with self._control.begin() as connection:
                decisions.record(connection, "budget", "", who=who, reason=reason, now_ms=now_ms, detail=detail)
            self._budget = budget
        return self.budget()

    def acknowledge(self, subject: str, *, who: str, now_ms: int) -> int:
        """End every alarm of a device or cohort; its detectors begin anew. How many. Raises RequestError for none.

        What is ended of a cohort is ended of its devices too: the cohort's alarm is made of theirs and would come back
        with the next window. What goes on moving is reported again.
        """
        with self._lock:
            self._load(now_ms)
            keys = self._alarms(subject)
            for key in keys:
                if key.scope == "device":
                    group, at = self._stream(key)
                    group.streams.rest(np.array([at]))
                    if group.streams.skew[at] == SKEWED:
                        group.streams.skew[at] = 3
            self._settled(keys, now_ms)
            with self._control.begin() as connection:
                values = {"at_ms": now_ms, "who": who, "what": "drift acknowledge", "detail": subject}
                connection.execute(control.audit.insert().values(**values))
            return len(keys)

    def accept(self, subject: str, *, who: str, reason: str, now_ms: int) -> dict[str, int]:
        """A new normal for the streams of a device or cohort that are in alarm, from their own windows since it began.

        They are not compared with their cohort or with training any more. Raises RequestError when there is no alarm.
        """
        decisions.check("accept", reason)
        with self._lock:
            self._load(now_ms)
            alarms = self._alarms(subject)
            keys = sorted(key for key in alarms if key.scope == "device")
            before: list[tuple[Key, bytes]] = []
            for key in keys:
                group, at = self._stream(key)
                before.append((key, group.streams.pack(np.array([at]))[0]))
                group.accept(at)
                group.pool()
            with self._control.begin() as connection:
                number = decisions.record(
                    connection, "accept", subject, who=who, reason=reason, now_ms=now_ms,
                    detail={"streams": [list(key) for key in keys]}, kept=msgspec.msgpack.encode(before),
                )  # fmt: skip
            self._settled(alarms, now_ms)
            return {"accepted": len(keys), "decision": number}

    def undo(self, subject: str, *, who: str, reason: str, now_ms: int) -> dict[str, int]:
        """The normal from before the last acceptance of a device or cohort. Raises RequestError without one."""
        decisions.check("undo", reason)
        with self._lock:
            self._load(now_ms)
            with self._control.begin() as connection:
                number, kept = decisions.last_acceptance(connection, subject)
                keys = set()
                for parts, data in msgspec.msgpack.decode(kept, type=list[tuple[list[str], bytes]]):
                    key = Key(*parts)
                    if key.group not in self._groups or key.subject not in self._groups[key.group].streams.index:
                        continue  # ended and forgotten since
                    group, at = self._stream(key)
                    if group.streams.unpack(at, data):
                        group.streams.rest(np.array([at]))
                        group.pool()
                        keys.add(key)
                decisions.record(
                    connection, "undo", subject, who=who, reason=reason, now_ms=now_ms, detail={"decision": number}
                )
            self._settled(keys, now_ms)
            return {"restored": len(keys), "decision": number}

    def _alarms(self, subject: str) -> set[Key]:
        """The alarms of a device or cohort, and of a cohort's devices. Raises RequestError for none."""
        mine = {k for k in self._cohorts if k.subject == subject and _verdict_of(self._cohorts[k]) == "alarm"}
        for group_key, group in self._groups.items():
            cohort_alarm = Key("cohort", subject, *group_key) in mine
            for at, device in enumerate(group.streams.devices):
                key = Key("device", device, *group_key)
                beneath = cohort_alarm and group.cohort(at) == subject
                if (device == subject or beneath) and self._verdict(key) == "alarm":
                    mine.add(key)
        if not mine:
            raise RequestError(f"{subject!r} has no drift alarm; `edgewright fleet drift` lists them")
        return mine

    def _settled(self, keys: set[Key], now_ms: int) -> None:
        """Decide over the cohorts of these again, and store all."""
        touched = keys | self._decide_cohorts({key.group for key in keys})
        self._store(touched, now_ms)

    def verdicts(self) -> list[dict[str, Any]]:
        """Every stream as people read it, alarms first: JSON values only."""
        with self._control.connect() as connection:
            rows = connection.execute(sa.select(control.drift)).all()
        return sorted(
            (describe(row._mapping) for row in rows), key=lambda v: (v["verdict"] != "alarm", v["scope"], v["subject"])
        )

    # Reading.

    def _load(self, now_ms: int) -> None:
        if self._position is not None:
            return
        self._forget()
        with self._control.begin() as connection:
            c, d = control.cursors.c, control.drift.c
            position = connection.execute(sa.select(c.position).where(c.name == CURSOR)).scalar() or 0
            self._budget = decisions.budget(connection)
            if now_ms:
                old = sa.and_(d.verdict == "ended", d.updated_ms < now_ms - FORGET_MS)
                connection.execute(control.drift.delete().where(old))
            rows = connection.execute(sa.select(control.drift).order_by(d.updated_ms)).all()
            spreads = connection.execute(sa.select(control.drift_dispersion)).all()
            self._references.learn(connection, {row.digest for row in rows})
            fleets = {row.id: row.fleet for row in connection.execute(sa.select(control.devices))}
        for row in rows:
            key = Key(*(row._mapping[name] for name in KEY))
            group = self._group(key.group) if key.scope == "device" and row.kept else None
            if group is None:
                continue
            group.streams.unpack(group.enter(key.subject, fleets.get(key.subject, "")), row.kept)
            if row.verdict != "ended":
                self._running[key.subject, row.model] = key.digest
        for row in spreads:
            group = self._groups.get(GroupKey(row.digest, row.variant, row.context, row.part))
            if group is not None:
                group.dispersion.unpack(row.kept)
        for group in self._groups.values():
            group.pool()
        self._decide_cohorts(set(self._groups))
        self._position = position

    def _group(self, key: GroupKey) -> Group | None:
        """None while no reference is known."""
        if key not in self._groups:
            reference = self._references.of(key.digest, key.variant)
            if reference is None:
                return None
            if key.part == FEED:
                self._groups[key] = Group(self.policy, feed.CHANNELS)
            else:
                self._groups[key] = Group(self.policy, reference.channels[key.part], reference.cells[key.part])
        return self._groups[key]

    def _stream(self, key: Key) -> tuple[Group, int]:
        group = self._groups[key.group]
        return group, group.streams.index[key.subject]

    def _read(self) -> Sequence[Any]:
        w = telemetry.windows.c
        columns = (
            w.id, w.device, w.start_ms, w.mono_start_ms, w.mono_end_ms, w.digest, w.variant, w.context, w.edge_hash,
            w.phase, w.n, w.n_monitored, w.cells, w.repeated, w.input_age,
        )  # fmt: skip
        query = sa.select(*columns).where(w.id > (self._position or 0)).order_by(w.id).limit(BATCH)
        with self._telemetry.connect() as connection:
            return connection.execute(query).all()

    def _refresh(self, rows: Iterable[Any]) -> dict[str, str]:
        """Packages that the rows name, and the cohort of each device."""
        with self._control.connect() as connection:
            self._references.learn(connection, {row.digest for row in rows})
            d = control.devices.c
            return {row.id: row.fleet for row in connection.execute(sa.select(d.id, d.fleet))}

    # Counting and testing.

    def _take(self, rows: Sequence[Any], cohorts: Mapping[str, str]) -> set[Key]:
        """Give the windows to their groups, those of one device in the order of their arrival."""
        touched: set[Key] = set()
        waiting: dict[GroupKey, list[_Window]] = defaultdict(list)
        for row in rows:
            reference = self._references.of(row.digest, row.variant)
            if reference is None or row.phase == "shadow":
                continue
            touched |= self._runs(row.device, row.digest)
            declared = self._references.declares(row.digest, row.context)
            cells = reference.counts(row) if declared else None
            length = max(0, row.mono_end_ms - row.mono_start_ms)
            for part in (*reference.channels, FEED):
                key = GroupKey(row.digest, row.variant, row.context if declared else "", part)
                group = self._group(key)
                assert group is not None
                at = group.enter(row.device, cohorts.get(row.device, ""))
                touched.add(Key("device", row.device, *key))
                if cells is None:
                    group.streams.foreign[at] += 1
                elif part == FEED:
                    if row.n:
                        waiting[key].append(_Window(at, feed.counts(row), row.n, row.start_ms, length))
                elif row.n_monitored:
                    mine = np.zeros((group.streams.channels, group.streams.cells))
                    for into, where in zip(mine, reference.slices[part], strict=True):
                        into[: where.stop - where.start] = cells[where]
                    waiting[key].append(_Window(at, mine, row.n_monitored, row.start_ms, length))
        for key, windows in waiting.items():
            for turn in _turns(windows):
                rows_at, n, start_ms, length_ms = (np.array([w[i] for w in turn]) for i in (0, 2, 3, 4))
                self._groups[key].take(rows_at, np.stack([w.cells for w in turn]), n, start_ms, length_ms)
        return touched

    def _runs(self, device: str, digest: str) -> set[Key]:
        """Note what a device runs now. The streams that end or begin again by it."""
        model, changed = self._references.model(digest), set()
        if self._running.get((device, model), digest) != digest:
            for key, group in self._groups.items():
                at = group.streams.index.get(device)
                if at is not None and self._references.model(key.digest) == model:
                    group.streams.ended[at] = key.digest != digest
                    changed.add(Key("device", device, *key))
        self._running[device, model] = digest
        return changed

    # Deciding.

    def _tested(self) -> int:
        return max(1, sum(int((group.streams.tested & ~group.streams.ended).sum()) for group in self._groups.values()))

    def _decide(self, touched: set[Key]) -> set[Key]:
        """Alarms of the streams that heard something, and of their cohorts. The other keys whose verdict changed."""
        streams = self._tested()
        need, p_need = self._budget.device_need(streams), self._budget.skew_p(streams)
        groups: dict[GroupKey, list[int]] = defaultdict(list)
        for key in touched:
            groups[key.group].append(self._groups[key.group].streams.index[key.subject])
        for group_key, rows in groups.items():
            group, at = self._groups[group_key], np.array(rows)
            s = group.streams
            at = at[~s.ended[at]]
            for one in at[(group.log_e(at) >= need) & ~s.alarm[at] & s.tested[at]].tolist():
                if not any(m.js_beyond_chance >= self.policy.js_floor for m in group.moved(one)):
                    continue
                if s.against[one]:
                    group.differs(one)
                else:
                    s.alarm[one] = True
                    s.since_ms[one] = s.start_ms[one, EVIDENCE]
            if group_key.part != FEED:
                for one in at.tolist():
                    group.check_skew(one, p_need)
        return self._decide_cohorts(set(groups))

    def _decide_cohorts(self, groups: set[GroupKey]) -> set[Key]:
        need = self._budget.cohort_need(len(self._cohorts))
        changed: set[Key] = set()
        for group_key in groups:
            group = self._groups[group_key]
            s, every = group.streams, np.arange(len(group.streams.devices))
            if not every.size:
                continue
            levels = self._levels[group_key] = group.log_e(every)
            skewed, cohort_at = s.skew[every] == SKEWED, group.cohort_at()
            live = (s.tested[every] | skewed) & ~s.ended[every]
            live &= s.heard_ms[every] > s.heard_ms.max() - SILENT_MS
            for number, name in enumerate(group.cohorts):
                key, mine = Key("cohort", name, *group_key), every[live & (cohort_at == number)]
                now = None
                if mine.size:
                    devices = [s.devices[at] for at in mine]
                    since = np.where(skewed & ~s.alarm[every], s.start_ms[every, OWN], s.since_ms[every])
                    now = cohort(devices, levels[mine], s.alarm[mine], skewed[mine], since[mine], need=need)
                if now != self._cohorts.get(key):
                    changed.add(key)
                if now is None:
                    self._cohorts.pop(key, None)
                else:
                    self._cohorts[key] = now
        return changed

    # What people read.

    def _verdict(self, key: Key) -> Verdict:
        if key.scope == "cohort":
            return _verdict_of(self._cohorts[key]) if key in self._cohorts else "ended"
        group, at = self._stream(key)
        if group.streams.ended[at]:
            return "ended"
        if any(self._state(key)):
            return "alarm"
        return "ok" if group.streams.tested[at] else "learning"

    def _moves(self, key: Key) -> tuple[Moved, ...]:
        """What moved in a stream of a device, or in those of a cohort's listed devices."""
        if key.scope == "cohort":
            devices = self._cohorts[key].devices[:SHOWN] if key in self._cohorts else ()
            return widest(self._moves(key._replace(scope="device", subject=device)) for device in devices)
        if key.group not in self._groups or key.subject not in self._groups[key.group].streams.index:
            return ()
        group, at = self._stream(key)
        moves = group.moved(at) if group.streams.n[at, EVIDENCE] else ()
        return widest([moves, group.skewed(at)]) if group.streams.skew[at] == SKEWED else moves

    def _shown(self, key: Key) -> dict[str, Any]:
        verdict = self._verdict(key)
        shown: dict[str, Any] = {"channels": [], "kinds": [], "severity": 0, "devices": []}
        if verdict == "alarm":
            same = [key._replace(part=part) for part in (*PARTS, FEED)]
            known = [k for k in same if self._known(k)]
            moves = {k.part: self._moves(k) for k in known}
            alarms = frozenset(k.part for k in known if self._state(k)[0])
            skewed = frozenset(k.part for k in known if self._state(k)[1])
            seen = evidence(moves, alarms=alarms, skewed=skewed)
            channels = [msgspec.to_builtins(one) for one in moves[key.part]]
            shown |= {"channels": channels, "kinds": list(kinds(seen)), "severity": severity(seen)}
        if key.scope == "cohort":
            now = self._cohorts.get(key)
            return shown | {
                "n": 0, "blocks": 0, "p": None, "foreign_windows": 0, "baseline": "", "accepted": False,
                "log_e": now.log_e if now else None, "devices": list(now.devices) if now else [],
            }  # fmt: skip
        group, at = self._stream(key)
        s = group.streams
        row = OWN if s.skew[at] == SKEWED and not s.alarm[at] else EVIDENCE if s.alarm[at] else 0
        return shown | {
            "n": int(s.n[at, row]),
            "blocks": int(s.blocks[at]),
            "p": None if np.isnan(s.p[at]) else float(s.p[at]),
            "log_e": float(self._levels[key.group][at]) if s.tested[at] else None,
            "foreign_windows": int(s.foreign[at]),
            "baseline": BASELINES[s.against[at]],
            "accepted": bool(s.accepted[at]),
        }

    def _known(self, key: Key) -> bool:
        if key.scope == "cohort":
            return key in self._cohorts
        return key.group in self._groups and key.subject in self._groups[key.group].streams.index

    def _state(self, key: Key) -> tuple[bool, bool]:
        """(drifted, always differed)."""
        if key.scope == "cohort":
            return self._cohorts[key].alarm, self._cohorts[key].skewed
        group, at = self._stream(key)
        return bool(group.streams.alarm[at]), bool(group.streams.skew[at] == SKEWED)

    def _since(self, key: Key) -> int:
        if key.scope == "cohort":
            return self._cohorts[key].since_ms if key in self._cohorts else 0
        group, at = self._stream(key)
        if group.streams.skew[at] == SKEWED and not group.streams.alarm[at]:
            return int(group.streams.start_ms[at, OWN])
        return int(group.streams.since_ms[at])

    def _store(self, keys: Iterable[Key], now_ms: int) -> None:
        kept = self._packed(keys)
        rows = [{**self._row(key, now_ms), "kept": kept.get(key)} for key in keys]
        spreads = [
            {**key._asdict(), "kept": self._groups[key].dispersion.pack()}
            for key in {key.group for key in keys}
            if key in self._groups
        ]
        with self._control.begin() as connection:
            self._page(connection, rows, now_ms)
            upsert(connection, control.drift, rows, keys=KEY)
            upsert(connection, control.drift_dispersion, spreads, keys=GroupKey._fields)
            upsert(connection, control.cursors, [{"name": CURSOR, "position": self._position}], keys=["name"])

    def _row(self, key: Key, now_ms: int) -> dict[str, Any]:
        return {
            **key._asdict(),
            "model": self._references.model(key.digest),
            "state": self._shown(key),
            "verdict": self._verdict(key),
            "since_ms": self._since(key),
            "updated_ms": now_ms,
        }

    def _page(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]], now_ms: int) -> None:
        """Open, change and close the alerts of what is stored."""
        subjects = {Key(*(row[name] for name in KEY))._replace(part="") for row in rows}
        open_now = paging.opened(connection)
        for subject in sorted(subjects):
            parts = [k for k in (subject._replace(part=part) for part in (*PARTS, FEED)) if self._known(k)]
            alarms = [k for k in parts if self._verdict(k) == "alarm"]
            name = paging.name(*subject[:5])
            if not alarms and name not in open_now:
                continue
            told = [describe(self._row(k, now_ms)) for k in alarms]
            paging.page(
                connection,
                name,
                told,
                drifted=any(self._state(k)[0] for k in alarms),
                carried=bool(alarms) and all(self._carried(k) for k in alarms),
                now_ms=now_ms,
            )

    def _carried(self, key: Key) -> bool:
        """Whether the cohort of a device pages for the same stream, and lists it."""
        if key.scope == "cohort":
            return False
        group, at = self._stream(key)
        whole = self._cohorts.get(key._replace(scope="cohort", subject=group.cohort(at)))
        return whole is not None and whole.alarm and key.subject in whole.devices

    def _packed(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        groups: dict[GroupKey, list[Key]] = defaultdict(list)
        for key in keys:
            if key.scope == "device":
                groups[key.group].append(key)
        packed: dict[Key, bytes] = {}
        for group_key, mine in groups.items():
            streams = self._groups[group_key].streams
            at = np.array([streams.index[key.subject] for key in mine])
            packed.update(zip(mine, streams.pack(at), strict=True))
        return packed


class _Window(NamedTuple):
    at: int
    cells: Any
    n: int
    start_ms: int
    length_ms: int


def _turns(windows: Iterable[_Window]) -> list[list[_Window]]:
    """The windows in turns: each device at most once in a turn, its windows in their order."""
    turns: list[list[_Window]] = []
    seen: dict[int, int] = defaultdict(int)
    for window in windows:
        if seen[window.at] == len(turns):
            turns.append([])
        turns[seen[window.at]].append(window)
        seen[window.at] += 1
    return turns


def _verdict_of(one: Cohort) -> Verdict:
    return "alarm" if one.alarm or one.skewed else "ok"


def describe(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of control.drift as people read it."""
    return {
        **{name: row[name] for name in KEY},
        "model": row["model"],
        "verdict": row["verdict"],
        "since_ms": row["since_ms"] or None,
        "updated_ms": row["updated_ms"],
        **row["state"],
    }
