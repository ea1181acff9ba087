"""The seam between recipes and the compiler: a recipe trains a graph and hands over all rows that are needed.

Guarantee asked of a recipe: equal (settings, seed, data) give equal weights and equal rows, bit for bit on one machine;
`choice`, `reference` and `tests` hold rows that no weight was trained on, and `tests` none that `choice` has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from edgewright_contracts.channels import Group, Kind, Source
from edgewright_contracts.manifest import Task, TensorIn, TensorOut

from .train import Progress

Rows = Mapping[str, npt.NDArray[np.generic]]  # input name → [n, *shape], all of one n


@dataclass(frozen=True, slots=True)
class Feature:
    """A channel before it has edges: they are cut at the quantiles of the reference."""

    name: str
    group: Group
    kind: Kind
    source: Source
    values: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """A test set: what it is called in tables, its inputs, and the class index of each row."""

    name: str
    inputs: Rows
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a recipe hands over. Only modules under `graph.net` may be quantized."""

    graph: nn.Module
    inputs: tuple[TensorIn, ...]
    outputs: tuple[TensorOut, ...]
    labels: tuple[str, ...]
    features: tuple[Feature, ...]
    calibration: Rows  # training rows: they set the ranges of int8
    reference: Rows
    choice: LabelledRows  # decides between variants, and is in no figure
    tests: tuple[LabelledRows, ...]
    notes: tuple[str, ...]  # one line each for the model card: data, steps, limits, intended use


@dataclass(frozen=True, slots=True)
class Bench:
    """What a recipe is given. `cache` may keep what later versions share (a teacher); None keeps nothing."""

    seed: int
    cache: Path | None
    progress: Progress


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    version: str
    task: Task
    settings: str  # what else the weights depend on, for provenance
    data: str  # sha256 of the data and its split
    sources: tuple[Path, ...]  # files that are the recipe's code
    train: Callable[[Bench], Trained]
