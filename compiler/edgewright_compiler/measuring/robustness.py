"""What the world may do to a sample, as named shifts of raw rows; and the step that hurts this model most.

Shifts are of the raw input, before any preprocessing, in its own range, dtype and shape; equal seeds give equal rows.
They are probes with stated sizes, not a promise about what a device will meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np
import numpy.typing as npt

from edgewright_contracts.manifest import Task, TensorIn

from ..rows import Array

if TYPE_CHECKING:
    from torch import nn

    from ..recipe import Statistics

Floats = npt.NDArray[np.float64]
Change = Callable[[np.random.Generator, Floats, float], Floats]  # rows [n, ...], the width of their range
STEP: Final = 0.02  # of the range, of the adversarial step


def shifted(statistics: Statistics, tensor: TensorIn, rows: Array, *, seed: int) -> Iterator[tuple[str, str, Array]]:
    """(name, what is done in words, changed rows) for every shift that suits this kind of input.

    `rows` [n, *tensor.shape]; the range is `tensor.valid`, else what the rows span.
    """
    low, high = _range(tensor, rows)
    raw = rows.astype(np.float64)
    for name, detail, change in _SHIFTS[statistics]:
        rng = np.random.default_rng([seed, crc32(name.encode())])
        yield name, detail, _back(change(rng, raw, high - low), rows, low, high)


def adversarial(
    statistics: Statistics,
    front: nn.Module,
    net: nn.Module,
    tensor: TensorIn,
    rows: Array,
    labels: Array,
    task: Task,
) -> tuple[str, Array] | None:
    """(what is done in words, moved rows): every value goes by `STEP` of the range, but by 1 at least in an input of
    whole numbers, along the sign of the gradient of the loss: FGSM (Goodfellow, Shlens and Szegedy, ICLR 2015).

    None where it has no meaning: no labels to move away from, or an input of indices (tokens, or whole numbers that
    reach the net as such). `net` and `front` are in eval mode and stay so. Computed on the float model; a quantized one
    is hit by transfer.
    """
    import torch
    from torch.nn import functional

    if task not in ("classification", "multilabel", "regression") or statistics == "tokens":
        return None
    with torch.no_grad():
        if not front(torch.from_numpy(rows[:1])).is_floating_point():
            return None
    low, high = _range(tensor, rows)
    step = max(STEP * (high - low), 1.0 if rows.dtype.kind in "iu" else 0.0)
    moved = []
    for start in range(0, len(rows), 256):
        x = torch.from_numpy(rows[start : start + 256].astype(np.float32)).requires_grad_()
        y = torch.from_numpy(np.ascontiguousarray(labels[start : start + 256]))
        with torch.enable_grad():
            answer = net(front(x))
            if task == "classification":
                loss = functional.cross_entropy(answer, y.long())
            elif task == "multilabel":
                loss = functional.binary_cross_entropy_with_logits(answer, y.float())
            else:
                loss = functional.mse_loss(answer, y.float().reshape(answer.shape))
            if not loss.requires_grad:
                return None
            (slope,) = torch.autograd.grad(loss, x, allow_unused=True)
        if slope is None:
            return None
        moved.append((x.detach() + step * slope.sign()).numpy().astype(np.float64))
    detail = f"{step:.3g} {tensor.unit or 'of the input'} along the float model's gradient".replace("  ", " ")
    return detail, _back(np.concatenate(moved), rows, low, high)


def _range(tensor: TensorIn, rows: Array) -> tuple[float, float]:
    if tensor.valid is not None:
        return tensor.valid
    return float(np.min(rows)), float(np.max(rows))


def _back(changed: Floats, rows: Array, low: float, high: float) -> Array:
    clipped = np.clip(changed, low, high)
    return (np.rint(clipped) if rows.dtype.kind in "iub" else clipped).astype(rows.dtype)


def _noise(rng: np.random.Generator, x: Floats, width: float) -> Floats:
    return x + rng.standard_normal(x.shape) * (0.1 * width)


def _noise_by_channel(rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    """By the quartiles of each channel (the last axis): what is far outside of them is what such a model looks for."""
    flat = x.reshape(-1, x.shape[-1])
    quarter, rest = np.quantile(flat, (0.25, 0.75), axis=0)
    spread = (rest - quarter) / 1.349
    return np.asarray(x + rng.standard_normal(x.shape) * (0.2 * np.where(spread > 0, spread, flat.std(axis=0))))


def _brighter(_rng: np.random.Generator, x: Floats, width: float) -> Floats:
    return x + 0.2 * width


def _flatter(_rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    mean = x.reshape(len(x), -1).mean(axis=1).reshape(-1, *[1] * (x.ndim - 1))
    return np.asarray(mean + 0.5 * (x - mean))


def _blurred(_rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    for axis in _plane(x):
        padded = np.concatenate([np.take(x, [0], axis), x, np.take(x, [-1], axis)], axis)
        n = x.shape[axis]
        x = sum((np.take(padded, range(k, k + n), axis) for k in range(3)), np.zeros_like(x)) / 3
    return x


def _aside(_rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    for axis in _plane(x):
        step = max(1, round(0.07 * x.shape[axis]))
        edge = np.repeat(np.take(x, [0], axis), step, axis)
        x = np.concatenate([edge, np.take(x, range(x.shape[axis] - step), axis)], axis)
    return x


def _plane(x: Floats) -> tuple[int, int]:
    """The axes of height and width in [n, h, w], [n, h, w, channels] or [n, channels, h, w]."""
    if x.ndim == 3:
        return 1, 2
    return (1, 2) if x.shape[-1] <= 4 else (x.ndim - 2, x.ndim - 1)


def _later(_rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    step = max(1, x.shape[1] // 10)
    return np.concatenate([np.repeat(x[:, :1], step, axis=1), x[:, :-step]], axis=1)


def _louder(_rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    return x * 1.25


def _dead(_rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    """Of every row one channel (the last axis) is at its median over all rows: row i loses channel i % channels."""
    out = x.reshape(len(x), -1, x.shape[-1]).copy()
    which = np.arange(len(x)) % x.shape[-1]
    out[np.arange(len(x)), :, which] = np.median(out, axis=(0, 1))[which, None]
    return out.reshape(x.shape)


def _erased(rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    return np.where(rng.random(x.shape) < 0.1, 0.0, x)


def _swapped(rng: np.random.Generator, x: Floats, _width: float) -> Floats:
    """Of every row of tokens, one neighbouring pair changes places."""
    out, rows = x.reshape(len(x), -1).copy(), np.arange(len(x))
    at = rng.integers(0, max(1, out.shape[1] - 1), len(x))
    after = np.minimum(at + 1, out.shape[1] - 1)
    out[rows, at], out[rows, after] = out[rows, after], out[rows, at]
    return out.reshape(x.shape)


_SHIFTS: Final[dict[str, tuple[tuple[str, str, Change], ...]]] = {
    "image": (
        ("noise", "white noise, 10 % of the range", _noise),
        ("blur", "mean of 3 × 3 pixels", _blurred),
        ("contrast", "half the distance from each image's mean", _flatter),
        ("brightness", "20 % of the range brighter", _brighter),
        ("shift", "down and to the right by 7 % of the side", _aside),
    ),
    "series": (
        ("noise", "white noise, a fifth of each channel's deviation", _noise_by_channel),
        ("gain", "every value × 1.25", _louder),
        ("late", "a tenth of the window later", _later),
        ("dead sensor", "one channel at its median", _dead),
    ),
    "vector": (
        ("noise", "white noise, a fifth of each channel's deviation", _noise_by_channel),
        ("gain", "every value × 1.25", _louder),
        ("dead sensor", "one value at its median", _dead),
    ),
    "tokens": (
        ("erased", "one token in ten is 0", _erased),
        ("swapped", "two neighbours change places", _swapped),
    ),
}
