"""Sums over a cohort in tiers of time: where a window belongs, and how a batch of them is added. Pure.

Windows of synced or free-running clocks are placed at their own start; those without a clock at arrival, and those that
say a time of more than a year ago, which no sum is kept of. A window belongs whole to the bucket of its start, in the
tiers that are at least as wide as it; the widest tier takes everything. A cohort is the fleet of the device. Sums are
exact in any order, and stop at 2**53: what one device says keeps no window of another out.

Cost: one pass of numpy over a batch, and one addition for each rollup that it touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgewright_contracts import report
from edgewright_contracts.binning import GRID_CELLS, Cells
from edgewright_contracts.codec import MAX_SUM
from edgewright_contracts.errors import ContractError

from ..storage.histograms import cells_bytes, cells_of, latency_bytes, latency_of
from .columns import Columns

TIERS_S: Final = (60, 300, 3600)
AHEAD_MS: Final = 5 * 60_000  # a device's clock may be this much ahead of ours before we stop believing it
BEHIND_MS: Final = 365 * 86_400_000  # and behind: it was never set (1970), or its battery is empty

# tier_s, t0_ms, cohort, digest, variant, context, edge_hash, phase
RollupKey = tuple[int, int, str, str, str, str, str, str]
ROLLUP_KEY: Final = ("tier_s", "t0_ms", "cohort", "digest", "variant", "context", "edge_hash", "phase")
SUMMED: Final = ("windows", "n", "n_monitored", "errors", "rejected", "labels_n", "labels_wrong")


def believed(wall_ms: int, arrived_ms: int) -> bool:
    """Whether a device's clock may have said this of what arrived then."""
    return arrived_ms - BEHIND_MS <= wall_ms <= arrived_ms + AHEAD_MS


def placed(window: report.Window, arrived_ms: int) -> tuple[int, Literal["wall", "arrival", "future"]]:
    """(start in UTC milliseconds, whose clock says so); "future" is a start that no right clock can have given.

    A window that would end later than now started at another time than it says, or holds several boots: arrival. So
    is one of a clock that was never set.
    """
    length = window.mono_end_ms - window.mono_start_ms
    wall = window.wall_start_ms
    if wall is not None and window.clock != "unknown":
        if wall > arrived_ms + AHEAD_MS:
            return wall, "future"
        if believed(wall, arrived_ms) and believed(wall + length, arrived_ms):
            return wall, "wall"
    return max(0, arrived_ms - length), "arrival"


class Placed(NamedTuple):
    """A window that is counted: where, and what of it is summed besides its columns."""

    row: int  # in the columns of its batch
    start_ms: int
    cohort: str
    window: report.Window
    sums: tuple[int, ...]  # SUMMED


@dataclass(slots=True)
class Rollup:
    """One row of rollups, while a batch adds to it."""

    sums: Cells
    cells: Cells | None  # None: all zeros, of a width that nobody has named yet
    latency: Cells

    @classmethod
    def of(cls, row: Any) -> Rollup:
        sums = np.array([row[name] for name in SUMMED], np.int64)
        return cls(sums, cells_of(row["cells"]), latency_of(row["latency_total"]))

    def __add__(self, other: Rollup) -> Rollup:
        """Raises ContractError when the widths differ."""
        if self.cells is not None and other.cells is not None and self.cells.size != other.cells.size:
            said = f"{self.cells.size} cells, as under this edge hash before"
            raise ContractError("cells", said, f"{other.cells.size}")
        cells = self.cells if other.cells is None else other.cells if self.cells is None else self.cells + other.cells
        sums, latency = self.sums + other.sums, self.latency + other.latency
        for counts in (sums, latency, cells):
            if counts is not None:
                np.minimum(counts, MAX_SUM, out=counts)
        return Rollup(sums, cells, latency)

    def row(self, key: RollupKey) -> tuple[Any, ...]:
        return (*key, *self.sums.tolist(), latency_bytes(self.latency), cells_bytes(self.cells))


def added(
    rollups: dict[RollupKey, Rollup], placed: Sequence[Placed], columns: Columns
) -> tuple[set[RollupKey], list[tuple[Placed, str]]]:
    """Add the windows; which rollups changed, and the windows that fit none, with the reason.

    A window is added to all of its tiers or to none.
    """
    changed: set[RollupKey] = set()
    unfit: list[tuple[Placed, str]] = []
    todo = list(_parts(placed, columns))
    for some, part in todo:
        try:
            new = {key: rollups[key] + part if key in rollups else part for key in keys_of(some[0])}
        except ContractError as error:
            if len(some) > 1:  # one of them does not fit; the others may
                todo += (one for single in some for one in _parts([single], columns))
            else:
                unfit.append((some[0], str(error)))
        else:
            rollups.update(new)
            changed.update(new)
    return changed, unfit


def keys_of(one: Placed) -> list[RollupKey]:
    w = one.window
    ends = (one.cohort, w.digest, w.variant, w.context, w.edge_hash, w.phase)
    return [(tier_s, one.start_ms - one.start_ms % (tier_s * 1000), *ends) for tier_s in _fitting(w)]


def _fitting(window: report.Window) -> tuple[int, ...]:
    length_ms = window.mono_end_ms - window.mono_start_ms
    return tuple(t for t in TIERS_S if length_ms <= t * 1000) or TIERS_S[-1:]


def _parts(placed: Sequence[Placed], columns: Columns) -> Iterator[tuple[list[Placed], Rollup]]:
    """The windows that go into the same buckets and are of one width, and their sum, in the order of arrival."""
    if not placed:
        return
    starts = columns.cells.starts
    width = np.diff(starts)
    number: dict[tuple[Any, ...], int] = {}
    members: list[list[Placed]] = []
    group = np.empty(len(placed), np.intp)
    for i, one in enumerate(placed):
        w = one.window
        minute = one.start_ms - one.start_ms % 60_000
        key = (minute, one.cohort, w.digest, w.variant, w.context, w.edge_hash, w.phase, _fitting(w), width[one.row])
        at = number.setdefault(key, len(members))
        if at == len(members):
            members.append([])
        members[at].append(one)
        group[i] = at
    rows = np.fromiter((one.row for one in placed), np.intp, len(placed))
    sums: Cells = np.zeros((len(members), len(SUMMED)), np.int64)
    np.add.at(sums, group, np.array([one.sums for one in placed], np.int64))
    latency = _latency(group, rows, len(members), columns)
    for at, some in enumerate(members):
        of = rows[group == at]
        one_width = int(width[of[0]])
        cells = columns.cells.values[starts[of][:, None] + np.arange(one_width)].sum(0) if one_width else None
        yield some, Rollup(sums[at], cells, latency[at])


def _latency(group: npt.NDArray[np.intp], rows: npt.NDArray[np.intp], number: int, columns: Columns) -> Cells:
    """int64[number, GRID_CELLS]. Exact: sums of a batch stay far below 2**53."""
    grid = columns.latency
    where = np.full(columns.cells.starts.size - 1, -1, np.intp)  # of each window of the batch: its group
    where[rows] = group
    of = where[grid.owner]
    kept = of >= 0  # others were counted before, or refused
    flat = np.bincount(of[kept] * GRID_CELLS + grid.cell[kept], weights=grid.times[kept], minlength=number * GRID_CELLS)
    return flat.astype(np.int64).reshape(number, GRID_CELLS)
