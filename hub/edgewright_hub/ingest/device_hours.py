"""Sums of each device's hours, from the windows that were counted since it was last looked.

Not at ingest: a fleet that reports once a minute would touch each row sixty times. Guarantee: a window is in its hour
exactly once, because the cursor moves in the transaction that adds it; late ones are added to their hour like others.
Retention keeps the windows that are not added yet. Cells of packed columns stop at 2**40, the most that they can hold,
sums at 2**53.
Cost: about 20 µs a window, 50 where each of a transaction is of another hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.binning import GRID_CELLS, Cells, pack, pack_grid
from edgewright_contracts.codec import MAX_COUNT, MAX_SUM
from edgewright_contracts.report import CONFIDENCE_BINS
from edgewright_contracts.unpacking import Index, ragged

from ..storage import telemetry
from ..storage.store import fill, upsert
from .columns import grids

CURSOR: Final = "device_hours"
EVERY_S: Final = 60.0
BATCH: Final = 2000  # windows of one transaction
HOUR_MS: Final = 3600_000
KEY: Final = ("device", "t0_ms", "digest", "variant", "context", "phase")
SUMMED: Final = (
    "windows", "n", "n_monitored", "errors", "rejected", "labels_n", "labels_wrong", "repeated", "shadow_n",
    "shadow_agree",
)  # fmt: skip


def tick(engine: sa.Engine) -> bool:
    """Add at most `BATCH` windows. True while there may be more: call it again."""
    w, c = telemetry.windows.c, telemetry.cursors.c
    columns = (
        w.id, w.device, w.start_ms, w.digest, w.variant, w.context, w.phase, w.latency_total, w.outcomes, w.confidence,
    )  # fmt: skip
    with engine.begin() as connection:
        since = connection.execute(sa.select(c.position).where(c.name == CURSOR)).scalar() or 0
        some = sa.select(*columns, *(w[name] for name in SUMMED[1:])).where(w.id > since).order_by(w.id).limit(BATCH)
        rows = connection.execute(some).all()
        if rows:
            _add(connection, rows)
            upsert(connection, telemetry.cursors, [{"name": CURSOR, "position": rows[-1].id}], keys=["name"])
    return len(rows) == BATCH


def _add(connection: sa.Connection, rows: Sequence[Any]) -> None:
    number: dict[tuple[Any, ...], int] = {}
    group: Index = np.empty(len(rows), np.intp)
    for i, row in enumerate(rows):
        key = (row.device, row.start_ms - row.start_ms % HOUR_MS, row.digest, row.variant, row.context, row.phase)
        group[i] = number.setdefault(key, len(number))
    sums: Cells = np.zeros((len(number), len(SUMMED)), np.int64)
    np.add.at(sums, group, np.array([(1, *row[-len(SUMMED) + 1 :]) for row in rows], np.int64))
    h = telemetry.device_hours.c
    before = sa.select(telemetry.device_hours).where(
        h.device.in_(sorted({key[0] for key in number})), h.t0_ms.in_(sorted({key[1] for key in number}))
    )
    hours = [row for row in connection.execute(before) if row[: len(KEY)] in number]
    place = np.array([number[row[: len(KEY)]] for row in hours], np.intp)
    if hours:
        known = np.array([row[len(KEY) : len(KEY) + len(SUMMED)] for row in hours], np.int64)
        np.add.at(sums, place, known)
    np.minimum(sums, MAX_SUM, out=sums)
    rows, group = [*rows, *hours], np.concatenate((group, place))
    latency = _latency(rows, group, len(number))
    confidence, outcomes = _confidence(rows, group, len(number)), _outcomes(rows, group, len(number))
    np.minimum(latency, MAX_COUNT, out=latency)
    np.minimum(confidence, MAX_COUNT, out=confidence)
    labelled = confidence.sum(axis=1)
    changed = [
        (
            *key, *sums[at].tolist(), pack_grid(latency[at]), msgspec.json.encode(outcomes[at]).decode(),
            pack(confidence[at]) if labelled[at] else b"",
        )
        for key, at in sorted(number.items())
    ]  # fmt: skip
    fill(
        connection, telemetry.device_hours, (*KEY, *SUMMED, "latency_total", "outcomes", "confidence"), changed,
        keys=KEY,
    )  # fmt: skip


def _latency(rows: Sequence[Any], group: Index, groups: int) -> Cells:
    """int64[groups, GRID_CELLS]."""
    grid = grids(ragged([row.latency_total for row in rows]), np.full(len(rows), np.iinfo(np.int64).max))
    cell = group[grid.owner] * GRID_CELLS + grid.cell
    times = np.bincount(cell, weights=grid.times, minlength=groups * GRID_CELLS)
    return times.astype(np.int64).reshape(-1, GRID_CELLS)


def _confidence(rows: Sequence[Any], group: Index, groups: int) -> Cells:
    """int64[groups, 20]: n of each tenth, then hits."""
    out: Cells = np.zeros((groups, 2 * CONFIDENCE_BINS), np.int64)
    if some := [i for i, row in enumerate(rows) if row.confidence]:
        bins = ragged([rows[i].confidence for i in some]).values
        np.add.at(out, group[some], bins.reshape(len(some), -1))
    return out


def _outcomes(rows: Sequence[Any], group: Index, groups: int) -> list[dict[str, tuple[int, int]]]:
    out: list[dict[str, tuple[int, int]]] = [{} for _ in range(groups)]
    for at, row in zip(group.tolist(), rows, strict=True):
        for name, (n, hits) in row.outcomes.items():
            before = out[at].get(name, (0, 0))
            out[at][name] = before[0] + n, before[1] + hits
    return out
