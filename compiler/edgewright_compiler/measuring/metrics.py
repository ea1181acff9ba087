"""Metrics: how right a model's outputs are on labelled rows, by one function per metric.

A metric is of one of two kinds, told by what it gives. Per sample: an array [n], whose mean is the figure, so that two
models pair row by row. Per set: a `Weighted`, a function of how often each row counts, [n] → figure, so that a
bootstrap costs a pass over counts instead of a sort.

Figures are in the metric's own unit. `points` turns them into what tables, bounds and `--max-drop` use: shares times
100; mean absolute errors in per cent of the labels' standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..data.loaders import function
from ..rows import Array
from .detections import match

Outputs = Mapping[str, Array]  # tensor name → [n, ...]
Floats = npt.NDArray[np.float64]
Weighted = Callable[[Floats], float]  # how often each row counts, [n] → the figure; nan where it is not defined


@dataclass(frozen=True, slots=True)
class Metric:
    """`score(outputs, labels)` gives an array [n] (per sample) or a `Weighted` (per set). `higher` is better, or lower.

    `deviations`: the figure is in the unit of the labels, and its points are per cent of their standard deviation.
    """

    name: str
    higher: bool
    score: Callable[[Outputs, Array], Floats | Weighted]
    deviations: bool = False

    def points(self, labels: Array) -> float:
        """What one unit of the figure is in points. Raises RequestError when the labels do not vary."""
        if not self.deviations:
            return 100.0
        spread = math.sqrt(float(np.mean(np.var(np.asarray(labels, np.float64), axis=0))))
        if spread == 0:
            raise RequestError(f"{self.name}: expected labels that vary, got one value in all {len(labels)} rows")
        return 100.0 / spread


def value(metric: Metric, outputs: Outputs, labels: Array) -> float:
    """The figure on these rows, in the metric's own unit. Raises RequestError where it is not defined on them."""
    if not len(labels):
        raise RequestError(f"{metric.name}: expected at least one row, got none")
    score = metric.score(outputs, labels)
    found = float(score(np.ones(len(labels)))) if callable(score) else float(score.mean())
    if not math.isfinite(found):
        raise RequestError(
            f"{metric.name} is {found} on these {len(labels)} rows: expected a finite figure. "
            "Do the rows hold every class that the metric compares, and are all outputs finite?"
        )
    return found


def metric(name: str, task: Task) -> Metric:
    """The metric of this name, or the function of `file.py:function`. Raises RequestError: unknown, or of other tasks.

    A function takes (outputs by tensor name, labels) and returns an array [n] or one number, a share where higher is
    better. Where lower is better it has an attribute `higher = False`.
    """
    if ":" in name:
        return _own(name)
    tasks, made = tasks_of(name), _METRICS[name][1]
    if task not in tasks:
        fitting = [one for one, (tasks, _) in _METRICS.items() if task in tasks]
        raise RequestError(
            f"metric {name} is for {' and '.join(tasks)}, this task is {task}: "
            f"expected {' or '.join([*fitting, 'file.py:function'])}"
        )
    return made


def tasks_of(name: str) -> tuple[Task, ...]:
    """The tasks that the metric of this name is for. Raises RequestError for an unknown one."""
    if name not in _METRICS:
        raise RequestError(f"unknown metric {name!r}: expected one of {', '.join(_METRICS)}, or file.py:function")
    return _METRICS[name][0]


def _output(outputs: Outputs, name: str) -> Array:
    try:
        return outputs[name]
    except KeyError:
        raise RequestError(f"expected an output {name!r} to score, got {', '.join(sorted(outputs))}") from None


def _accuracy(outputs: Outputs, labels: Array) -> Floats:
    """Classification: is the most probable class the label's. Multilabel: the share of a row's labels told right."""
    p = _output(outputs, "probabilities")
    if labels.ndim == 1:
        return np.asarray(p.argmax(axis=1) == labels, np.float64)
    right = (np.asarray(p, np.float64) >= 0.5) == (labels >= 0.5)  # type: ignore[operator]
    return np.asarray(right.mean(axis=1), np.float64)


def _mae(outputs: Outputs, labels: Array) -> Floats:
    error = np.asarray(_output(outputs, "values"), np.float64) - np.asarray(labels, np.float64)
    return np.asarray(np.abs(error).reshape(len(labels), -1).mean(axis=1), np.float64)


def _macro_f1(outputs: Outputs, labels: Array) -> Weighted:
    """The mean of F1 over classes (or labels) that a row has, or that was predicted; as scikit-learn's macro."""
    p = np.asarray(_output(outputs, "probabilities"), np.float64)
    if labels.ndim == 1:
        given = np.asarray(labels)[:, None] == np.arange(p.shape[1])
        told = p.argmax(axis=1)[:, None] == np.arange(p.shape[1])
    else:
        given, told = np.asarray(labels, np.float64) >= 0.5, p >= 0.5
    both = np.asarray(given & told, np.float64)
    either = np.asarray(given, np.float64) + np.asarray(told, np.float64)

    def weighted(counts: Floats) -> float:
        present = counts @ either
        met = present > 0
        return float((2 * (counts @ both)[met] / present[met]).mean()) if met.any() else math.nan

    return weighted


def _auroc(outputs: Outputs, labels: Array) -> Weighted:
    """The chance that a row with the label scores above one without it, ties half (Mann and Whitney).

    Two classes: the second's probability. More classes, or several labels: the mean over each against the rest.
    """
    if "score" in outputs:
        scores = np.asarray(outputs["score"], np.float64).reshape(len(labels), 1)
        given = np.asarray(labels).reshape(-1, 1) == 1
    else:
        scores = np.asarray(_output(outputs, "probabilities"), np.float64)
        given = labels[:, None] == np.arange(scores.shape[1]) if labels.ndim == 1 else labels >= 0.5  # type: ignore[operator]
        if labels.ndim == 1 and scores.shape[1] == 2:
            scores, given = scores[:, 1:], given[:, 1:]
    columns = [_ranked(scores[:, c], given[:, c]) for c in range(scores.shape[1])]

    def weighted(counts: Floats) -> float:
        found = [one for one in (column(counts) for column in columns) if not math.isnan(one)]
        return float(np.mean(found)) if found else math.nan

    return weighted


def _ranked(score: Floats, given: npt.NDArray[np.bool_]) -> Weighted:
    order = np.argsort(score, kind="stable")
    _, starts = np.unique(score[order], return_index=True)
    positive = given[order]

    def weighted(counts: Floats) -> float:
        w = counts[order]
        for_it = np.add.reduceat(w * positive, starts)
        against = np.add.reduceat(w * ~positive, starts)
        pairs = for_it.sum() * against.sum()
        won = float((for_it * (np.cumsum(against) - against / 2)).sum())
        return won / float(pairs) if pairs > 0 else math.nan

    return weighted


def _map50(outputs: Outputs, labels: Array) -> Weighted:
    """Mean over classes of the average precision at IoU 0.5, the area under the precision envelope at all points."""
    found = match(
        np.asarray(_output(outputs, "boxes"), np.float64),
        np.asarray(_output(outputs, "scores"), np.float64),
        np.asarray(_output(outputs, "classes")),
        np.asarray(labels, np.float64),
    )
    return found.average_precision


def _own(name: str) -> Metric:
    try:
        loaded = function(name)
    except RequestError as error:
        raise RequestError(f"metric {name}: {error}") from error

    def score(outputs: Outputs, labels: Array) -> Floats | Weighted:
        first = _called(name, loaded, outputs, labels)
        if first.shape == (len(labels),):
            return first

        def weighted(counts: Floats) -> float:
            if (counts == 1).all():
                return float(first)
            at = np.repeat(np.arange(len(labels)), counts.astype(np.int64))
            return float(_called(name, loaded, {key: rows[at] for key, rows in outputs.items()}, labels[at]))

        return weighted

    return Metric(name, bool(getattr(loaded, "higher", True)), score)


def _called(name: str, loaded: Callable[..., Any], outputs: Outputs, labels: Array) -> Floats:
    """What it returned, [n] or []. Raises RequestError with its own error, or with what it returned instead."""
    try:
        result = loaded(dict(outputs), labels)
    except RequestError as error:
        raise RequestError(f"metric {name}: {error}; {_given(outputs, labels)}") from error
    found = _numbers(result)
    if found is None or found.shape not in ((len(labels),), ()):
        raise RequestError(
            f"metric {name}: expected it to return an array of {len(labels)} numbers (one a row) or one number, got "
            f"{_shown(result)}; {_given(outputs, labels)}"
        )
    if found.ndim and not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise RequestError(f"metric {name}: expected finite numbers, got {found[row]} for row {row}")
    return found


def _numbers(result: object) -> Floats | None:
    """None for what is no array of numbers: numpy would take None for nan, and text for a number."""
    try:
        found = np.asarray(result)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal lengths; tensors that need a gradient
        return None
    return found.astype(np.float64) if found.dtype.kind in "fiub" else None


def _shown(result: object) -> str:
    shape = getattr(result, "shape", None)
    if shape is not None:
        return f"{type(result).__name__} of shape {tuple(shape)} and {getattr(result, 'dtype', 'no dtype')}"
    return f"{type(result).__name__} {result!r:.80}" if result is not None else "None"


def _given(outputs: Outputs, labels: Array) -> str:
    """What a function of one's own may read."""
    arrays = ", ".join(f"{key!r} {a.dtype} {[*a.shape]}" for key, a in outputs.items() if key != "monitor")
    return f"it is given outputs {arrays} and labels {labels.dtype} {[*labels.shape]}"


_METRICS: Final[dict[str, tuple[tuple[Task, ...], Metric]]] = {
    "accuracy": (("classification", "multilabel"), Metric("accuracy", True, _accuracy)),
    "macro_f1": (("classification", "multilabel"), Metric("macro_f1", True, _macro_f1)),
    "auroc": (("classification", "multilabel", "anomaly"), Metric("auroc", True, _auroc)),
    "map50": (("detection",), Metric("map50", True, _map50)),
    "mae": (("regression",), Metric("mae", False, _mae, deviations=True)),
}
