"""Announcer, from the sound to what the compiler packages. Read from top to bottom.

A log-mel spectrum is part of the graph, so the package takes 16-bit samples. Teacher and student are one convolutional
net in two sizes. Separable convolutions, as keyword spotters on microcontrollers have them (Zhang et al. 2017,
arXiv:1711.07128), did worse as a student on the clips that choose.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from edgewright_compiler.graph.blocks.scaling import Normalise
from edgewright_compiler.graph.blocks.series import Spectrum
from edgewright_compiler.recipe import Distil, Recipe, Schedule, Teacher
from edgewright_compiler.rows import Data
from edgewright_contracts.manifest import TensorIn

from . import data

BANDS: Final = 32
LOWEST_HZ: Final = 60.0
# Power of a faint hiss. Some clips end in digital silence, some in the hiss of a room: below it nothing is heard.
FLOOR: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Settings:
    """The defaults are the recipe. Channels are those of the convolutions, from the first to the last."""

    version: str = "1.0.0"
    teacher: tuple[int, ...] = (24, 48, 64, 64)
    teacher_epochs: int = 20
    student: tuple[int, ...] = (16, 32, 32, 48)
    epochs: int = 40
    copies: int = 15  # augmented copies of the training rows that the teacher answers, once each
    calibration: int = 256


QUICK: Final = Settings(teacher=(16, 24, 32), teacher_epochs=2, student=(8, 16, 24), epochs=2, copies=1, calibration=48)


def recipe(settings: Settings = Settings()) -> Recipe:
    facts = {name: value for name, value in asdict(settings).items() if name != "version"}
    return Recipe(
        name="announcer",
        version=settings.version,
        task="classification",
        input=TensorIn(name="sound", dtype="int16", shape=(data.SAMPLES,), unit="16-bit sample at 8 kHz"),
        data=data.data,
        source=data.PIN[1],
        settings=", ".join(f"{name}={value}" for name, value in facts.items()),
        sources=(Path(__file__), Path(data.__file__)),
        front=front,
        statistics="series",
        teacher=Teacher(
            build=lambda: Net(settings.teacher, dropout=0.3),
            schedule=Schedule(
                epochs=settings.teacher_epochs,
                rate=2e-3,
                batch=32,
                optimiser="adamw",
                weight_decay=1e-3,
                smoothing=0.05,
            ),
        ),
        student=lambda width: Net(tuple(max(8, 8 * round(c * width / 8)) for c in settings.student)),
        schedule=Schedule(epochs=settings.epochs, rate=4e-3, batch=32, optimiser="adamw", weight_decay=1e-3),
        distil=Distil(temperature=3.0, weight=0.9, copies=settings.copies),
        augment=data.augment,
        calibration=settings.calibration,
        widths=(1.0, 0.75),
        notes=(
            "Intended use: a demonstration of sound in the graph, on real recordings.",
            "Limits: voice, microphone, room and language are one label, so what it recognises is not known.",
            "It is neither language identification nor speaker recognition, and a new voice gets a known label.",
        ),
    )


def front(rows: Data) -> nn.Module:
    """[n, 8000] → [n, 1, 32, 61]."""
    spectrum = Spectrum(data.RATE, size=256, hop=128, bands=BANDS, low=LOWEST_HZ, floor=FLOOR)
    with torch.no_grad():
        powers = torch.cat([spectrum(part) for part in torch.split(torch.from_numpy(rows.train.inputs["sound"]), 64)])
    return nn.Sequential(spectrum, Normalise(float(powers.mean()), float(powers.std()), channels="new"))


class Net(nn.Module):
    """[n, 1, bands, windows] → logits [n, 10]: a convolution over 5 x 5, then over 3 x 3; the first three halve."""

    def __init__(self, channels: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        layers = [_convolution(1, channels[0], 5, stride=2)]
        layers += [_convolution(a, b, 3, stride=2 if i < 2 else 1) for i, (a, b) in enumerate(pairwise(channels))]
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], len(data.LABELS))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.body(x).mean((2, 3))))
        return logits


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
