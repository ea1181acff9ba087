"""Accuracy of models, from rollups and labels: expected without labels, recalibrated by them, by cohort and context.

Sums are those of the rollups of an hour, which are exact; labels are of the last `LABEL_DAYS`, by arrival, or of the
last days alone where these contradict them (`change`). A device is of the fleet that it is in now. Rollups do not know
devices: what some of them counted is read from their reports, which are kept for a day. Nothing is written. Cost: about
2 ms for each variant and cohort of a day; 20 µs for each report of chosen devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import sqlalchemy as sa

from edgewright_contracts.binning import Cells, unpack
from edgewright_contracts.errors import RequestError
from edgewright_contracts.report import CONFIDENCE_BINS, CORRECT

from ..storage import control, telemetry
from ..storage.histograms import cells_of
from . import change
from .change import DAYS
from .expected import CONFIDENCE_WIDTH, Expected, Slice, combined, expected
from .labels import DAY_MS, Labels
from .outcomes import rate
from .packages import Packages, Variant

HOUR_MS: Final = 3600_000
LABEL_DAYS: Final = 30
REPORTS: Final = 200_000  # of chosen devices, in one answer
REPORTS_H: Final = 24  # so long they are kept (retention)
CHUNK: Final = 500  # devices in one SELECT
CONDITION: Final = "expected, if what it has learnt still holds"


class Part(NamedTuple):
    digest: str
    variant: str
    cohort: str
    context: str


class Counted(NamedTuple):
    confidence: Cells
    n: dict[str, int]  # of each device
    labels: dict[str, Labels]  # likewise
    recent: dict[int, dict[str, Labels]]  # the same, of the last days alone


def read(
    control_engine: sa.Engine,
    telemetry_engine: sa.Engine,
    packages: Packages,
    *,
    now_ms: int,
    hours: int = 24,
    model: str = "",
    fleet: str = "",
    context: str | None = None,
    devices: Container[str] | None = None,
) -> dict[str, Any]:
    """Models, each with its slices: JSON values only. `context`, `devices` None: all of them. Raises RequestError for
    more reports of chosen devices than are kept, or than `REPORTS`."""
    since = now_ms - hours * HOUR_MS
    if devices is not None and hours > REPORTS_H:
        raise RequestError(f"reports of single devices are kept for {REPORTS_H} hours, got {hours}; or name a fleet")
    variants = {key: one for key, one in packages.known.items() if model in ("", one.model)}
    with control_engine.connect() as connection:
        d = control.devices.c
        rows = connection.execute(sa.select(d.id, d.fleet)).all()
        fleets = {row.id: row.fleet for row in rows if devices is None or row.id in devices}
        digests = {digest for digest, _ in variants}
        labels = {days: _labels(connection, now_ms - days * DAY_MS, digests, fleets) for days in (LABEL_DAYS, *DAYS)}
        moved = _moved(connection, fleets)
    counted: dict[Part, Counted] = defaultdict(lambda: Counted(np.zeros(CONFIDENCE_WIDTH, np.int64), {}, {}, {}))
    with telemetry_engine.connect() as connection:
        whole = devices is None
        sums = _confidences(connection, since, variants) if whole else _reported(connection, since, variants, fleets)
        for part, cells in sums:
            counted[part].confidence[:] += cells
        for part, device, n in _shares(connection, since, variants, fleets):
            counted[part].n[device] = n
    for days, some in labels.items():
        for (part, device), found in some.items():
            if (part.digest, part.variant) in variants:
                one = counted[part]
                (one.labels if days == LABEL_DAYS else one.recent.setdefault(days, {}))[device] = found
    chosen = {
        part: one
        for part, one in counted.items()
        if fleet in ("", part.cohort) and context in (None, part.context) and _any(one)
    }
    by_model: dict[str, list[Part]] = defaultdict(list)
    for part in sorted(chosen):
        by_model[variants[part.digest, part.variant].model].append(part)
    told = [_model(name, parts, chosen, variants, moved) for name, parts in sorted(by_model.items())]
    return {"hours": hours, "condition": CONDITION, "models": told}


def _any(one: Counted) -> bool:
    return bool(one.confidence.any() or one.labels)


def _model(
    name: str,
    parts: Iterable[Part],
    counted: Mapping[Part, Counted],
    variants: Mapping[tuple[str, str], Variant],
    moved: Mapping[Part, set[str]],
) -> dict[str, Any]:
    slices, found = [], []
    for part in parts:
        days, counts = _speaking(counted[part])
        one = expected(counts)
        found += [one] if one else []
        version = variants[part.digest, part.variant].version
        drift = {"drift": sorted(moved.get(part, ()))}
        told = {**_told(one), **_rates([counted[part]]), "label_days": days, **drift}
        slices.append({"version": version, **part._asdict(), **told})
    return {"model": name, **_told(combined(found)), **_rates(counted[part] for part in parts), "slices": slices}


def _speaking(counted: Counted) -> tuple[int, Slice]:
    """The days whose labels speak for now, and what they say."""
    whole = _slice(counted, counted.labels)
    recent = {days: _slice(counted, labels) for days, labels in counted.recent.items()}
    days = change.newest(whole, recent)
    return (days, recent[days]) if days else (LABEL_DAYS, whole)


def _slice(counted: Counted, by_device: Mapping[str, Labels]) -> Slice:
    devices = sorted({*counted.n, *counted.labels})
    none = Labels()
    labels: Cells = np.array([by_device.get(d, none).confidence for d in devices], np.int64)
    labels = labels.reshape(-1, 2, CONFIDENCE_BINS)
    n: Cells = np.array([counted.n.get(d, 0) for d in devices], np.int64)
    return Slice(counted.confidence, n, labels[:, 0], labels[:, 1])


def _told(one: Expected | None) -> dict[str, Any]:
    if one is None:
        return {"expected": None}
    names = ("n", "value", "low", "high", "confidence", "labels", "right", "holds", "unknown")
    return {"expected": {name: getattr(one, name) for name in names}}


def _rates(parts: Iterable[Counted]) -> dict[str, Any]:
    """Of each outcome that came: what was counted, with its interval; `correct` is the labelled accuracy."""
    by_device: dict[str, Labels] = defaultdict(Labels)
    for part in parts:
        for device, labels in part.labels.items():
            by_device[device].add(labels.outcomes, b"")
    names = sorted({name for labels in by_device.values() for name in labels.outcomes})
    out = {}
    for name in names:
        pairs = np.array([labels.outcomes.get(name, (0, 0)) for labels in by_device.values()], np.int64)
        out[name] = rate(pairs[:, 0], pairs[:, 1])._asdict()
    return {"labelled": out.pop(CORRECT, None), "outcomes": out}


# Reading.


def _confidences(
    connection: sa.Connection, since: int, variants: Mapping[tuple[str, str], Variant]
) -> Iterable[tuple[Part, Cells]]:
    r = telemetry.rollups.c
    columns = (r.digest, r.variant, r.cohort, r.context, r.edge_hash, r.cells)
    where = (r.tier_s == 3600, r.t0_ms >= since - since % HOUR_MS, r.phase != "shadow")
    for row in connection.execute(sa.select(*columns).where(*where)):
        known = variants.get((row.digest, row.variant))
        found = known.confidence(row.edge_hash, cells_of(row.cells)) if known else None
        if found is not None:
            yield Part(row.digest, row.variant, row.cohort, row.context), found


def _reported(
    connection: sa.Connection, since: int, variants: Mapping[tuple[str, str], Variant], fleets: Mapping[str, str]
) -> Iterable[tuple[Part, Cells]]:
    """As `_confidences`, from the reports of the devices that `fleets` names."""
    w = telemetry.windows.c
    columns = (w.device, w.digest, w.variant, w.context, w.edge_hash, w.cells)
    names, read = sorted(fleets), 0
    for some in (names[at : at + CHUNK] for at in range(0, len(names), CHUNK)):
        where = (w.device.in_(some), w.start_ms >= since, w.phase != "shadow", w.n_monitored > 0)
        rows = connection.execute(sa.select(*columns).where(*where).limit(REPORTS - read + 1)).all()
        read += len(rows)
        if read > REPORTS:
            raise RequestError(f"expected at most {REPORTS} reports of chosen devices; choose fewer, or fewer hours")
        for row in rows:
            known = variants.get((row.digest, row.variant))
            found = known.confidence(row.edge_hash, unpack(row.cells)) if known else None
            if found is not None:
                yield Part(row.digest, row.variant, fleets[row.device], row.context), found


def _shares(
    connection: sa.Connection, since: int, variants: Mapping[tuple[str, str], Variant], fleets: Mapping[str, str]
) -> Iterable[tuple[Part, str, int]]:
    h = telemetry.device_hours.c
    where = (h.t0_ms >= since - since % HOUR_MS, h.phase != "shadow")
    query = sa.select(h.device, h.digest, h.variant, h.context, sa.func.sum(h.n_monitored)).where(*where)
    for device, digest, variant, context, n in connection.execute(
        query.group_by(h.device, h.digest, h.variant, h.context)
    ):
        if (digest, variant) in variants and device in fleets:
            yield Part(digest, variant, fleets[device], context), device, int(n)


def _moved(connection: sa.Connection, fleets: Mapping[str, str]) -> dict[Part, set[str]]:
    """Parts (input, embedding, output) of streams that are in alarm now: there the expectation may be worth little."""
    d = control.drift.c
    out: dict[Part, set[str]] = defaultdict(set)
    columns = (d.scope, d.subject, d.digest, d.variant, d.context, d.part)
    for row in connection.execute(sa.select(*columns).where(d.verdict == "alarm")):
        cohort = row.subject if row.scope == "cohort" else fleets.get(row.subject, "")
        out[Part(row.digest, row.variant, cohort, row.context)].add(row.part)
    return out


def _labels(
    connection: sa.Connection, since: int, digests: set[str], fleets: Mapping[str, str]
) -> dict[tuple[Part, str], Labels]:
    out: dict[tuple[Part, str], Labels] = {}
    t = control.label_counts.c
    for row in connection.execute(sa.select(control.label_counts).where(t.day_ms >= since)):
        if row.digest in digests and row.device in fleets:
            key = (Part(row.digest, row.variant, fleets[row.device], row.context), row.device)
            out.setdefault(key, Labels()).add(row.outcomes, row.confidence)
    return out
