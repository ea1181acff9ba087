"""Anomaly, from the readings to what the compiler packages. Read from top to bottom.

An autoencoder learns to repeat normal rows through a bottleneck of a few numbers; what it cannot repeat is odd. Teacher
and student are one net in two sizes. A reading further than CLIP standard deviations from the middle counts as that
far: some readings of the file are a hundred times further, and one of them would set the scale of every int8 tensor.
With a wider clip, int8 rounds away enough of a normal row's error to move its score.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from edgewright_compiler.graph.blocks.scaling import Normalise
from edgewright_compiler.recipe import Distil, Recipe, Schedule, Teacher
from edgewright_compiler.rows import Data
from edgewright_contracts.manifest import TensorIn

from . import data

CLIP: Final = 3.0  # standard deviations of normal rows
BOTTLENECK: Final = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """The defaults are the recipe. Sizes are of the hidden layers on both sides of the bottleneck."""

    version: str = "1.0.0"
    teacher: int = 64
    teacher_epochs: int = 20
    student: int = 24
    epochs: int = 20
    test_rows: int | None = None  # all


QUICK: Final = Settings(teacher=32, teacher_epochs=2, student=16, epochs=2, test_rows=3000)


def recipe(settings: Settings = Settings()) -> Recipe:
    facts = {name: value for name, value in asdict(settings).items() if name != "version"}
    return Recipe(
        name="anomaly",
        version=settings.version,
        task="anomaly",
        input=TensorIn(name="readings", dtype="float32", shape=(data.READINGS,), unit="not published"),
        data=lambda: data.data(settings.test_rows),
        source=f"{data.PIN[1]} {settings.test_rows}",
        settings=", ".join(f"{name}={value}" for name, value in facts.items()),
        sources=(Path(__file__), Path(data.__file__)),
        front=front,
        statistics="vector",
        teacher=Teacher(
            build=lambda: Autoencoder(settings.teacher),
            schedule=Schedule(epochs=settings.teacher_epochs, rate=3e-3, batch=128),
        ),
        student=lambda width: Autoencoder(max(8, 8 * round(settings.student * width / 8))),
        schedule=Schedule(epochs=settings.epochs, rate=5e-3, batch=128),
        distil=Distil(weight=0.5, copies=1),
        widths=(1.0, 0.67),
        metric="auroc",
        notes=(
            "Intended use: a demonstration of telemetry without labels; it says that a row is odd, not what is wrong.",
            "Limits: one machine; nearly separable, so the baseline above is close behind without any model.",
        ),
    )


def front(rows: Data) -> nn.Module:
    normal = np.asarray(rows.train.inputs["readings"], np.float64)
    return nn.Sequential(Normalise(normal.mean(axis=0).tolist(), normal.std(axis=0).tolist()), Clip(CLIP))


class Clip(nn.Module):
    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, -self.bound, self.bound)


class Autoencoder(nn.Module):
    """[n, 9] → the same, through BOTTLENECK numbers, which are the embedding."""

    embedding = "encode"

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(data.READINGS, hidden), nn.ReLU(), nn.Linear(hidden, BOTTLENECK))
        self.decode = nn.Sequential(nn.Linear(BOTTLENECK, hidden), nn.ReLU(), nn.Linear(hidden, data.READINGS))

    def forward(self, x: Tensor) -> Tensor:
        repeated: Tensor = self.decode(self.encode(x))
        return repeated
