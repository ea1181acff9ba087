"""Channels before they have edges, by task: what is counted about the output, and the columns of the monitor.

Nothing here costs the graph anything: a source reads tensors that the package has anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.channels import Group, Kind, Source
from edgewright_contracts.manifest import Task

Columns = tuple[tuple[str, Group], ...]  # name and group of each column of the monitor, in order

LISTED: Final = 20  # a categorical channel lists so many classes; the rest is "other"
VALUES: Final = 16  # outputs of a regression that are counted one by one
DETECTED: Final = 0.5  # a box with a score above it is counted as one
SEEN: Final = 0.05  # scores below it are padding or were suppressed


@dataclass(frozen=True, slots=True)
class Feature:
    """A channel before it has edges: they are cut at the quantiles of the reference."""

    name: str
    group: Group
    kind: Kind
    source: Source
    values: tuple[int, ...] = ()


def of_monitor(columns: Columns) -> tuple[Feature, ...]:
    """One feature a column; a confidence is a score, all else is numeric."""
    return tuple(
        Feature(name, group, "score" if name == "confidence" else "numeric", Source("monitor", "column", at))
        for at, (name, group) in enumerate(columns)
    )


def of_outputs(task: Task, *, size: int, frequent: Sequence[int] = ()) -> tuple[Feature, ...]:
    """What is counted beside the monitor. `size` is the width of the answer, `frequent` the classes to list."""
    listed = tuple(sorted(frequent[:LISTED])) or tuple(range(min(size, LISTED)))
    if task == "classification":
        return (Feature("class", "output", "categorical", Source("probabilities", "argmax"), listed),)
    if task == "multilabel":
        return (
            Feature("labels", "output", "count", Source("probabilities", "above", threshold=DETECTED)),
            Feature("strongest", "output", "categorical", Source("probabilities", "argmax"), listed),
        )
    if task == "regression":
        return tuple(
            Feature(f"value-{i + 1}", "output", "numeric", Source("values", "column", i))
            for i in range(min(size, VALUES))
        )
    if task == "anomaly":
        # The same column twice: 20 equal bins that people read, and cells between quantiles that see a small shift.
        return (
            Feature("score", "output", "score", Source("score", "column", 0)),
            Feature("error", "output", "numeric", Source("score", "column", 0)),
        )
    return (
        Feature("boxes", "output", "count", Source("scores", "above", threshold=DETECTED)),
        Feature("score", "output", "score", Source("scores", "each", mask="scores", threshold=SEEN)),
        Feature("class", "output", "categorical", Source("classes", "each", mask="scores", threshold=DETECTED), listed),
        Feature("area", "output", "numeric", Source("boxes", "area", mask="scores", threshold=DETECTED)),
    )


def by_frequency(labels: npt.NDArray[np.generic]) -> tuple[int, ...]:
    """Class indices, the most frequent first (equal counts: the smaller index first); negative ones are padding."""
    values, counts = np.unique(labels, return_counts=True)
    order = np.lexsort((values, -counts))
    return tuple(int(values[i]) for i in order if values[i] >= 0)
