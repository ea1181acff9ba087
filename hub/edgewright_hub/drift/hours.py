"""Which hours of the day were seen: 24 bits, the lowest for the hour after midnight UTC. Arrays over windows, pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from .detectors import HOUR_MS
from .streams import Ints

ALL: Final = 2**24 - 1
_ONES: Final = np.array([half.bit_count() for half in range(2**12)])


def touched(start_ms: Ints, end_ms: Ints) -> Ints:
    """The hours of the day that windows lie in; an end on the hour does not touch it."""
    first = start_ms // HOUR_MS
    many = np.minimum(_last(start_ms, end_ms, HOUR_MS) - first + 1, 24)
    run, turn = (1 << many) - 1, first % 24
    return np.asarray((run << turn | run >> (24 - turn)) & ALL)


def later(start_ms: Ints, end_ms: Ints, heard_ms: Ints, unit_ms: int) -> Ints:
    """How many hours (or days, by `unit_ms`) windows lie in after the one in which what was heard before ended."""
    before = np.maximum((heard_ms - 1) // unit_ms, start_ms // unit_ms - 1)
    return np.maximum(_last(start_ms, end_ms, unit_ms) - before, 0)


def count(bits: Ints) -> Ints:
    return np.asarray(_ONES[bits & 0xFFF] + _ONES[bits >> 12])


def _last(start_ms: Ints, end_ms: Ints, unit_ms: int) -> Ints:
    return np.maximum(start_ms, end_ms - 1) // unit_ms
