"""Confidence that means what it says: temperature scaling and the expected calibration error.

Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017. The temperature is fitted on
rows that trained nothing; it changes no decision, only how sure the answer looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..rows import Array

Floats = npt.NDArray[np.float64]
COLDEST: Final = 0.05
HOTTEST: Final = 20.0


def temperature(logits: Array, labels: Array, task: Task) -> float:
    """What to divide logits [n, k] by so that the likelihood of the labels is greatest; 1.0 where a task has none.

    Targets are drawn towards even odds by what one unseen row would weigh (Platt 1999), or rows that are all right
    would ask for certainty. Convex in 1 / temperature; precise to 1e-9. Raises RequestError for logits that are not
    finite.
    """
    if task not in ("classification", "multilabel") or not len(labels):
        return 1.0
    z = np.asarray(logits, np.float64)
    if not np.isfinite(z).all():
        row = int(np.flatnonzero(~np.isfinite(z).all(axis=1))[0])
        raise RequestError(f"expected finite logits to calibrate on, got {z[row]} for row {row} of the {len(z)} given")
    aside = 1 / (len(z) + 2)
    if task == "classification":
        given = z[np.arange(len(z)), np.asarray(labels, np.int64)]
        wanted = float(((1 - aside) * given + aside * z.mean(axis=1)).mean())
        return _fitted(lambda inverse: float((_softmax(inverse * z) * z).sum(axis=1).mean()) - wanted)
    y = np.asarray(labels, np.float64)
    wanted = float((((1 - aside) * y + aside / 2) * z).mean())
    return _fitted(lambda inverse: float((z / (1 + np.exp(-np.clip(inverse * z, -700, 700)))).mean()) - wanted)


def ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """The mean distance between confidence and the share that is right, over equal bins of confidence, a share.

    Classification by the most probable class; several labels [n, k] by each label's own yes or no.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    if y.ndim == 1:
        confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    else:
        confidence, right = np.maximum(p, 1 - p).ravel(), ((p >= 0.5) == (y >= 0.5)).ravel()
    at = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(at, confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(right))


def _fitted(slope: Callable[[float], float]) -> float:
    """1 / the root of the slope of the loss over inverse temperature, which never falls."""
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def _softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
