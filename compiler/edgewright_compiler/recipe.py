"""A recipe: everything that the compiler must be told, and nothing that it can find out.

A recipe declares; the pipeline trains, distils, prunes, quantizes, measures and chooses. Its net maps what `front`
makes of raw rows to one answer tensor, by task:

    classification, multilabel  logits [n, k]
    regression                  values [n, k]
    anomaly                     a reconstruction of its own input [n, ...]
    detection                   [n, boxes, 4 + k]: x0, y0, x1, y1 as shares of the image, then class logits

A net may have a method `loss(answer, labels) -> scalar`, used instead of the task's own (a detector must have one), and
an attribute `embedding` naming the submodule whose output is the embedding; else the embedding is what its last linear
or convolution layer reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec import UNSET, UnsetType
from torch import nn

from edgewright_contracts.manifest import SessionOptions, Task, TensorIn

from .rows import Array, Data

Augment = Callable[[np.random.Generator, Array], Array]  # raw rows [n, *shape] → raw rows of the same shape and dtype
Statistics = Literal["image", "series", "vector", "tokens"]  # what the monitor's input group looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How one net is trained.

    `patience` epochs without a better validation figure end it (None: never), and the best weights are kept; `clip`
    bounds the norm of the gradient; for the first `frozen_epochs` only the last layer learns. `mixed` multiplies in
    bfloat16 on CPUs that have it (CUDA always trains so): large convolutional nets train in half of the time.
    """

    epochs: int
    rate: float = 3e-3
    batch: int = 64
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    shape: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    clip: float | None = None
    patience: int | None = None
    smoothing: float = 0.0
    balanced: bool = False  # classes weigh by the inverse of their count
    frozen_epochs: int = 0
    mixed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Distil:
    """weight × (distance from the teacher's answer at `temperature`) + (1 - weight) × loss on labels
    + features × (distance of embeddings, through a linear map that is learned and thrown away).

    With `copies`, epochs go round so many augmented copies of the training rows, and the teacher answers each of them
    once; with 0 it answers anew in every epoch, which costs more than a small student does.
    """

    temperature: float = 4.0
    weight: float = 0.7
    features: float = 0.0
    copies: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Channels go until `target` of what was there remains, in `rounds`, each followed by `tune` under distillation.

    Shares left (0.5 is half) are tried from the largest to the smallest, each going on from the one before it.
    """

    target: Literal["macs", "size", "latency"] = "macs"
    shares: tuple[float, ...] = (0.5,)
    round_to: int = 8
    rounds: int = 1
    tune: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The float model that the package is compared with, and the one that a student learns from.

    `build` makes it untrained, to be trained by `schedule`; `weights` (a state dict) start it; or `file` is a finished
    ONNX or TFLite model of the same raw inputs; one that classifies gives probabilities, or else `logits`.
    """

    build: Callable[[], nn.Module] | None = None
    schedule: Schedule | None = None
    weights: Path | None = None
    file: Path | None = None
    logits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`student` takes a width (1.0 is the recipe's own) and makes an untrained net; None compresses the teacher itself.
    Without a teacher, the student at full float precision is what the package is compared with.

    `data` is called once, when rows are needed; `source` is a cheap fingerprint of what it will read, so that finished
    steps are found again without reading it. `settings` is whatever else the weights depend on, for provenance.
    `front` makes the preprocessing that is exported with the net: raw rows (a tensor of the input's dtype) → the net's
    input. `calibration` counts the training rows that set ranges of int8. `session` is how devices
    load and run the files, where that is not how the runtime does it by itself.
    """

    name: str
    version: str
    task: Task
    input: TensorIn
    data: Callable[[], Data]
    source: str
    settings: str
    sources: tuple[Path, ...]
    front: Callable[[Data], nn.Module]
    statistics: Statistics
    teacher: Teacher | None
    student: Callable[[float], nn.Module] | None
    schedule: Schedule
    distil: Distil | None = None
    prune: Prune | None = None
    augment: Augment | None = None
    widths: tuple[float, ...] = (1.0,)
    metric: str = "accuracy"
    calibration: int = 256
    notes: tuple[str, ...] = ()
    session: SessionOptions | UnsetType = UNSET
