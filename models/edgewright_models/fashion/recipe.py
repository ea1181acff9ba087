"""Fashion-MNIST, from the data to what the compiler packages. Read from top to bottom.

1. A teacher of five convolutions, 278,890 weights, learns 55,000 photographs, moved and mirrored.
2. A student of half its width and a quarter of its weights learns the labels, and the teacher's whole answers beside
   them. It learns nearly five times as long as the teacher did, and becomes the better of the two.
3. The compiler quantizes it and puts normalisation before and the monitor beside it.

There is no pruning: see the README for what it gave.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from edgewright_compiler.graph.blocks.scaling import Normalise
from edgewright_compiler.recipe import Distil, Recipe, Schedule, Teacher
from edgewright_contracts.manifest import TensorIn
from edgewright_models import convolutions
from edgewright_models.convolutions import Conv, ConvNet, widened

from . import data

TEACHER: Final = (Conv(32), Conv(64, pool=True), Conv(64), Conv(128, pool=True), Conv(128))
STUDENT: Final = (Conv(16), Conv(32, pool=True), Conv(32), Conv(64, pool=True), Conv(64))


@dataclass(frozen=True, slots=True)
class Settings:
    """The defaults are the recipe."""

    version: str = "1.0.0"
    rows: int | None = None  # so many training rows only, and at most as many of the other splits
    teacher_epochs: int = 6
    epochs: int = 28
    copies: int = 5  # augmented copies of the training rows that the teacher answers, once each


QUICK: Final = Settings(rows=1_000, teacher_epochs=2, epochs=4, copies=2)


def recipe(settings: Settings = Settings()) -> Recipe:
    facts = {name: value for name, value in asdict(settings).items() if name != "version"}
    return Recipe(
        name="fashion",
        version=settings.version,
        task="classification",
        input=TensorIn(name="image", dtype="uint8", shape=(data.SIDE, data.SIDE), valid=(0, 255), unit="level"),
        data=lambda: data.data(settings.rows),
        source=f"{data.PIN[1]} {settings.rows}",
        settings=", ".join(f"{name}={value}" for name, value in facts.items()),
        sources=(Path(__file__), Path(data.__file__), Path(convolutions.__file__)),
        front=lambda _data: Normalise(0.0, 255.0, channels="new"),
        statistics="image",
        teacher=Teacher(
            build=lambda: ConvNet(TEACHER, len(data.LABELS)),
            schedule=Schedule(
                epochs=settings.teacher_epochs, rate=5e-3, batch=128, optimiser="adamw", weight_decay=1e-2, mixed=True
            ),
        ),
        student=lambda width: ConvNet(widened(STUDENT, width), len(data.LABELS)),
        schedule=Schedule(
            epochs=settings.epochs, rate=8e-3, batch=128, optimiser="adamw", weight_decay=1e-3, mixed=True
        ),
        distil=Distil(temperature=4.0, weight=0.3, copies=settings.copies),
        augment=data.augment,
    )
