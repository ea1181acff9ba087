"""Measuring variants: accuracy on labelled rows, bytes, and latency of single samples on one thread.

Latencies of all variants are taken in turns, one call each, so that whatever else the machine does hits all alike. They
hold for this machine and go to `evidence.json`; accuracy depends on the files only and goes to the model card.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from edgewright_runtime.runtime import Session

from .old_recipe import LabelledRows, Rows
from .reference import run


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`interval` is Wilson's, 95 %; `recall` is one number per class, None for a class without rows."""

    right: int
    n: int
    recall: tuple[float | None, ...]

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        z, p, n = 1.96, self.share, self.n
        centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


@dataclass(frozen=True, slots=True)
class Latency:
    p50_us: float
    p95_us: float
    calls: int


def accuracy(session: Session, test: LabelledRows, probabilities: str, classes: int) -> Accuracy:
    """The share of rows whose most probable class is the label's."""
    right = run(session, test.inputs)[probabilities].argmax(axis=1) == test.labels
    recall = tuple(_share(right[test.labels == c]) for c in range(classes))
    return Accuracy(int(right.sum()), len(right), recall)


def latency(sessions: Mapping[str, Session], rows: Rows, *, calls: int = 400) -> dict[str, Latency]:
    """Of one sample at a time, in microseconds; the first eighth of the calls warms up and is not counted."""
    n = len(next(iter(rows.values())))
    singles = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(min(n, 64))]
    taken: dict[str, list[int]] = {name: [] for name in sessions}
    for call in range(calls):
        for name, session in sessions.items():
            single = singles[call % len(singles)]
            start = time.perf_counter_ns()
            session.run(single)
            taken[name].append(time.perf_counter_ns() - start)
    kept = {name: np.array(ns[calls // 8 :]) / 1000 for name, ns in taken.items()}
    return {
        name: Latency(float(np.quantile(us, 0.5)), float(np.quantile(us, 0.95)), us.size) for name, us in kept.items()
    }


def _share(right: npt.NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None
