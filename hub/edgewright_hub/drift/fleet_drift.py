"""Drift of every device and of every fleet, from the windows they report: which moved, since when, in what.

Guarantee: as long as no device's input moves, the probability that any device of the hub is reported within the next
`horizon` blocks of each is at most about `alpha` (e-BH over e-detectors: above it, of the devices that are reported at
most a share `alpha` is false), and the same for fleets. What a device counted under other channels than its package
has, or in a context that its package does not declare, is counted apart (`foreign`) and never merged: a device cannot
invent streams. State and position are written in one transaction of hub.db.

Order in a tick: read the new windows, count each into the parts of its stream (`streams`), decide over all streams,
then over the fleets made of them (`cohorts`), store what changed. A stream whose device went on to another digest has
`ended`. Cost: about 1 ms for a finished block; all streams are kept in memory, some kilobytes each.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.errors import RequestError

from ..storage import control, telemetry
from ..storage.store import upsert
from . import detectors, measures
from .cohorts import cohort
from .references import References
from .streams import DriftPolicy, Moved, Part, cleared, counted, moved

Verdict = Literal["ok", "alarm", "ended", "learning"]
KEY: Final = ("scope", "subject", "digest", "variant", "context", "part")
CURSOR: Final = "drift.windows"
BATCH: Final = 5_000


class Key(NamedTuple):
    scope: str
    subject: str
    digest: str
    variant: str
    context: str
    part: str


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
        self._streams: dict[Key, Part] = {}
        self._verdicts: dict[Key, Verdict] = {}
        self._running: dict[tuple[str, str], str] = {}  # (device, model) → digest of its newest window
        self._position: int | None = None

    def tick(self, now_ms: int) -> bool:
        """Take the new windows in. True when there was more to read than one tick takes."""
        with self._lock:
            if self._position is None:
                self._load()
            rows = self._read()
            if not rows:
                return False
            try:
                fleets = self._refresh(rows)
                touched: set[Key] = set()
                for row in rows:
                    touched |= self._take(row)
                touched |= self._decide(fleets)
                self._position = rows[-1].id
                self._store(touched, now_ms)
            except Exception:
                self._position = None  # what is in memory is ahead of hub.db: load again
                raise
            return len(rows) == BATCH

    def acknowledge(self, subject: str, *, who: str, now_ms: int) -> int:
        """End every alarm of a device or fleet; its detectors begin anew. How many. Raises RequestError for none.

        What is ended of a fleet is ended of its devices too, in that part of that stream: the fleet's alarm is made of
        theirs and would come back with the next window.
        """
        with self._lock:
            if self._position is None:
                self._load()
            keys = {k for k, part in self._streams.items() if k.subject == subject and part.alarm}
            keys |= self._beneath({key for key in keys if key.scope == "cohort"})
            if not keys:
                raise RequestError(f"{subject!r} has no drift alarm; `edgewright fleet drift` lists them")
            for key in keys:
                self._streams[key] = cleared(self._streams[key])
                self._verdicts[key] = "ok"
            self._store(keys, now_ms)
            with self._control.begin() as connection:
                values = {"at_ms": now_ms, "who": who, "what": "drift acknowledge", "detail": subject}
                connection.execute(control.audit.insert().values(**values))
            return len(keys)

    def _beneath(self, cohorts: set[Key]) -> set[Key]:
        """Streams in alarm of the devices of these fleets."""
        if not cohorts:
            return set()
        d = control.devices.c
        with self._control.connect() as connection:
            fleets = {row.id: row.fleet for row in connection.execute(sa.select(d.id, d.fleet))}
        return {
            key
            for key, part in self._streams.items()
            if key.scope == "device"
            and part.alarm
            and key._replace(scope="cohort", subject=fleets.get(key.subject, "")) in cohorts
        }

    def verdicts(self) -> list[dict[str, Any]]:
        """Every stream as people read it, alarms first: JSON values only."""
        with self._control.connect() as connection:
            rows = connection.execute(sa.select(control.drift)).all()
        return sorted(
            (describe(row._mapping) for row in rows), key=lambda v: (v["verdict"] != "alarm", v["scope"], v["subject"])
        )

    # Reading.

    def _load(self) -> None:
        self._streams, self._verdicts, self._running = {}, {}, {}
        with self._control.connect() as connection:
            c = control.cursors.c
            self._position = connection.execute(sa.select(c.position).where(c.name == CURSOR)).scalar() or 0
            rows = connection.execute(sa.select(control.drift).order_by(control.drift.c.updated_ms)).all()
            self._references.learn(connection, {row.digest for row in rows})
            for row in rows:
                key = Key(*(row._mapping[name] for name in KEY))
                self._streams[key] = msgspec.convert(row.state, Part)
                self._verdicts[key] = row.verdict
                if key.scope == "device" and row.verdict != "ended":
                    self._running[key.subject, row.model] = key.digest

    def _read(self) -> Sequence[Any]:
        w = telemetry.windows.c
        columns = (
            w.id,
            w.device,
            w.start_ms,
            w.digest,
            w.variant,
            w.context,
            w.edge_hash,
            w.phase,
            w.n_monitored,
            w.cells,
        )
        query = sa.select(*columns).where(w.id > (self._position or 0)).order_by(w.id).limit(BATCH)
        with self._telemetry.connect() as connection:
            return connection.execute(query).all()

    def _refresh(self, rows: Iterable[Any]) -> dict[str, str]:
        """Packages that the rows name, and the fleet of each device."""
        with self._control.connect() as connection:
            self._references.learn(connection, {row.digest for row in rows})
            d = control.devices.c
            return {row.id: row.fleet for row in connection.execute(sa.select(d.id, d.fleet))}

    # Counting and testing.

    def _take(self, row: Any) -> set[Key]:
        reference = self._references.of(row.digest, row.variant)
        if reference is None or row.phase == "shadow":
            return set()
        model = self._references.model(row.digest)
        self._running[row.device, model] = row.digest
        declared = self._references.declares(row.digest, row.context)
        context = row.context if declared else ""
        keys = [Key("device", row.device, row.digest, row.variant, context, part) for part in reference.names]
        cells = reference.counts(row) if declared else None
        for key in keys:
            part = self._streams.get(key, Part())
            if cells is None:
                part = msgspec.structs.replace(part, foreign=part.foreign + 1)
            elif row.n_monitored:
                mine = np.concatenate([cells[s] for s in reference.slices[key.part]])
                part = counted(self.policy, part, reference.cells[key.part], row, mine)
            self._streams[key] = part
        return set(keys)

    # Deciding.

    def _decide(self, fleets: dict[str, str]) -> set[Key]:
        """Verdicts of all streams, and of the cohorts made of them. The keys whose verdict or state changed."""
        changed: set[Key] = set()
        live: list[Key] = []
        for key in [k for k in self._streams if k.scope == "device"]:
            model = self._references.model(key.digest)
            if self._running.get((key.subject, model), key.digest) != key.digest:
                if self._verdicts.get(key) != "ended":
                    changed.add(key)
                self._verdicts[key] = "ended"
            else:
                live.append(key)
        tested = [key for key in live if self._streams[key].blocks]
        levels = np.array([self._streams[key].detector.level for key in tested])
        reported = measures.ebh(levels - np.log(self.policy.horizon), self.policy.alpha)
        for key, high in zip(tested, reported, strict=True):
            if self._settle(key, bool(high)):
                changed.add(key)
        for key in live:
            self._verdicts.setdefault(key, "learning")
        return changed | self._cohorts(tested, fleets)

    def _settle(self, key: Key, high: bool) -> bool:
        """Raise or keep the alarm of a tested device stream; true when it changed."""
        part, before = self._streams[key], self._verdicts.get(key)
        if high:
            reference = self._references.of(key.digest, key.variant)
            channels: tuple[Moved, ...] = ()
            if reference:
                channels = moved(self.policy, part, reference.cells[key.part], reference.names[key.part])
            if part.alarm or any(m.js >= self.policy.js_floor for m in channels):
                since = part.since_ms if part.alarm else part.evidence.start_ms
                self._streams[key] = msgspec.structs.replace(
                    part, alarm=True, since_ms=since, moved=channels or part.moved
                )
        self._verdicts[key] = "alarm" if self._streams[key].alarm else "ok"
        return self._streams[key] != part or self._verdicts[key] != before

    def _cohorts(self, tested: list[Key], fleets: dict[str, str]) -> set[Key]:
        groups: dict[Key, list[Key]] = {}
        for key in tested:
            fleet = key._replace(scope="cohort", subject=fleets.get(key.subject, ""))
            groups.setdefault(fleet, []).append(key)
        need = detectors.threshold(self.policy.horizon, len(groups), self.policy.alpha)
        changed = set()
        for fleet, keys in groups.items():
            now = cohort([(k.subject, self._streams[k], self._verdicts[k] == "alarm") for k in keys], need)
            if now != self._streams.get(fleet):
                changed.add(fleet)
            self._streams[fleet] = now
            self._verdicts[fleet] = "alarm" if now.alarm else "ok"
        for key in [k for k in self._streams if k.scope == "cohort" and k not in groups]:
            if self._verdicts.get(key) != "ended":
                changed.add(key)
            self._verdicts[key] = "ended"
        return changed

    def _store(self, keys: Iterable[Key], now_ms: int) -> None:
        rows = [
            {
                **key._asdict(),
                "model": self._references.model(key.digest),
                "state": msgspec.to_builtins(self._streams[key]),
                "verdict": self._verdicts[key],
                "since_ms": self._streams[key].since_ms,
                "updated_ms": now_ms,
            }
            for key in keys
        ]
        with self._control.begin() as connection:
            upsert(connection, control.drift, rows, keys=KEY)
            upsert(connection, control.cursors, [{"name": CURSOR, "position": self._position}], keys=["name"])


def describe(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of control.drift as people read it."""
    part = msgspec.convert(row["state"], Part)
    return {
        **{name: row[name] for name in KEY},
        "model": row["model"],
        "verdict": row["verdict"],
        "since_ms": row["since_ms"] or None,
        "updated_ms": row["updated_ms"],
        "n": part.evidence.n if part.alarm else part.pending.n,
        "blocks": part.blocks,
        "p": part.p,
        "log_e": part.detector.level if part.blocks else None,
        "foreign_windows": part.foreign,
        "channels": [msgspec.to_builtins(one) for one in part.moved],
        "devices": list(part.devices),
    }
