"""Reports and latencies in one call, as tests want them: a device frames bytes that it keeps, and counts as it goes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from edgewright_contracts.binning import GRID_CELLS, Cells, grid_index
from edgewright_contracts.codec import REPORT_BYTES, encode
from edgewright_contracts.packing import pack
from edgewright_contracts.report import Report


def encode_report(report: Report, *, compress: bool = False) -> bytes:
    """As it goes over the wire. Raises ContractError for values outside their ranges."""
    raw = encode(report, name="report", limit=REPORT_BYTES, wire="msgpack")
    return pack(raw) if compress else raw


def grid_counts(durations_ns: Iterable[int] | npt.NDArray[np.int64]) -> Cells:
    """int64[GRID_CELLS] counts of durations in nanoseconds."""
    ns = durations_ns if isinstance(durations_ns, np.ndarray) else np.fromiter(durations_ns, np.int64)
    return np.bincount(grid_index(ns), minlength=GRID_CELLS).astype(np.int64)
