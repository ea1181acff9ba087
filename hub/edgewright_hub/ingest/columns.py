"""The packed columns of all windows of a batch, unpacked and checked at once. Pure.

A window that is checked alone costs some 60 µs, most of it numpy being called for a few hundred bytes; here a batch
makes one array of each kind of column. Guarantee: what `unpacked` accepts is what `Window.__post_init__` accepts, so a
batch with anything wrong in it is checked again window by window, to find out whose it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from edgewright_contracts.binning import GRID_CELLS, Cells
from edgewright_contracts.codec import Hex64
from edgewright_contracts.codec import Sequence as Number
from edgewright_contracts.errors import ContractError
from edgewright_contracts.report import CONFIDENCE_BINS, MAX_CELLS, VERSION, Window
from edgewright_contracts.unpacking import Index, Ragged, ragged


class Unchecked(Window, array_like=True, frozen=True, kw_only=True, gc=False):
    """A window whose fields are in range one by one, and which nobody has looked at as a whole."""

    def __post_init__(self) -> None:
        pass

    def check(self) -> None:
        """Raises ContractError."""
        Window.__post_init__(self)


class UncheckedReport(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)]
    spool_id: Hex64
    seq: Number
    window: Unchecked


class Grids(NamedTuple):
    """Counts of many sparse grids: which one, which cell of it, how many times."""

    owner: Index
    cell: Cells
    times: Cells


@dataclass(frozen=True, slots=True)
class Columns:
    cells: Ragged  # a row for each window
    totals: Cells  # of all cells of each window
    latency: Grids  # of `latency_total`; the owner is the window's place in the batch

    def cells_of(self, row: int) -> tuple[int, int]:
        """How many cells a window has, and their sum."""
        starts = self.cells.starts
        return int(starts[row + 1] - starts[row]), int(self.totals[row])


def unpacked(windows: Sequence[Window]) -> Columns:
    """Raises ContractError, without saying whose fault it is, when any window is not in order."""
    for w in windows:
        if w.mono_end_ms < w.mono_start_ms or w.n_monitored > w.n or (w.errors and w.error_count > w.n):
            raise ContractError("window", "counts and times that agree", "others")
    n = np.fromiter((w.n for w in windows), np.int64, len(windows))
    others = [
        (i, data) for i, w in enumerate(windows) for data in (w.latency_queue, w.latency_run, w.input_age) if data
    ]
    grids(ragged([data for _, data in others]), n[np.fromiter((i for i, _ in others), np.intp, len(others))])
    latency = grids(ragged([w.latency_total for w in windows]), n)
    cells = ragged([w.cells for w in windows])
    if int(np.diff(cells.starts).max(initial=0)) > MAX_CELLS:
        raise ContractError("cells", f"at most {MAX_CELLS} cells", "more")
    bins = ragged([w.correct_by_confidence for w in windows if w.correct_by_confidence])
    if bins.values.size:
        if (np.diff(bins.starts) != 2 * CONFIDENCE_BINS).any():
            raise ContractError("correct_by_confidence", f"{2 * CONFIDENCE_BINS} cells", "another number")
        table = bins.values.reshape(-1, 2, CONFIDENCE_BINS)
        if (table[:, 1] > table[:, 0]).any():
            raise ContractError("correct_by_confidence", "hits of at most n in each bin", "more")
    sums = np.concatenate(([0], np.cumsum(cells.values)))  # may turn over; the differences are right all the same
    return Columns(cells, np.diff(sums[cells.starts]), latency)


def grids(rows: Ragged, most: Cells) -> Grids:
    """`binning.unpack_grid` of each row, which holds at most `most` in all. Raises ContractError."""
    if (np.diff(rows.starts) % 2).any():
        raise ContractError("latency", "pairs of gap and count", "an odd number")
    pairs = np.diff(rows.starts) // 2
    owner = np.repeat(np.arange(pairs.size), pairs)
    reached = np.cumsum(rows.values[0::2] + 1)
    before = np.concatenate(([0], reached))[rows.starts[:-1] // 2]
    cell = reached - before[owner] - 1
    count = rows.values[1::2]
    if count.size:
        if int(pairs.max()) > GRID_CELLS or int(cell.max()) >= GRID_CELLS:
            raise ContractError("latency", f"cells below {GRID_CELLS}", "others")
        if not count.all():
            raise ContractError("latency", "filled cells only", "a count of 0")
        if (np.bincount(owner, weights=count, minlength=pairs.size) > most).any():
            raise ContractError("latency", "at most n durations", "more")
    return Grids(owner, cell, count)
