"""Sums of each device's hours, from the windows that were counted since it was last looked.

Not at ingest: a fleet that reports once a minute would touch each row sixty times. Guarantee: a window is in its hour
exactly once, because the cursor moves in the transaction that adds it; late ones are added to their hour like others.
Retention keeps the windows that are not added yet. Cost: about 20 µs a window.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from edgewright_contracts.binning import GRID_CELLS, Cells, pack_grid, unpack_grid
from edgewright_contracts.unpacking import ragged

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
    columns = (w.id, w.device, w.start_ms, w.digest, w.variant, w.context, w.phase, w.latency_total)
    with engine.begin() as connection:
        since = connection.execute(sa.select(c.position).where(c.name == CURSOR)).scalar() or 0
        some = sa.select(*columns, *(w[name] for name in SUMMED[1:])).where(w.id > since).order_by(w.id).limit(BATCH)
        rows = connection.execute(some).all()
        if rows:
            _add(connection, rows)
            upsert(connection, telemetry.cursors, [{"name": CURSOR, "position": rows[-1].id}], keys=["name"])
    return len(rows) == BATCH


def _add(connection: sa.Connection, rows: Any) -> None:
    number: dict[tuple[Any, ...], int] = {}
    group = np.empty(len(rows), np.intp)
    for i, row in enumerate(rows):
        key = (row.device, row.start_ms - row.start_ms % HOUR_MS, row.digest, row.variant, row.context, row.phase)
        group[i] = number.setdefault(key, len(number))
    sums: Cells = np.zeros((len(number), len(SUMMED)), np.int64)
    np.add.at(sums, group, np.array([(1, *row[len(KEY) + 2 :]) for row in rows], np.int64))
    grid = grids(ragged([row.latency_total for row in rows]), np.array([row.n for row in rows]))
    flat = group[grid.owner] * GRID_CELLS + grid.cell
    latency = np.bincount(flat, weights=grid.times, minlength=len(number) * GRID_CELLS).astype(np.int64)
    latency = latency.reshape(-1, GRID_CELLS)
    h = telemetry.device_hours.c
    before = sa.select(telemetry.device_hours).where(
        h.device.in_(sorted({key[0] for key in number})), h.t0_ms.in_(sorted({key[1] for key in number}))
    )
    for row in connection.execute(before).mappings():
        at = number.get(tuple(row[name] for name in KEY))
        if at is not None:
            sums[at] += [row[name] for name in SUMMED]
            latency[at] += unpack_grid(row["latency_total"])
    changed = [(*key, *sums[at].tolist(), pack_grid(latency[at])) for key, at in sorted(number.items())]
    fill(connection, telemetry.device_hours, (*KEY, *SUMMED, "latency_total"), changed, keys=KEY)
