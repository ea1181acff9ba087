"""Input statistics: what tells that a sensor broke, in a few numbers a sample, by kind of input.

Guarantee: they are computed from raw rows and never from a tensor that the quantized net reads. Units are stated by
each class. Statistics were chosen for spread (the minimum, maximum and median of an image are nearly always one number)
and for cost: a runtime pays about half a microsecond for an operator, so each kind is one or two convolutions or matrix
products with a rectifier between, about eight operators in all.

    image   [h, w], [h, w, c] or [c, h, w]   mean, gradients, dark and bright share, halves, quietest row, channels
    series  [t] or [t, c]                    mean, magnitude and roughness by channel, the quietest and the loudest
    vector  [c]                              the values themselves, or their PCA where there are many, and their spread
    tokens  [t] ids, or bytes                length, surprise under the training rows' frequencies, kinds of bytes
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import TensorIn

from ..recipe import Statistics as Kind
from ..rows import Array
from .moments import Float, affine, moments, principal

GRID: Final = 16  # an image is looked at on about so many rows and columns
ONE_BY_ONE: Final = 8  # channels of a series, values of a vector that get columns of their own
FIT_ROWS: Final = 4096  # constants come from at most so many rows, evenly spread


class Statistics(nn.Module):
    """Raw rows as they came (any dtype) → float32 [n, len(names)]."""

    names: tuple[str, ...]

    def forward(self, raw: Tensor) -> Tensor:
        raise NotImplementedError


class ImageStatistics(Statistics):
    """In levels: 0 is the darkest, `levels` the brightest; a raw value is `low + step * level`.

    One rectified convolution gives six maps of the mean over colours, whose averages are the mean, the rising half of
    both gradients (beyond the border it is dark), the indicators of the darkest and the brightest level (exact for
    whole levels), and what lies above half of it; and one map for each colour. Averages and the contrast of the halves
    come from the means of the four quarters; in an odd size the middle line belongs to both halves. Large images are
    looked at on a grid, except for the quietest row: the mean of the darkest one, which is a dead row's, in raw units.
    """

    def __init__(self, shape: tuple[int, ...], *, low: float, levels: float, step: float) -> None:
        super().__init__()
        self.first, height, width, colours = _image(shape)
        shares = torch.eye(colours) if colours > 1 else torch.zeros(0, 1)
        kernels = torch.zeros(6 + len(shares), colours, 3, 3)
        kernels[:6, :, 1, 1] = torch.tensor([1.0, 1, 1, -1, 1, 1])[:, None] / colours
        kernels[1, :, 2, 1] = kernels[2, :, 1, 2] = -1 / colours
        kernels[6:, :, 1, 1] = shares
        offsets = torch.tensor([0.0, 0, 0, 1, 1 - levels, -levels / 2, *[0.0] * len(shares)])
        stride = max(1, round(min(height, width) / GRID))
        self.maps = nn.Conv2d(colours, len(kernels), 3, stride=stride, padding=1)
        mapped = [(size - 1) // stride + 1 for size in (height, width)]
        self.kernel = [(size + 1) // 2 for size in mapped]
        self.stride = [max(1, size // 2) for size in mapped]
        self.combine = nn.Linear(4 * len(kernels), 8 + len(shares), bias=False)
        with torch.no_grad():
            self.maps.weight.copy_(kernels / step)
            assert self.maps.bias is not None
            self.maps.bias.copy_(offsets - low / step * kernels.sum((1, 2, 3)))
            quarters = torch.zeros(8 + len(shares), len(kernels), 4)
            for column, of in enumerate((0, 1, 2, 3, 4, 5)):
                quarters[column, of] = 0.25
            quarters[6, 0] = torch.tensor([0.5, 0.5, -0.5, -0.5])
            quarters[7, 0] = torch.tensor([0.5, -0.5, 0.5, -0.5])
            for colour in range(len(shares)):
                quarters[8 + colour, 6 + colour] = 0.25
            self.combine.weight.copy_(quarters.flatten(1))
        self.requires_grad_(False)
        self.names = (
            "mean", "row-gradient", "column-gradient", "dark-share", "bright-share", "strong", "top-bottom",
            "left-right", *(f"colour-{i + 1}" for i in range(len(shares))), "quietest-row",
        )  # fmt: skip

    def forward(self, raw: Tensor) -> Tensor:
        image = raw.to(torch.float32)
        if image.dim() == 3:
            image = image.unsqueeze(1)
        elif not self.first:
            image = image.permute(0, 3, 1, 2)
        quarters = functional.avg_pool2d(torch.relu(self.maps(image)), self.kernel, self.stride)
        quietest = image.mean((1, 3)).amin(1, keepdim=True)
        return torch.cat([self.combine(quarters.flatten(1)), quietest], dim=1)


class SeriesStatistics(Statistics):
    """In standard deviations of the training rows, channel by channel.

    mean, magnitude (mean distance from the training mean) and roughness (the rising half of steps from one value to the
    next) of each of up to ONE_BY_ONE channels, of more the averages; `quietest` is the smallest roughness of a channel
    (a dead sensor's is 0), `loudest` the largest magnitude.
    """

    def __init__(self, rows: Array) -> None:
        super().__init__()
        x = _spread(rows)
        if x.shape[1] < 2:
            raise RequestError("statistics of a series need at least 2 steps; a single one is a vector")
        mean, deviation = moments(x.astype(np.float64).reshape(len(x) * x.shape[1], -1))
        self.channels = len(mean)
        self.maps = nn.Conv1d(self.channels, 3 * self.channels, 2, groups=self.channels)
        kernels = np.array([[0, 1], [0, -1], [-1, 1]]) / deviation[:, None, None]  # the value, its negative, its step
        with torch.no_grad():
            self.maps.weight.copy_(torch.from_numpy(kernels.reshape(-1, 1, 2)))
            assert self.maps.bias is not None
            self.maps.bias.copy_(torch.from_numpy(-(kernels.sum(2) * mean[:, None]).reshape(-1)))
        self.requires_grad_(False)
        self.combine = affine(np.array([[1.0, 1, 0], [-1, 1, 0], [0, 0, 1]]), np.zeros(3))
        three = ("mean", "magnitude", "roughness")
        if self.channels == 1:
            self.names = three
        elif self.channels <= ONE_BY_ONE:
            each = tuple(f"{name}-{i + 1}" for i in range(self.channels) for name in three)
            self.names = (*each, "quietest", "loudest")
        else:
            self.names = (*three, "quietest", "loudest")

    def forward(self, raw: Tensor) -> Tensor:
        x = raw.to(torch.float32)
        x = x.unsqueeze(1) if x.dim() == 2 else x.transpose(1, 2)
        averages = torch.relu(self.maps(x)).mean(2)
        each: Tensor = self.combine(averages.reshape(-1, self.channels, 3))
        if self.channels == 1:
            return each.flatten(1)
        told = each.flatten(1) if self.channels <= ONE_BY_ONE else each.mean(1)
        return torch.cat([told, each[:, :, 2:].amin(1), each[:, :, 1:2].amax(1)], dim=1)


class VectorStatistics(Statistics):
    """The raw values of up to ONE_BY_ONE, of more their PCA-8 in standard deviations; and `spread`, the mean square of
    all values in standard deviations of the training rows."""

    def __init__(self, rows: Array) -> None:
        super().__init__()
        x = _spread(rows).astype(np.float64).reshape(min(len(rows), FIT_ROWS), -1)
        size = x.shape[1]
        mean, deviation = moments(x)
        self.single = size <= ONE_BY_ONE
        self.mean = nn.Buffer(torch.from_numpy(mean).to(torch.float32))
        self.factor = nn.Buffer(torch.from_numpy(1 / deviation).to(torch.float32))
        if self.single:
            self.names = (*(f"input-{i + 1}" for i in range(size)), "spread")
        else:
            basis, offset = principal((x[np.isfinite(x).all(axis=1)] - mean) / deviation)
            self.project = affine(basis, offset)
            self.names = (*(f"input-pca-{i + 1}" for i in range(basis.shape[1])), "spread")

    def forward(self, raw: Tensor) -> Tensor:
        x = raw.to(torch.float32)
        z = (x - self.mean) * self.factor
        spread = (z * z).mean(1, keepdim=True)
        return torch.cat([x if self.single else self.project(z), spread], dim=1)


class TokenStatistics(Statistics):
    """Ids [t], 0 is padding: `length` in tokens; `surprise`, the mean over tokens of -log2 of an id's frequency in the
    training rows, in bits; `strangest`, the largest of them. Of bytes (uint8) also the share of letters, capitals,
    digits, spaces, other ASCII and everything above it, of the whole length of the row.

    One look-up a token: a table of one number an id (bytes: of seven).
    """

    def __init__(self, rows: Array, *, size: int, checked: bool) -> None:
        super().__init__()
        self.bytes = rows.dtype == np.uint8
        self.last = None if checked or self.bytes else size - 1  # an id beyond the table must not stop a device
        self.length = rows.shape[1]
        counts = np.bincount(np.clip(rows.reshape(-1).astype(np.int64), 0, size - 1), minlength=size) + 0.5
        counts[0] = 0
        bits = np.zeros(size)
        bits[1:] = -np.log2(counts[1:] / counts.sum())
        table = np.column_stack([bits, *(_byte_kinds() if self.bytes else ())])
        self.table = nn.Embedding(size, table.shape[1], _weight=torch.from_numpy(table).to(torch.float32), _freeze=True)
        kinds = ("letters", "capitals", "digits", "spaces", "signs", "foreign") if self.bytes else ()
        self.names = ("length", "surprise", "strangest", *kinds)

    def forward(self, raw: Tensor) -> Tensor:
        ids = raw.to(torch.int32)
        if self.last is not None:
            ids = ids.clamp(0, self.last)
        found = self.table(ids)  # [n, t, 1 or 7]
        length = ids.clamp(0, 1).to(torch.float32).sum(1, keepdim=True)
        means = found.mean(1)
        surprise = means[:, :1] * self.length / length.clamp(min=1)
        return torch.cat([length, surprise, found[:, :, :1].amax(1), means[:, 1:]], dim=1)


def statistics(kind: Kind, tensor: TensorIn, rows: Array) -> Statistics:
    """The statistics of one input; constants come from training `rows` [n, *shape].

    Raises RequestError for a shape or dtype that the kind does not take.
    """
    shape = tensor.shape
    takes = {"image": (2, 3), "series": (1, 2), "vector": (1,), "tokens": (1,)}[kind]
    if len(shape) not in takes or 0 in shape:
        raise RequestError(
            f"input {tensor.name!r}: statistics {kind!r} take samples of {' or '.join(map(str, takes))} dimensions, "
            f"got the shape {shape}: choose image, series, vector or tokens"
        )
    if kind == "tokens":
        if rows.dtype.kind not in "iu":
            raise RequestError(f"input {tensor.name!r}: tokens are whole numbers, got {rows.dtype}")
        if rows.dtype == np.uint8:
            size = 256
        else:
            size = int(tensor.valid[1] if tensor.valid else rows.max()) + 1
            if int(rows.min()) < 0:
                raise RequestError(f"input {tensor.name!r}: tokens are not negative, got {int(rows.min())}")
        return TokenStatistics(rows, size=size, checked=tensor.valid is not None)
    if kind == "series":
        return SeriesStatistics(rows)
    if kind == "vector":
        return VectorStatistics(rows)
    if tensor.valid is not None:
        low, high = tensor.valid
    elif tensor.dtype == "uint8":
        low, high = 0.0, 255.0
    else:
        low, high = float(rows.min()), float(rows.max())
    if not high > low:
        raise RequestError(f"input {tensor.name!r}: every value is {low}: an image needs a range of brightness")
    step = 1.0 if rows.dtype.kind in "iu" else (high - low) / 255
    return ImageStatistics(shape, low=low, levels=(high - low) / step, step=step)


def _image(shape: tuple[int, ...]) -> tuple[bool, int, int, int]:
    """(channels first, height, width, colours): a dimension of 1, 3 or 4 is that of colours, the last one first."""
    if len(shape) == 2:
        first, (height, width), colours = False, shape, 1
    elif shape[2] in (1, 3, 4):
        first, (height, width, colours) = False, shape
    elif shape[0] in (1, 3, 4):
        first, (colours, height, width) = True, shape
    else:
        raise RequestError(f"an image has 1, 3 or 4 colours, first or last, got the shape {shape}: is it a series?")
    if min(height, width) < 2:
        raise RequestError(f"an image has at least 2 x 2 pixels, got {height} x {width}: is it a series?")
    return first, height, width, colours


def _byte_kinds() -> tuple[Float, ...]:
    code = np.arange(256)
    letter = ((code >= 97) & (code <= 122)) | ((code >= 65) & (code <= 90))
    digit, space = (code >= 48) & (code <= 57), np.isin(code, (9, 10, 13, 32))
    sign = (code > 0) & (code < 128) & ~letter & ~digit & ~space
    capital = (code >= 65) & (code <= 90)
    return tuple(np.asarray(kind, np.float64) for kind in (letter, capital, digit, space, sign, code >= 128))


def _spread(rows: Array) -> Array:
    return rows if len(rows) <= FIT_ROWS else rows[np.linspace(0, len(rows) - 1, FIT_ROWS).astype(np.int64)]
