"""How many rows the blocks of a group hold, so that no device is louder than the others. Arrays, pure.

What a device's windows differ by grows in X² with their rows. One with a thousand times those of the others made the
dispersion of all its own, and theirs could move unseen. So a block with more than `LARGE` times the rows of the usual
one is judged as if it held as many as that, and is no example of how the blocks of others vary.

The usual block of a time scale is that of the device in the middle, devices weighted by how long they ran, in blocks of
that scale, at the shortest of an hour: so few very large ones do not matter, nor many that are hardly ever used.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from .measures import Floats
from .streams import Index, Streams

LARGE: Final = 4.0


def means(s: Streams, scale: int, least: int) -> Floats:
    """float64[devices]: rows of a device's mean block at that scale; before its first one, what is open, `least` at
    least; 0 where nothing came."""
    used = len(s.devices)
    blocks, rows = s.sizes[:used, scale].T
    begun = s.n[:used, : scale + 1].sum(1)
    begun = np.where(begun > 0, np.maximum(begun, least), 0)
    return np.where(blocks > 0, rows / np.maximum(blocks, 1), begun)


def usual(s: Streams, scale: int, least: int) -> float:
    """Rows of the usual block. Something must have come of one device."""
    mean = means(s, scale, least)
    weight = np.where(mean > 0, np.maximum(s.sizes[: mean.size, max(scale, 1), 0], 1), 0)
    order = np.argsort(mean)
    reached = np.cumsum(weight[order])
    return float(mean[order[np.searchsorted(reached, reached[-1] / 2)]])


def of_devices(at: Index, s: Streams, scale: int, least: int) -> Floats:
    """The part that counts of what these devices collected over more than one block."""
    return parts(means(s, scale, least)[at], s, scale, least)


def parts(rows: Floats, s: Streams, scale: int, least: int) -> Floats:
    """The part of each block of so many rows that counts: 1, unless it is large."""
    if rows.max(initial=0) <= LARGE * least:  # no block is smaller than that
        return np.ones(rows.size)
    most = usual(s, scale, least)
    return np.where(rows > LARGE * most, most / np.maximum(rows, 1), 1.0)
