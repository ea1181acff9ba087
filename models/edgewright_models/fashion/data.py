"""All of Fashion-MNIST: 70,000 photographs of clothes, 28x28 levels of grey, their split, and how else they might lie.

Source: Debian's dataset-fashion-mnist (Xiao et al. 2017, arXiv:1708.07747). The 10,000 test rows are the published
ones; the published 60,000 are shuffled by a fixed seed: 5,000 choose, 55,000 train. Needs apt (or the archive by hand),
else numpy only. Cost: 1 s, once a process.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_compiler.rows import Array, Data, Labelled, fingerprint
from edgewright_models.carriers import deb_tree

PIN: Final = (
    "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
FOLDER: Final = "usr/share/datasets/fashion-mnist"
LABELS: Final = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SIDE: Final = 28
SEED: Final = 20260101
VALIDATION: Final = 5_000

SHIFT: Final = 1  # pixels, each way


def data(train_rows: int | None = None) -> Data:
    """`train_rows` takes only the first of them (and as many to choose and to test on, at most), for a quick look.

    Raises Unavailable when the archive cannot be had.
    """
    folder = deb_tree(*PIN) / FOLDER
    images, labels = _read(folder, "train")
    order = np.random.default_rng(SEED).permutation(len(labels))
    chooses, trains = np.split(order, [VALIDATION])
    validation = _rows("validation", images, labels, chooses[:train_rows])
    train = _rows("train", images, labels, trains[:train_rows])
    published = _read(folder, "t10k")
    test = _rows("test", *published, np.arange(len(published[1]))[:train_rows])
    return Data(
        train,
        validation,
        test,
        fingerprint(train, validation, test),
        LABELS,
        notes=(
            "Intended use: benchmarks of compression at full size.",
            "Limits: single articles on a dark background, centred, as a shop shows them; every input gets a class.",
            "Data: Fashion-MNIST, from Debian's dataset-fashion-mnist (MIT, Zalando SE), arXiv:1708.07747.",
            f"Split by seed {SEED}: {len(train)} train, {len(validation)} choose, {len(test)} published test rows.",
        ),
    )


def augment(rng: np.random.Generator, raw: Array) -> Array:
    """Moved by up to a pixel each way, and every second one mirrored."""
    images = np.asarray(raw, np.uint8)
    n, side = len(images), np.arange(SIDE)
    down, right = rng.integers(0, 2 * SHIFT + 1, (2, n))
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    y, x = down[:, None] + side, right[:, None] + side
    x = np.where((rng.random(n) < 0.5)[:, None], x[:, ::-1], x)
    return np.asarray(padded[np.arange(n)[:, None, None], y[:, :, None], x[:, None, :]], np.uint8)


def brightness(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.str_]:
    """dark below a mean level of 40, bright above 105 (about the outer quarters)."""
    level = images.mean(axis=(1, 2))
    return np.where(level < 40, "dark", np.where(level > 105, "bright", "medium"))


def _rows(name: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], at: Array) -> Labelled:
    part = "t10k" if name == "test" else "train"
    return Labelled(
        name,
        {"image": images[at]},
        labels[at],
        slices={"brightness": brightness(images[at])},
        origins=tuple(f"image {i} of {part}-images-idx3-ubyte" for i in at),
    )


def _read(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images and labels of one pair of idx files, whose headers have 16 and 8 bytes."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, SIDE, SIDE)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return images, labels
