"""Figures with their intervals, over all rows and slice by slice; and the slice that is served worst.

Intervals are 95 %, two-sided. By what the metric gives: 0 or 1 a row, Wilson's score interval (JASA 22, 1927); any
number a row, Student's t; one a set, the percentile bootstrap, widened where it draws few. Rows that come in groups
tell less than as many single ones: then n shrinks by the design effect, quantiles are Student's for the groups, and the
bootstrap draws groups (bounds.py, which has the sources). `n` stays the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Final
from zlib import crc32

import numpy as np
from scipy.stats import t as student

from edgewright_contracts.manifest import Task

from ..rows import Array, take
from .bounds import Alone, Grouped, members, widening
from .evidence import Figure, Slice
from .metrics import Floats, Metric, Outputs, value

LEVEL: Final = 0.95
Z: Final = NormalDist().inv_cdf((1 + LEVEL) / 2)
RESAMPLES: Final = 500
LEAST: Final = 20  # rows below which a slice is shown but never called the worst
MOST: Final = 50  # slices of one attribute; more of them are a mistake, as a column of numbers


def figure(metric: Metric, outputs: Outputs, labels: Array, *, seed: int, groups: Array | None = None) -> Figure:
    """The metric on these rows, with its interval. `groups` [n] are keys of rows that belong together; None, or one
    group only: every row stands for itself. Raises RequestError where the metric is not defined on the rows."""
    n, found = len(labels), value(metric, outputs, labels)
    member = members(groups, n)
    said = "" if member is None else ", by groups"
    score = metric.score(outputs, labels)
    if callable(score):
        rng = np.random.default_rng([seed, crc32(b"interval")])
        size = n if member is None else int(member.max()) + 1
        draws = (np.bincount(rng.integers(0, size, size), minlength=size).astype(np.float64) for _ in range(RESAMPLES))
        drawn = np.array([score(counts if member is None else counts[member]) for counts in draws])
        drawn = drawn[np.isfinite(drawn)]
        ends = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) if len(drawn) else np.full(2, math.nan)
        low, high = (float(found + widening(size, (1 + LEVEL) / 2) * (end - found)) for end in ends)
        return _figure(found, n, low, high, f"percentile bootstrap{said}")
    level = (1 + LEVEL) / 2
    unit = Alone(n, level) if member is None else Grouped(n, level, score, member)
    if metric.higher and np.isin(score, (0.0, 1.0)).all():
        worth = unit.worth(n)
        z = Z if member is None else float(student.ppf(level, unit.freedom(n)))
        return _figure(found, n, *wilson(float(score.mean()) * worth, worth, z), f"Wilson{said}")
    return _figure(found, n, *_student(score, unit), f"Student's t{said}")


def by_slice(
    metric: Metric,
    outputs: Outputs,
    labels: Array,
    slices: Mapping[str, Array],
    *,
    seed: int,
    groups: Array | None = None,
) -> tuple[Slice, ...]:
    """One figure for every value of every attribute, in their order. A slice on which the metric is not defined (AUROC
    of one class) is left out, and so is an attribute of more than `MOST` values."""
    found = []
    for attribute, values in slices.items():
        names = np.unique(values)
        if len(names) > MOST:
            continue
        for name in names:
            at = np.flatnonzero(values == name)
            score = metric.score(take(outputs, at), labels[at])
            if callable(score) and not math.isfinite(score(np.ones(len(at)))):
                continue
            found.append(
                Slice(
                    attribute=attribute,
                    value=str(name),
                    figure=figure(
                        metric,
                        take(outputs, at),
                        labels[at],
                        seed=seed,
                        groups=None if groups is None else groups[at],
                    ),
                )
            )
    return tuple(found)


def with_labels(slices: Mapping[str, Array], labels: Array, task: Task, names: tuple[str, ...]) -> dict[str, Array]:
    """The slices, and of a classification each class as one more: its figure is then that class's recall."""
    if task != "classification" or not names:
        return dict(slices)
    return {**slices, "label": np.asarray(names)[np.asarray(labels, np.int64)]}


def worst(metric: Metric, slices: tuple[Slice, ...]) -> Slice | None:
    """The slice with the poorest figure among those of at least `LEAST` rows."""
    large = [s for s in slices if s.figure.n >= LEAST]
    return min(large, key=lambda s: s.figure.value * (1 if metric.higher else -1), default=None)


def wilson(right: float, n: float, z: float = Z) -> tuple[float, float]:
    """`n` may be what rows in groups are worth, a fraction; `z` is the two-sided quantile."""
    p = right / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def _student(score: Floats, unit: Alone) -> tuple[float, float]:
    n = len(score)
    if n < 2:
        return math.nan, math.nan
    half = float(student.ppf(unit.confidence, unit.freedom(n))) * float(score.std(ddof=1)) / math.sqrt(unit.worth(n))
    return float(score.mean()) - half, float(score.mean()) + half


def _figure(found: float, n: int, low: float, high: float, method: str) -> Figure:
    """JSON has no nan: an interval that is not there is None."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return Figure(value=found, n=n, method=method)
    return Figure(value=found, n=n, low=low, high=high, method=method)
