"""Drift of every device and of every fleet, from the windows they report: which moved, since when, in what.

Guarantee: as long as no device's input moves, the probability that any device of the hub is reported within the next
`horizon` blocks of each is at most about `alpha` (e-BH over e-detectors: above it, of the devices that are reported at
most a share `alpha` is false), and the same for fleets. What a device counted under other channels than its package
has is counted apart (`foreign`) and never merged. State and position are written in one transaction of hub.db.

Order: windows of one *stream* (device, digest, variant, context) merge, in the order of their arrival, into blocks of
at least `n_min` monitored inferences, because many small windows do not add up to a weak drift. Each finished block is
tested against the reference of the variant, once for each *part* (input, embedding, output), and its p-value moves the
part's detector. The counts since the detector last stood below 1 are the evidence: they say since when, and which
channels moved (Benjamini–Hochberg, with effect sizes). A fleet's value is the mean over its devices.

An alarm ends when somebody acknowledges it, or when three clearing windows of `clear_ms` in a row show p > .1. A stream
whose device went on to another digest has `ended`.

Cost: about 1 ms for a finished block; all streams are kept in memory, some kilobytes each.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.baseline import Baseline, decode_baseline, per_channel
from edgewright_contracts.binning import Cells, unpack
from edgewright_contracts.channels import Group
from edgewright_contracts.errors import ContractError, RequestError
from edgewright_contracts.manifest import Manifest

from . import control, drift, telemetry
from .store import upsert

Verdict = Literal["ok", "alarm", "ended", "learning"]
PARTS: Final[tuple[Group, ...]] = ("input", "embedding", "output")
KEY: Final = ("scope", "subject", "digest", "variant", "context", "part")
CURSOR: Final = "drift.windows"
BATCH: Final = 5_000
_LOG = logging.getLogger(__name__)


class DriftPolicy(msgspec.Struct, frozen=True, kw_only=True):
    n_min: int = 200  # monitored inferences in a block
    horizon: int = 1000  # blocks
    alpha: float = 0.1  # probability of any false alarm within the horizon
    q: float = 0.05  # share of false ones among the channels said to have moved
    js_floor: float = 0.05  # no channel moved further than this: not worth a person's time
    clear_ms: int = 24 * 3600_000
    clear_p: float = 0.1
    clear_times: int = 3


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """One channel that moved: its p-value and how far (Jensen–Shannon distance; PSI beside what chance explains)."""

    name: str
    p: float
    js: float
    psi: float
    psi_chance: float


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one part that merge: cells of its channels, one after another."""

    n: int = 0
    start_ms: int = 0
    cells: tuple[int, ...] = ()

    def plus(self, n: int, start_ms: int, cells: Cells) -> Block:
        mine = np.asarray(self.cells, np.int64) if self.cells else np.zeros_like(cells)
        return Block(n=self.n + n, start_ms=self.start_ms or start_ms, cells=tuple((mine + cells).tolist()))


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one part of a stream between two ticks."""

    detector: drift.Detector = drift.Detector()
    pending: Block = Block()
    evidence: Block = Block()
    clearing: Block = Block()
    quiet: int = 0  # clearing windows in a row without drift
    blocks: int = 0  # tested so far
    foreign: int = 0  # windows under other channels
    p: float = 1.0  # of the last block
    alarm: bool = False
    since_ms: int = 0
    moved: tuple[Moved, ...] = ()
    devices: tuple[str, ...] = ()  # cohorts only: those that are reported


class Key(NamedTuple):
    scope: str
    subject: str
    digest: str
    variant: str
    context: str
    part: str


class _Package(NamedTuple):
    model: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class _Reference:
    edge_hash: str
    width: int
    names: dict[str, list[str]]  # channels of each part
    cells: dict[str, list[Cells]]
    slices: dict[str, list[slice]]  # into a window's row of cells


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
        self._blobs = blobs
        self._lock = threading.Lock()
        self._packages: dict[str, _Package] = {}
        self._references: dict[tuple[str, str], _Reference | None] = {}
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
        """End every alarm of a device or cohort; its detectors begin anew. How many. Raises RequestError for none."""
        with self._lock:
            if self._position is None:
                self._load()
            keys = {k for k, part in self._streams.items() if k.subject == subject and part.alarm}
            if not keys:
                raise RequestError(f"{subject!r} has no drift alarm; `edgewright fleet drift` lists them")
            for key in keys:
                self._streams[key] = _cleared(self._streams[key])
                self._verdicts[key] = "ok"
            self._store(keys, now_ms)
            with self._control.begin() as connection:
                values = {"at_ms": now_ms, "who": who, "what": "drift acknowledge", "detail": subject}
                connection.execute(control.audit.insert().values(**values))
            return len(keys)

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
            for row in connection.execute(sa.select(control.drift).order_by(control.drift.c.updated_ms)):
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
            if {row.digest for row in rows} - set(self._packages):
                p = control.packages.c
                for row in connection.execute(sa.select(p.name, p.digest, p.manifest)):
                    self._packages[row.digest[:16]] = _Package(row.name, msgspec.convert(row.manifest, Manifest))
            d = control.devices.c
            return {row.id: row.fleet for row in connection.execute(sa.select(d.id, d.fleet))}

    def _reference(self, digest: str, variant: str) -> _Reference | None:
        """None for a package or variant that this hub does not have, or whose reference it cannot read."""
        package = self._packages.get(digest)
        if package is None:
            return None  # it may be published yet
        if (digest, variant) not in self._references:
            try:
                self._references[digest, variant] = _reference(read_baseline(package.manifest, variant, self._blobs))
            except (ContractError, OSError) as error:
                _LOG.warning("no drift for %s %s of %s: %s", package.model, variant, digest, error)
                self._references[digest, variant] = None
        return self._references[digest, variant]

    # Counting and testing.

    def _take(self, row: Any) -> set[Key]:
        reference = self._reference(row.digest, row.variant)
        if reference is None or row.phase == "shadow":
            return set()
        model = self._packages[row.digest].model
        self._running[row.device, model] = row.digest
        keys = [Key("device", row.device, row.digest, row.variant, row.context, part) for part in reference.names]
        cells = _cells(row, reference)
        for key in keys:
            part = self._streams.get(key, Part())
            if cells is None:
                part = msgspec.structs.replace(part, foreign=part.foreign + 1)
            elif row.n_monitored:
                mine = np.concatenate([cells[s] for s in reference.slices[key.part]])
                part = self._count(part, reference, key.part, row, mine)
            self._streams[key] = part
        return set(keys)

    def _count(self, part: Part, reference: _Reference, name: str, row: Any, cells: Cells) -> Part:
        pending = part.pending.plus(row.n_monitored, row.start_ms, cells)
        if pending.n < self.policy.n_min:
            return msgspec.structs.replace(part, pending=pending)
        R = reference.cells[name]
        p = drift.simes(_test(pending, R))
        detector = drift.advance(part.detector, p)
        counts = np.asarray(pending.cells, np.int64)
        evidence = Block() if part.detector.level < 0 and not part.alarm else part.evidence
        part = msgspec.structs.replace(
            part,
            pending=Block(),
            detector=detector,
            evidence=evidence.plus(pending.n, pending.start_ms, counts),
            blocks=part.blocks + 1,
            p=p,
        )
        return self._clear(part, R, pending, row.start_ms) if part.alarm else part

    def _clear(self, part: Part, R: list[Cells], block: Block, now_ms: int) -> Part:
        clearing = part.clearing.plus(block.n, block.start_ms, np.asarray(block.cells, np.int64))
        if now_ms - clearing.start_ms < self.policy.clear_ms:
            return msgspec.structs.replace(part, clearing=clearing)
        quiet = part.quiet + 1 if drift.simes(_test(clearing, R)) > self.policy.clear_p else 0
        if quiet >= self.policy.clear_times:
            return _cleared(part)
        return msgspec.structs.replace(part, clearing=Block(), quiet=quiet)

    # Deciding.

    def _decide(self, fleets: dict[str, str]) -> set[Key]:
        """Verdicts of all streams, and of the cohorts made of them. The keys whose verdict or state changed."""
        changed: set[Key] = set()
        live: list[Key] = []
        for key in [k for k in self._streams if k.scope == "device"]:
            model = self._packages[key.digest].model if key.digest in self._packages else ""
            if self._running.get((key.subject, model), key.digest) != key.digest:
                if self._verdicts.get(key) != "ended":
                    changed.add(key)
                self._verdicts[key] = "ended"
            else:
                live.append(key)
        tested = [key for key in live if self._streams[key].blocks]
        levels = np.array([self._streams[key].detector.level for key in tested])
        reported = drift.ebh(np.exp(np.minimum(levels, 600.0)) / self.policy.horizon, self.policy.alpha)
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
            reference = self._reference(key.digest, key.variant)
            moved = _moved(part.evidence, reference, key.part, self.policy) if reference else ()
            if part.alarm or any(m.js >= self.policy.js_floor for m in moved):
                since = part.since_ms if part.alarm else part.evidence.start_ms
                self._streams[key] = msgspec.structs.replace(
                    part, alarm=True, since_ms=since, moved=moved or part.moved
                )
        self._verdicts[key] = "alarm" if self._streams[key].alarm else "ok"
        return self._streams[key] != part or self._verdicts[key] != before

    def _cohorts(self, tested: list[Key], fleets: dict[str, str]) -> set[Key]:
        groups: dict[Key, list[Key]] = {}
        for key in tested:
            cohort = key._replace(scope="cohort", subject=fleets.get(key.subject, ""))
            groups.setdefault(cohort, []).append(key)
        need = drift.threshold(self.policy.horizon, len(groups), self.policy.alpha)
        changed = set()
        for cohort, keys in groups.items():
            levels = np.array([self._streams[key].detector.level for key in keys])
            level = float(np.logaddexp.reduce(levels) - np.log(len(levels)))
            parts = [self._streams[key] for key in keys]
            reported = [part for key, part in zip(keys, parts, strict=True) if self._verdicts[key] == "alarm"]
            alarm = level >= need and bool(reported)
            now = Part(
                detector=drift.Detector((level,) * len(drift.DELTAS)),
                blocks=sum(part.blocks for part in parts),
                evidence=Block(n=sum(part.evidence.n for part in parts)),
                p=min(part.p for part in parts),
                alarm=alarm,
                since_ms=min(part.since_ms for part in reported) if alarm else 0,
                moved=_widest(reported) if alarm else (),
                devices=tuple(sorted(key.subject for key in keys if self._verdicts[key] == "alarm")),
            )
            if now != self._streams.get(cohort):
                changed.add(cohort)
            self._streams[cohort] = now
            self._verdicts[cohort] = "alarm" if alarm else "ok"
        for key in [k for k in self._streams if k.scope == "cohort" and k not in groups]:
            if self._verdicts.get(key) != "ended":
                changed.add(key)
            self._verdicts[key] = "ended"
        return changed

    def _store(self, keys: Iterable[Key], now_ms: int) -> None:
        rows = [
            {
                **key._asdict(),
                "model": self._packages[key.digest].model if key.digest in self._packages else "",
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


def read_baseline(manifest: Manifest, variant: str, blobs: Path) -> Baseline:
    """The variant's reference out of the registry's blobs. Raises ContractError and OSError."""
    return decode_baseline((blobs / manifest.files[manifest.variant(variant).baseline].sha256).read_bytes())


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
        "channels": [msgspec.to_builtins(moved) for moved in part.moved],
        "devices": list(part.devices),
    }


def _reference(baseline: Baseline) -> _Reference:
    cells = per_channel(baseline.channels, baseline.cells())
    starts = np.cumsum([0, *(c.width for c in baseline.channels)])
    names: dict[str, list[str]] = {}
    counts: dict[str, list[Cells]] = {}
    slices: dict[str, list[slice]] = {}
    for channel, start, row in zip(baseline.channels, starts.tolist(), cells, strict=False):
        names.setdefault(channel.group, []).append(channel.name)
        counts.setdefault(channel.group, []).append(row)
        slices.setdefault(channel.group, []).append(slice(start, start + channel.cells))
    return _Reference(baseline.edge_hash, int(starts[-1]), names, counts, slices)


def _cells(row: Any, reference: _Reference) -> Cells | None:
    """None when the window was counted under other channels."""
    if row.edge_hash != reference.edge_hash:
        return None
    if not row.cells:
        return np.zeros(reference.width, np.int64)
    try:
        return unpack(row.cells, count=reference.width)
    except ContractError:
        return None


def _split(block: Block, R: list[Cells]) -> list[Cells]:
    return np.split(np.asarray(block.cells, np.int64), np.cumsum([row.size for row in R])[:-1])


def _test(block: Block, R: list[Cells]) -> drift.Floats:
    return drift.window_p(drift.pad(_split(block, R)), drift.pad(R))


def _moved(block: Block, reference: _Reference, part: str, policy: DriftPolicy) -> tuple[Moved, ...]:
    """The channels that moved in the evidence, furthest first."""
    R = reference.cells[part]
    C, padded = drift.pad(_split(block, R)), drift.pad(R)
    p, js, psi = drift.window_p(C, padded), drift.js_distance(C, padded), drift.psi(C, padded)
    found = [
        Moved(
            name=reference.names[part][i],
            p=float(p[i]),
            js=float(js[i]),
            psi=float(psi[i]),
            psi_chance=drift.psi_crit(max(1.0, C[i].sum()), max(1.0, padded[i].sum()), R[i].size, len(R), policy.q),
        )
        for i in np.flatnonzero(drift.bh(p, policy.q))
    ]
    return tuple(sorted(found, key=lambda m: -m.js))


def _widest(parts: Iterable[Part]) -> tuple[Moved, ...]:
    """Each channel that moved on any device, as it moved on the device where it moved most."""
    best: dict[str, Moved] = {}
    for moved in (m for part in parts for m in part.moved):
        if moved.name not in best or best[moved.name].js < moved.js:
            best[moved.name] = moved
    return tuple(sorted(best.values(), key=lambda m: -m.js))


def _cleared(part: Part) -> Part:
    return Part(blocks=part.blocks, foreign=part.foreign, p=part.p, pending=part.pending)
