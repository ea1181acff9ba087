"""Counting that merges exactly: integer cells, one universal log grid for durations, and their bytes.

Guarantee: two histograms made anywhere, at any time, add cell by cell, in any order, with nothing rounded.

Varints are LEB128 (7 bits a byte, low bits first), as in DWARF and protobuf; a cell is at most 2**40.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .codec import MAX_COUNT
from .errors import ContractError

Cells = npt.NDArray[np.int64]

_VARINT_BYTES: Final = 6  # 2**40 needs 41 bits

GRID_GROWTH: Final = 1.05
GRID_CELLS: Final = 401
# Lower edges in whole nanoseconds, so that every machine bins alike: cell i holds [edge[i], edge[i+1]), from 1 µs
# (cell 0 also takes what is shorter) to 300 s (the last cell also takes what is longer).
GRID_EDGES_NS: Final[npt.NDArray[np.int64]] = np.array(
    [round(1000 * GRID_GROWTH**i) for i in range(GRID_CELLS)], dtype=np.int64
)


def pack(cells: npt.ArrayLike, *, field: str = "cells") -> bytes:
    """LEB128 of non-negative integers. Raises ContractError for a cell outside [0, 2**40]."""
    a = np.asarray(cells, dtype=np.int64).ravel()
    if a.size == 0:
        return b""
    low, high = int(a.min()), int(a.max())
    if low < 0 or high > MAX_COUNT:
        raise ContractError(field, f"integers in [0, {MAX_COUNT}]", f"{low if low < 0 else high}")
    if high < 128:
        return a.astype(np.uint8).tobytes()
    out = bytearray()
    for x in a.tolist():
        while x > 127:
            out.append(x & 127 | 128)
            x >>= 7
        out.append(x)
    return bytes(out)


def unpack(data: bytes, *, field: str = "cells", count: int | None = None) -> Cells:
    """The integers of `pack`, int64[n]. Raises ContractError unless all are in [0, 2**40] and, if given, n = count."""
    u = np.frombuffer(data, np.uint8)
    if u.size == 0:
        cells: Cells = np.zeros(0, np.int64)
    elif not (u & 128).any():
        cells = u.astype(np.int64)
    else:
        end = np.flatnonzero(u < 128)
        if end.size == 0 or end[-1] != u.size - 1:
            raise ContractError(field, "whole varints", "a truncated varint at the end")
        start = np.concatenate(([0], end[:-1] + 1))
        length = end - start + 1
        if int(length.max()) > _VARINT_BYTES:
            raise ContractError(field, f"varints of at most {_VARINT_BYTES} bytes", f"one of {int(length.max())}")
        shift = 7 * (np.arange(u.size) - np.repeat(start, length))
        cells = np.add.reduceat((u & 127).astype(np.int64) << shift, start)
        if bool(((u[end] == 0) & (length > 1)).any()):
            raise ContractError(field, "varints in their shortest form", "one padded with zeros")
        if int(cells.max()) > MAX_COUNT:
            raise ContractError(field, f"cells of at most {MAX_COUNT}", str(int(cells.max())))
    if count is not None and cells.size != count:
        raise ContractError(field, f"{count} cells", f"{cells.size}")
    return cells


def add(a: bytes, b: bytes, *, field: str = "cells") -> bytes:
    """Cell-wise sum of two packed arrays; an empty one is all zeros. Raises ContractError when the lengths differ."""
    if not a or not b:
        return a or b
    left, right = unpack(a, field=field), unpack(b, field=field)
    if left.size != right.size:
        raise ContractError(field, f"{left.size} cells", f"{right.size}")
    return pack(left + right, field=field)


def grid_index(duration_ns: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Cell of each duration on the log grid, clipped to its ends."""
    index = np.searchsorted(GRID_EDGES_NS, np.asarray(duration_ns, np.int64), "right") - 1
    return np.clip(index, 0, GRID_CELLS - 1)


def pack_grid(counts: Cells) -> bytes:
    """Sparse grid counts: varints gap, count, gap, count …; a gap is the number of empty cells skipped."""
    filled = np.flatnonzero(counts)
    if filled.size == 0:
        return b""
    gaps = np.diff(filled, prepend=-1) - 1
    return pack(np.column_stack((gaps, counts[filled])))


def unpack_grid(data: bytes, *, field: str = "latency") -> Cells:
    """Dense int64[GRID_CELLS] of `pack_grid`. Raises ContractError."""
    out: Cells = np.zeros(GRID_CELLS, np.int64)
    pairs = unpack(data, field=field)
    if pairs.size % 2:
        raise ContractError(field, "pairs of gap and count", f"{pairs.size} numbers")
    if pairs.size == 0:
        return out
    if pairs.size > 2 * GRID_CELLS:
        raise ContractError(field, f"at most {GRID_CELLS} filled cells", f"{pairs.size // 2}")
    index = np.cumsum(pairs[0::2] + 1) - 1
    if int(index[-1]) >= GRID_CELLS:
        raise ContractError(field, f"cells below {GRID_CELLS}", str(int(index[-1])))
    if not pairs[1::2].all():
        raise ContractError(field, "filled cells only", "a count of 0")
    out[index] = pairs[1::2]
    return out


def add_grid(a: bytes, b: bytes, *, field: str = "latency") -> bytes:
    if not a or not b:
        return a or b
    return pack_grid(unpack_grid(a, field=field) + unpack_grid(b, field=field))


def grid_quantile_ns(counts: Cells, q: float) -> float | None:
    """The q-quantile of the counted durations in nanoseconds, within half a cell (2.5 %); None of nothing."""
    total = int(counts.sum())
    if total == 0:
        return None
    rank = min(total - 1, int(q * total))
    cell = int(np.searchsorted(np.cumsum(counts), rank, "right"))
    return float(GRID_EDGES_NS[cell] * GRID_GROWTH**0.5)


def quantile_edges(values: npt.NDArray[np.floating], bins: int = 10) -> tuple[float, ...]:
    """Strictly increasing float32 edges at the quantiles of the finite `values`, duplicates removed: 2..bins+1 of them.

    Each edge lies midway between the value at its quantile and the next smaller one that occurs (the first and the last
    just as far outside), so that a value that another CPU rounds differently stays in its cell: means of pixels are
    multiples of 1/n, and an edge on one of them would move a tenth of all counts by half a bit.

    Raises ContractError when fewer than two distinct finite values exist: such a channel can count nothing.
    """
    with np.errstate(over="ignore"):
        finite = np.asarray(values, np.float32)
    finite = finite[np.isfinite(finite)] + np.float32(0)  # -0.0 becomes 0.0: they are one edge and need one hash
    if finite.size == 0:
        raise ContractError("values", "finite values to cut into quantiles", "none")
    distinct = np.unique(finite)
    if distinct.size < 2:
        raise ContractError("values", "at least two distinct values", f"only {float(distinct[0])!r}")
    at = np.searchsorted(distinct, np.quantile(finite, np.linspace(0, 1, bins + 1), method="lower"))
    gaps = np.diff(distinct.astype(np.float64)) / 2
    wide = distinct.astype(np.float64)[np.unique(at)]
    wide -= gaps[np.maximum(np.unique(at) - 1, 0)]
    wide[-1] = float(distinct[-1]) + gaps[-1]
    with np.errstate(over="ignore"):
        edges = np.clip(wide, np.finfo(np.float32).min, np.finfo(np.float32).max).astype(np.float32)
    return tuple(float(e) for e in np.unique(edges + np.float32(0)))  # -0.0 becomes 0.0


def offsets(sizes: Sequence[int]) -> list[int]:
    """Start of each block in a row of blocks, and the total behind the last."""
    return [0, *np.cumsum(np.asarray(sizes, np.int64)).tolist()]
