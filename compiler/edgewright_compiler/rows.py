"""What a model learns from and is judged on: rows of raw samples with their labels, in three splits.

Guarantee asked of whoever makes `Data`: equal sources give equal arrays, bit for bit. Rows are raw: exactly what a
device will hand to the package, before any preprocessing, because that lives in the graph.

Labels by task, n rows:
    classification  int64 [n], class index
    multilabel      float32 [n, k], 0 or 1
    regression      float32 [n, k]
    anomaly         int64 [n], 1 is an anomaly; training rows are all 0
    detection       float32 [n, m, 5]: class, x0, y0, x1, y1 as shares of the image; class -1 fills up
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Rows = Mapping[str, Array]  # input name → [n, *shape], all of one n


def count(rows: Rows) -> int:
    """n."""
    return len(next(iter(rows.values())))


def take(rows: Rows, at: npt.NDArray[np.integer] | slice) -> dict[str, Array]:
    """The rows at these indices, of every input."""
    return {name: array[at] for name, array in rows.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """`name` is what tables call it. `groups` are keys [n] of what must not be split (a person, a recording);
    `slices` are values [n] by attribute, for figures per slice; `origins` name the file of each row for messages."""

    name: str
    inputs: Rows
    labels: Array
    groups: Array | None = None
    slices: Mapping[str, Array] = field(default_factory=dict)
    origins: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, at: npt.NDArray[np.integer] | slice, name: str | None = None) -> Labelled:
        return Labelled(
            name or self.name,
            take(self.inputs, at),
            self.labels[at],
            None if self.groups is None else self.groups[at],
            {key: values[at] for key, values in self.slices.items()},
            tuple(np.asarray(self.origins, object)[at]) if self.origins else (),
        )


def fingerprint(*splits: Labelled) -> str:
    """sha256 over the names, inputs and labels of these splits; their order says which is which, not their names."""
    digest = hashlib.sha256()
    for split in splits:
        for name, array in (*sorted(split.inputs.items()), ("labels", split.labels)):
            digest.update(f"{split.name} {name} {array.dtype.str} {array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """`train` makes weights, `validation` chooses, `test` is used once, for the bound on the package that was chosen.

    `views` are more test rows, reported and nothing else. `unlabelled` rows join the training rows under distillation.
    `reference` is what the drift baseline is counted on: rows that no weight was trained on (validation and test when
    None). `fingerprint` is the sha256 over all of it, `notes` are lines for the model card: origin, licence, split.
    """

    train: Labelled
    validation: Labelled
    test: Labelled
    fingerprint: str
    labels: tuple[str, ...] = ()
    views: tuple[Labelled, ...] = ()
    unlabelled: Rows | None = None
    reference: Rows | None = None
    notes: tuple[str, ...] = ()
