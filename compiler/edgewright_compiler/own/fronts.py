"""What stands between raw rows and a net of one's own, by kind of sample; exported with the net, so that a device hands
over what its sensor gives. Channels come first, as torch's convolutions want them.

    image   [n, h, w] or [n, h, w, c]  →  [n, c, h, w], each colour less its training mean, over its deviation
    audio   [n, samples] int16         →  [n, 1, samples], full scale is 1
    series  [n, steps, c]              →  [n, c, steps], each channel standardised by training rows
    vector  [n, c]                     →  [n, c], likewise
    tokens  [n, length]                →  the same
    text    [n, length] uint8          →  refused: hashed in a front of one's own, or made ids of words by the host
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from torch import nn

from edgewright_contracts.errors import RequestError

from ..data.collection import RawKind
from ..graph.blocks.scaling import Normalise
from ..rows import Array, Data

_BATCH: Final = 1024
_FULL_SCALE: Final = 32768.0


def front_of(kind: RawKind, data: Data) -> nn.Module:
    """The front for these rows; its constants come from the training split. Raises RequestError for text."""
    (rows,) = data.train.inputs.values()
    if kind == "text":
        raise RequestError(
            f"samples uint8 {list(rows.shape[1:])} are taken for text in UTF-8, which no net reads as it is: define "
            "front(data) that hashes it (edgewright_compiler.graph.blocks.text.HashedNgrams), or host(rows) that makes "
            "ids of words; if they are no text, give them as float32"
        )
    if kind == "tokens":
        return nn.Identity()
    if kind == "audio":
        return Normalise(0.0, _FULL_SCALE, channels="new")
    lift = kind == "image" and rows.ndim == 3
    mean, deviation = _moments(rows[..., None] if lift else rows)
    if mean.size == 1:  # a number in the graph is cheaper than a tensor
        mean, deviation = mean[0], deviation[0]
    return Normalise(mean, deviation, channels="new" if lift else "last" if rows.ndim > 2 else "as they are")


def _moments(rows: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and deviation of each last axis, in two passes in double precision; a channel that never varies has
    deviation 1."""
    width = rows.shape[-1]
    n = rows.size // width
    total = np.zeros(width)
    for start in range(0, len(rows), _BATCH):
        total += rows[start : start + _BATCH].reshape(-1, width).sum(axis=0, dtype=np.float64)
    mean = total / n
    squares = np.zeros(width)
    for start in range(0, len(rows), _BATCH):
        squares += ((rows[start : start + _BATCH].reshape(-1, width) - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(squares / n)
    return mean, np.where(deviation > 1e-12 * np.maximum(1, np.abs(mean)), deviation, 1.0)
