"""Sums of a cohort over a span of time, from the rollups: what it saw as a whole, whatever its size.

Each sum is exact. Only the widest tier holds every window, so a span is widened to whole hours. Cost: about 10 µs for
each rollup in it, a few hundred of a fleet in 24 hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import sqlalchemy as sa

from edgewright_contracts.binning import Cells

from .histograms import cells_of, latency_of
from .telemetry import rollups

WHOLE_S: Final = 3600  # the tier that holds every window
COUNTED: Final = ("windows", "n", "n_monitored", "errors", "rejected", "labels_n", "labels_wrong")


class Stratum(NamedTuple):
    """What is never added up: other packages, contexts or channels."""

    cohort: str
    digest: str
    variant: str
    context: str
    edge_hash: str
    phase: str


@dataclass(frozen=True, slots=True)
class Sum:
    counted: dict[str, int]  # COUNTED
    cells: Cells | None  # of all channels; None when no window had any
    latency: Cells  # int64[GRID_CELLS]


def of_span(connection: sa.Connection, since_ms: int, until_ms: int) -> dict[Stratum, Sum]:
    """Of all windows that began in the hours which [since, until) touches."""
    r = rollups.c
    first = since_ms - since_ms % (WHOLE_S * 1000)
    names = (*Stratum._fields, *COUNTED, "cells", "latency_total")
    asked = sa.select(*(r[name] for name in names)).where(r.tier_s == WHOLE_S, r.t0_ms >= first, r.t0_ms < until_ms)
    rows: dict[Stratum, list[tuple[object, ...]]] = {}
    for row in connection.execute(asked):
        rows.setdefault(Stratum(*row[: len(Stratum._fields)]), []).append(tuple(row[len(Stratum._fields) :]))
    return {stratum: _sum(some) for stratum, some in rows.items()}


def _sum(rows: list[tuple[object, ...]]) -> Sum:
    counted = np.array([row[: len(COUNTED)] for row in rows], np.int64).sum(0).tolist()
    cells = [found for row in rows if (found := cells_of(row[-2])) is not None]  # type: ignore[arg-type]
    latency: Cells = np.stack([latency_of(row[-1]) for row in rows]).sum(0)  # type: ignore[arg-type]
    total: Cells | None = np.stack(cells).sum(0) if cells else None
    return Sum(dict(zip(COUNTED, counted, strict=True)), total, latency)
