"""Activity, from the data to what the compiler packages. Read from top to bottom.

Teacher and student are the same one-dimensional convolutional net in two sizes: four convolutions, three halvings of
time, the mean over what is left. It reads standardised channels; which way gravity points is a part of the exercise, so
it stays in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor, nn

from edgewright_compiler.graph.blocks.scaling import Normalise
from edgewright_compiler.recipe import Distil, Recipe, Schedule, Teacher
from edgewright_compiler.rows import Data
from edgewright_contracts.manifest import TensorIn

from . import data

RANGE: Final = (-64.0, 64.0)  # twice what a 16 g sensor of 2000 °/s could give

Channels = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Settings:
    """The defaults are the recipe."""

    version: str = "1.0.0"
    teacher: Channels = (48, 64, 96, 96)
    teacher_epochs: int = 15
    student: Channels = (16, 32, 48, 48)
    epochs: int = 25
    copies: int = 12  # augmented copies of the training rows that the teacher answers, once each


QUICK: Final = Settings(teacher=(24, 32, 32, 32), teacher_epochs=3, student=(16, 24, 32, 32), epochs=3, copies=1)


def recipe(settings: Settings = Settings()) -> Recipe:
    facts = {name: value for name, value in asdict(settings).items() if name != "version"}
    return Recipe(
        name="activity",
        version=settings.version,
        task="classification",
        input=TensorIn(
            name="motion", dtype="float32", shape=(data.WINDOW, data.CHANNELS), valid=RANGE, unit="g, rad/s at 50 Hz"
        ),
        data=data.data,
        source=data.PIN[1],
        settings=", ".join(f"{name}={value}" for name, value in facts.items()),
        sources=(Path(__file__), Path(data.__file__)),
        front=front,
        statistics="series",
        teacher=Teacher(
            build=lambda: Net(settings.teacher, dropout=0.3),
            schedule=Schedule(
                epochs=settings.teacher_epochs, rate=2e-3, optimiser="adamw", weight_decay=1e-4, smoothing=0.05
            ),
        ),
        student=lambda width: Net(scaled(settings.student, width)),
        schedule=Schedule(epochs=settings.epochs, rate=4e-3),
        distil=Distil(temperature=3.0, weight=0.9, copies=settings.copies),
        augment=data.augment,
        widths=(1.0, 0.75),
        notes=(
            "Intended use: a demonstration of wearable sensing; telling seven exercises of physiotherapy apart.",
            "Limits: ten people in all, healthy, told what to do; every window gets an exercise, rest and walking too.",
        ),
    )


def front(rows: Data) -> nn.Module:
    motion = np.asarray(rows.train.inputs["motion"], np.float64)
    return Normalise(motion.mean(axis=(0, 1)).tolist(), motion.std(axis=(0, 1)).tolist(), channels="last")


class Net(nn.Module):
    """[n, 6, 100] → logits [n, 7]."""

    def __init__(self, channels: Channels, dropout: float = 0.0) -> None:
        super().__init__()
        a, b, c, d = channels
        self.body = nn.Sequential(
            *_block(data.CHANNELS, a, 7), nn.MaxPool1d(2),
            *_block(a, b, 5), nn.MaxPool1d(2),
            *_block(b, c, 5), nn.MaxPool1d(2),
            *_block(c, d, 3),
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d, len(data.LABELS))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.body(x).mean(2)))
        return logits


def scaled(channels: Channels, width: float) -> Channels:
    """In multiples of 8, which kernels are laid out in."""
    a, b, c, d = (max(8, 8 * round(count * width / 8)) for count in channels)
    return a, b, c, d


def _block(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, ...]:
    return nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm1d(outputs), nn.ReLU()
