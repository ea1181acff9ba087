"""What stands between raw rows and a net of one's own, by kind of sample; exported with the net, so that a device hands
over what its sensor gives. Channels come first, as torch's convolutions want them.

    image   [n, h, w] or [n, h, w, c]  →  [n, c, h, w], each colour less its training mean, over its deviation
    audio   [n, samples] int16         →  [n, 1, samples], full scale is 1
    series  [n, steps, c]              →  [n, c, steps], each channel standardised by training rows
    vector  [n, c]                     →  [n, c], likewise
    tokens  [n, length]                →  the same
    text    [n, length] uint8          →  nobody knows: hashed in a front of one's own, or split into words on the host
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError

from ..data.collection import RawKind
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
        return Standardised(np.zeros(1), np.full(1, _FULL_SCALE), lift=True, last=False)
    lift = kind == "image" and rows.ndim == 3
    mean, deviation = _moments(rows[..., None] if lift else rows)
    return Standardised(mean, deviation, lift=lift, last=not lift and rows.ndim > 2)


class Standardised(nn.Module):
    """(x - mean) / deviation for each channel. `lift` puts a channel axis in, `last` takes it from the end."""

    means: Tensor
    scales: Tensor

    def __init__(
        self, mean: npt.NDArray[np.float64], deviation: npt.NDArray[np.float64], *, lift: bool, last: bool
    ) -> None:
        super().__init__()
        self.lift, self.last = lift, last
        self.single = mean.size == 1  # a number in the graph is cheaper than a tensor
        self.mean, self.scale = float(mean[0]), float(1 / deviation[0])
        if not self.single:
            self.register_buffer("means", torch.tensor(mean, dtype=torch.float32))
            self.register_buffer("scales", torch.tensor(1 / deviation, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        x = (x - self.mean) * self.scale if self.single else (x - self.means) * self.scales
        if self.lift:
            return x.unsqueeze(1)
        return x.movedim(-1, 1) if self.last else x


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
