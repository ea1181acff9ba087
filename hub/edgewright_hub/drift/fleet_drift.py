"""Drift of every device and of every cohort, from the windows they report: read, decided over, stored, paged.

Guarantee: state, position, verdicts and alerts are written in one transaction of hub.db: at once when a verdict changed
or somebody decided or asks, else every `STORE_MS`. So a hub that is killed, or a tick that fails, reads the windows
since then again, and comes to the same. What operators decide (`budget`, `acknowledge`, `accept`, `undo`) is in the
audit log.

Order in a tick: read the new windows of telemetry.db, give them to the streams (`watch`), decide, store what is due
(`verdicts`), open and close alerts (`paging`). Cost: about 0.3 ms a window in ticks of hundreds, and 0.2 ms for each
stream that is stored; all streams are kept in memory (`streams`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.built import built

from ..fleet.roster import Roster
from ..storage import control, telemetry
from ..storage.store import upsert
from . import answers, decisions, kept, paging
from .budget import Budget
from .groups import DriftPolicy
from .references import References
from .verdicts import KEY, Verdict, pages, row, verdict
from .verdicts import describe as describe
from .watch import GroupKey, Key, Watch

CURSOR: Final = "drift.windows"
RANK: Final = {"alarm": 0, "skewed": 1}  # of verdicts, those that people are to read first
BATCH: Final = 5_000
STORE_MS: Final = 5 * 60_000
MEMBERS_MS: Final = 60_000  # who is in which cohort is asked so often
IMPORTED: Final = "import"  # of `placed`: a table of labels
FORGET_EVERY_MS: Final = 24 * 3600_000


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
        self._roster = Roster(telemetry_engine)
        self._forget()

    def _forget(self) -> None:
        self._watch = Watch(self.policy, self._references)
        self._position: int | None = None  # of the last window read
        self._kept_position: int | None = None  # the same in hub.db
        self._unstored: set[Key] = set()
        self._told: dict[Key, tuple[Verdict, bool]] = {}  # as stored: verdict, and whether it is a page
        self._known: set[str] = set()  # digests whose streams are in memory
        self._stored_ms = self._members_ms = self._ticked_ms = self._forgot_ms = 0

    def tick(self, now_ms: int) -> bool:
        """Take the new windows in. True when there was more to read than one tick takes."""
        with self._lock:
            self._load(now_ms)
            self._ticked_ms = now_ms
            rows = self._read()
            try:
                touched = self._refresh(rows, now_ms)
                if rows:
                    took = self._watch.take([row for row in rows if self._tells(row)])
                    touched |= took | self._watch.decide(took)
                    self._position = rows[-1].id
                self._unstored |= touched
                if self._due(touched, now_ms):
                    self._store(now_ms)
            except Exception:
                self._position = None  # what is in memory is ahead of hub.db: load again
                raise
            return len(rows) == BATCH

    # What operators decide.

    def budget(self) -> dict[str, Any]:
        """False pages a month that are allowed, by how many streams they are shared, and what a page needs."""
        with self._lock:
            self._load(0)
            streams, cohorts = self._watch.watched(), self._watch.watched_cohorts()
            return {
                "false_pages_a_month": self._watch.budget.false_pages_a_month,
                "streams": streams,
                "log_e_device": self._watch.budget.device_need(streams),
                "log_e_cohort": self._watch.budget.cohort_need(cohorts),
            }

    def set_budget(self, pages: float, *, who: str, reason: str, now_ms: int) -> dict[str, Any]:
        """Raises RequestError."""
        decisions.check("budget", reason)
        budget = Budget(pages)
        with self._lock:
            self._load(now_ms)
            detail = {"false_pages_a_month": pages, "before": self._watch.budget.false_pages_a_month}
            with self._control.begin() as connection:
                decisions.record(connection, "budget", "", who=who, reason=reason, now_ms=now_ms, detail=detail)
            self._watch.budget = budget
        return self.budget()

    def acknowledge(self, subject: str, *, who: str, now_ms: int) -> int:
        """End every alarm of a device or cohort (`answers`). How many. Raises RequestError for none."""
        with self._lock:
            self._load(now_ms)
            keys = answers.acknowledge(self._watch, subject)

            def note(connection: sa.Connection) -> int:
                values = {"at_ms": now_ms, "who": who, "what": "drift acknowledge", "detail": subject}
                connection.execute(control.audit.insert().values(**values))
                return len(keys)

            return self._settled(keys, now_ms, note)

    def accept(self, subject: str, *, who: str, reason: str, now_ms: int) -> dict[str, int]:
        """A new normal for the streams of a device or cohort that are in alarm (`answers`). Raises RequestError when
        there is none."""
        decisions.check("accept", reason)
        with self._lock:
            self._load(now_ms)
            alarms, before = answers.accept(self._watch, subject)
            detail = {"streams": [list(key) for key, _ in before]}
            note = partial(
                decisions.record, what="accept", subject=subject, who=who, reason=reason, now_ms=now_ms, detail=detail,
                kept=msgspec.msgpack.encode(before),
            )  # fmt: skip
            return {"accepted": len(before), "decision": self._settled(alarms, now_ms, note)}

    def undo(self, subject: str, *, who: str, reason: str, now_ms: int) -> dict[str, int]:
        """The normal from before the last acceptance of a device or cohort. Raises RequestError without one, Refused
        while a later one of the same streams stands."""
        decisions.check("undo", reason)
        with self._lock:
            self._load(now_ms)
            with self._control.connect() as connection:
                number, before = decisions.last_acceptance(connection, subject)
                streams = msgspec.msgpack.decode(before, type=built(answers.Kept))
                self._know(connection, {key.digest for key, _ in streams})
            keys = answers.take_back(self._watch, streams)
            note = partial(
                decisions.record, what="undo", subject=subject, who=who, reason=reason, now_ms=now_ms,
                detail={"decision": number},
            )  # fmt: skip
            self._settled(keys, now_ms, note)
            return {"restored": len(keys), "decision": number}

    def _settled(self, keys: set[Key], now_ms: int, note: Callable[[sa.Connection], int]) -> int:
        """Decide over the cohorts of these again, and store all with the note of who did it. Its number."""
        self._unstored |= keys | self._watch.decide_cohorts({key.group for key in keys})
        return self._store(now_ms, note)

    def verdicts(self) -> list[dict[str, Any]]:
        """Every stream as people read it, alarms first: JSON values only."""
        with self._lock:
            if self._unstored and self._position is not None:  # else a tick failed, and the next one reads again
                self._store(self._ticked_ms)
        with self._control.connect() as connection:
            rows = connection.execute(sa.select(control.drift)).all()
        return sorted(
            (describe(one._mapping) for one in rows),
            key=lambda v: (RANK.get(v["verdict"], 2), v["scope"], v["subject"]),
        )

    # Reading and storing.

    def _load(self, now_ms: int) -> None:
        if self._position is not None:
            return
        self._forget()
        with self._control.connect() as connection:
            c = control.cursors.c
            position = connection.execute(sa.select(c.position).where(c.name == CURSOR)).scalar() or 0
            self._watch.budget = decisions.budget(connection)
            self._belong(connection, now_ms)
            self._know(connection, kept.running(connection))
            cohorts = kept.cohorts(connection)
        # Devices may have left since it was stored, and cohorts.
        self._unstored |= self._watch.belong(self._watch.members) | {k for k in cohorts if not self._watch.known(k)}
        self._position = self._kept_position = position

    def _read(self) -> Sequence[Any]:
        w = telemetry.windows.c
        columns = (
            w.id, w.device, w.spool_id, w.seq, w.arrived_ms, w.start_ms, w.mono_start_ms, w.mono_end_ms, w.digest,
            w.variant, w.context, w.edge_hash, w.phase, w.placed, w.n, w.n_monitored, w.cells, w.repeated, w.input_age,
            w.outcomes,
        )  # fmt: skip
        query = sa.select(*columns).where(w.id > (self._position or 0)).order_by(w.id).limit(BATCH)
        with self._telemetry.connect() as connection:
            return connection.execute(query).all()

    def _tells(self, row: Any) -> bool:
        """Whether a window says what a device of this hub runs now: labels that come late, or from a table, do not."""
        labels_alone = row.placed == IMPORTED or (row.n == 0 and row.outcomes)
        return not labels_alone and row.device in self._watch.members

    def _refresh(self, rows: Sequence[Any], now_ms: int) -> set[Key]:
        """Packages that the rows name, and the fleet and cohorts of each device; what changed by these."""
        due = abs(now_ms - self._members_ms) >= MEMBERS_MS
        due = due or any(row.device not in self._watch.members for row in rows)
        if not rows and not due:
            return set()
        with self._control.connect() as connection:
            changed = self._belong(connection, now_ms) if due else set()
            self._know(connection, {one.digest for one in rows})
        return changed

    def _know(self, connection: sa.Connection, digests: set[str]) -> None:
        """The packages of these, and the streams of those that no device ran lately."""
        references = self._watch.references
        references.learn(connection, digests)
        new = {one for one in digests - self._known if references.model(one)}
        if new:
            kept.remember(connection, self._watch, new)
            self._known |= new

    def _belong(self, connection: sa.Connection, now_ms: int) -> set[Key]:
        devices = self._roster.read(connection)
        fleets = {device.fleet for device in devices.values()}
        # Alarms are called by their subject's name, so of a cohort and a fleet of one name the fleet is meant.
        members = {name: (one.fleet, *(c for c in one.cohorts if c not in fleets)) for name, one in devices.items()}
        self._members_ms = now_ms
        return self._watch.belong(members)

    def _due(self, touched: Iterable[Key], now_ms: int) -> bool:
        if not self._unstored:
            return self._position != self._kept_position
        if abs(now_ms - self._stored_ms) >= STORE_MS:
            return True
        return any(self._told.get(key) != self._says(key) for key in touched)

    def _says(self, key: Key) -> tuple[Verdict, bool]:
        return verdict(self._watch, key), pages(self._watch, key)

    def _store(self, now_ms: int, note: Callable[[sa.Connection], int] = lambda _: 0) -> int:
        """All that changed, and how far was read, with the note of who decided. Its number."""
        try:
            return self._stored(self._unstored, now_ms, note)
        except Exception:
            self._position = None  # nothing of it happened: load again
            raise

    def _stored(self, keys: set[Key], now_ms: int, note: Callable[[sa.Connection], int]) -> int:
        groups = {key.group for key in keys}
        # Each block of a device is its cohorts' too.
        keys = keys | {key for key in self._watch.cohorts if key.group in groups}
        packed = kept.packed(self._watch, keys)
        rows = [{**row(self._watch, key, now_ms), "kept": packed.get(key)} for key in keys]
        forget = abs(now_ms - self._forgot_ms) >= FORGET_EVERY_MS
        spreads = [
            {**key._asdict(), "kept": self._watch.groups[key].pack_dispersion()}
            for key in groups
            if key in self._watch.groups
        ]
        with self._control.begin() as connection:
            paging.tell(connection, self._watch, keys, now_ms)
            upsert(connection, control.drift, rows, keys=KEY)
            upsert(connection, control.drift_dispersion, spreads, keys=GroupKey._fields)
            upsert(connection, control.cursors, [{"name": CURSOR, "position": self._position}], keys=["name"])
            if forget:
                kept.forget(connection, now_ms)
            number = note(connection)
        self._told.update((key, self._says(key)) for key in keys)
        self._stored_ms, self._kept_position, self._unstored = now_ms, self._position, set()
        self._forgot_ms = now_ms if forget else self._forgot_ms
        gone = self._watch.forget(now_ms)
        if gone:
            self._known -= gone
            self._told = {key: said for key, said in self._told.items() if key.digest not in gone}
        return number
