"""Raw numbers to what a net likes: centred, scaled, channels where torch's convolutions want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError

Channels = Literal["as they are", "new", "last"]


class Normalise(nn.Module):
    """(x - mean) / deviation as float32; numbers for all, or one for each entry of the last axis.

    `channels`: "new" puts an axis behind the batch ([n, h, w] → [n, 1, h, w]), "last" moves the last axis there
    ([n, h, w, c] → [n, c, h, w], [n, t, c] → [n, c, t]). Two operators, and one for the channels.
    """

    def __init__(
        self,
        mean: float | Sequence[float] = 0.0,
        deviation: float | Sequence[float] = 1.0,
        *,
        channels: Channels = "as they are",
    ) -> None:
        super().__init__()
        self.channels = channels
        self.mean = _constant(mean)
        spread = torch.as_tensor(deviation, dtype=torch.float64)
        if not bool((spread > 0).all()):
            raise RequestError(f"expected deviations above 0, got {deviation}")
        self.factor = _constant((1 / spread).tolist())

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        if not isinstance(self.mean, float) or self.mean != 0:
            x = x - self.mean
        if not isinstance(self.factor, float) or self.factor != 1:
            x = x * self.factor
        if self.channels == "new":
            return x.unsqueeze(1)
        return x.movedim(-1, 1) if self.channels == "last" and x.dim() > 2 else x


def _constant(value: float | Sequence[float]) -> float | nn.Buffer:
    """A number in the graph is cheaper than a tensor."""
    if isinstance(value, int | float):
        return float(value)
    return nn.Buffer(torch.tensor([float(one) for one in value]))
