"""Raw numbers to what a net likes: centred, scaled, channels where torch's convolutions want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError

Channels = Literal["as they are", "new", "last"]
Numbers = float | Sequence[float] | npt.NDArray[np.floating]


class Normalise(nn.Module):
    """(x - mean) / deviation as float32; one number for all, or one for each entry of the last axis.

    `channels`: "new" puts an axis behind the batch ([n, h, w] → [n, 1, h, w]), "last" moves the last axis there
    ([n, h, w, c] → [n, c, h, w], [n, t, c] → [n, c, t]). Two operators, and one for the channels.
    """

    def __init__(self, mean: Numbers = 0.0, deviation: Numbers = 1.0, *, channels: Channels = "as they are") -> None:
        super().__init__()
        spread = np.asarray(deviation, np.float64)
        if not (np.isfinite(spread) & (spread > 0)).all():
            raise RequestError(f"expected deviations above 0, got {deviation}")
        if channels == "new" and (np.ndim(mean) or np.ndim(deviation)):
            raise RequestError("a new axis of channels has one channel: expected one mean and one deviation")
        self.channels = channels
        self.mean, self.factor = _constant(mean), _constant(1 / spread)

    def forward(self, x: Tensor) -> Tensor:
        # Axes move first: the monitor moves them too, and an exporter then does it once for both.
        x = x.to(torch.float32)
        rest = 0
        if self.channels == "new":
            x = x.unsqueeze(1)
        elif self.channels == "last":
            x, rest = x.movedim(-1, 1), x.dim() - 2
        if not isinstance(self.mean, float):
            x = x - self.mean.reshape(-1, *[1] * rest)
        elif self.mean != 0:
            x = x - self.mean
        if not isinstance(self.factor, float):
            return x * self.factor.reshape(-1, *[1] * rest)
        return x if self.factor == 1 else x * self.factor


def _constant(value: Numbers) -> float | nn.Buffer:
    """A number in the graph is cheaper than a tensor."""
    numbers = np.asarray(value, np.float64)
    return float(numbers) if numbers.ndim == 0 else nn.Buffer(torch.from_numpy(numbers).to(torch.float32))
