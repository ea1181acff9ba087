"""Histograms of rollups as bytes: they are written again at every batch, so nothing is compressed.

`cells` are little-endian int64. `latency` is the same, of the part of the grid that is not empty, behind two bytes that
say where it begins. (Windows and device-hours are written once and keep the varints of the wire.)
"""

from __future__ import annotations

import struct

import numpy as np

from edgewright_contracts.binning import GRID_CELLS, Cells


def cells_bytes(cells: Cells | None) -> bytes:
    return b"" if cells is None else cells.astype("<i8").tobytes()


def cells_of(data: bytes) -> Cells | None:
    """int64[n]; None of nothing, which is all zeros of a width that nobody named."""
    return np.frombuffer(data, "<i8").astype(np.int64) if data else None


def latency_bytes(counts: Cells) -> bytes:
    filled = np.flatnonzero(counts)
    if not filled.size:
        return b""
    first, last = int(filled[0]), int(filled[-1])
    return struct.pack("<H", first) + counts[first : last + 1].astype("<i8").tobytes()


def latency_of(data: bytes) -> Cells:
    """int64[GRID_CELLS]."""
    out: Cells = np.zeros(GRID_CELLS, np.int64)
    if data:
        (first,) = struct.unpack_from("<H", data)
        filled = np.frombuffer(data, "<i8", offset=2)
        out[first : first + filled.size] = filled
    return out
