"""The plain convolutional net of the image recipes: convolutions, a mean over space, one linear layer.

Dense 3x3 convolutions of multiples of 8 channels, because that is what int8 kernels are good at: on x86 a dense one ran
3.1 times faster in int8 than in float, a depthwise one 0.8 times.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Conv(NamedTuple):
    """A convolution with batch normalisation and a rectifier; `pool` halves height and width behind it."""

    channels: int
    kernel: int = 3
    stride: int = 1
    pool: bool = False


class ConvNet(nn.Module):
    """[n, 1, h, w] → logits [n, classes]; the embedding is the mean over space of the last convolution's output."""

    def __init__(self, convolutions: tuple[Conv, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for conv in convolutions:
            layers += [
                nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.kernel // 2, bias=False),
                nn.BatchNorm2d(conv.channels),
                nn.ReLU(),
                *([nn.MaxPool2d(2)] if conv.pool else []),
            ]
            channels = conv.channels
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def widened(convolutions: tuple[Conv, ...], width: float) -> tuple[Conv, ...]:
    """The same with `width` times the channels, in multiples of 8, at least 8."""
    return tuple(conv._replace(channels=max(8, round(width * conv.channels / 8) * 8)) for conv in convolutions)
