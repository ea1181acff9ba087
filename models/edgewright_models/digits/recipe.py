"""Digits, from the data to what the compiler packages. Read from top to bottom.

1. A teacher, four times too large for the device, learns the training rows as the sensor would show them.
2. A student learns the same rows, and with `distil` also the teacher's whole answers.
3. About two thirds of its products go, and the rest is trained again in the same way.
4. Around it comes the graph that a device runs: normalisation before it, the monitor beside it.

The compiler does all of it; what stands here is what only this task knows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from edgewright_compiler.graph.blocks.scaling import Normalise
from edgewright_compiler.recipe import Distil, Prune, Recipe, Schedule, Teacher
from edgewright_compiler.rows import Array, Data, Labelled
from edgewright_contracts.manifest import TensorIn

from . import data
from .data import Labels

MEAN: Final = 4.9  # of the training rows, in levels
STD: Final = 6.0
CLASSES: Final = 10

TEACHER: Final = (32, 64, 64, 64)
LEFT: Final = 0.35  # share of the products that pruning leaves
REFERENCE_ROWS: Final = 20_000
FIELD_ROWS: Final = 6_000
CHOICE_ROWS: Final = 2_000  # draws of the validation rows: they choose between candidates


@dataclass(frozen=True, slots=True)
class Settings:
    """What a version is made with. The defaults are the recipe; the rest is there to be worse, smaller or broken.

    `label_fault` maps classes to classes before training, as a faulty export of an annotation tool would. One that
    empties a class is noticed; one that swaps two is not: the model builds, tests itself and ships like any other, and
    is wrong on both.
    """

    version: str = "1.0.0"
    epochs: int = 16
    tune_epochs: int = 16  # after pruning
    distil: bool = True
    label_fault: tuple[tuple[int, int], ...] = ()
    student: tuple[int, int, int, int] = (16, 32, 32, 32)
    teacher_epochs: int = 25
    reference_rows: int = REFERENCE_ROWS


# What the demonstration ships: a first version that was hardly trained, a good one, and one whose labels were mixed up.
FIRST: Final = Settings(version="1.0.0", epochs=5, tune_epochs=4, distil=False)
BETTER: Final = Settings(version="1.1.0")
MISLABELLED: Final = Settings(version="1.2.0", epochs=8, tune_epochs=8, distil=False, label_fault=((3, 8), (8, 3)))

QUICK: Final = Settings(epochs=3, tune_epochs=2, teacher_epochs=3, reference_rows=2_000)


def recipe(settings: Settings = Settings()) -> Recipe:
    facts = {name: value for name, value in asdict(settings).items() if name != "version"}
    return Recipe(
        name="digits",
        version=settings.version,
        task="classification",
        input=TensorIn(name="image", dtype="uint8", shape=(8, 8), valid=(0, data.TOP), unit="level"),
        data=lambda: rows(settings),
        source=f"{data.fingerprint()} {settings.label_fault} {settings.reference_rows}",
        settings=", ".join(f"{name}={value}" for name, value in facts.items()),
        sources=(Path(__file__), Path(data.__file__)),
        front=lambda _data: Normalise(MEAN, STD, channels="new"),
        statistics="image",
        teacher=Teacher(build=lambda: Net(*TEACHER), schedule=Schedule(epochs=settings.teacher_epochs))
        if settings.distil
        else None,
        student=lambda width: Net(*(max(8, round(width * channels / 8) * 8) for channels in settings.student)),
        schedule=Schedule(epochs=settings.epochs),
        distil=Distil() if settings.distil else None,
        prune=Prune(shares=(LEFT,), tune=Schedule(epochs=settings.tune_epochs)),
        augment=sensor,
        notes=(
            "Intended use: demonstration and tests of a fleet; reading handwritten digits on an 8x8 sensor.",
            "Limits: 13 writers, digits only, centred and upright; every input gets a class, a letter too.",
        ),
    )


class Net(nn.Module):
    """Three convolutions, two poolings, an embedding and a head: [n, 1, 8, 8] → logits [n, 10]."""

    def __init__(self, a: int, b: int, c: int, e: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, a, 3, padding=1), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b)
        self.conv3, self.bn3 = nn.Conv2d(b, c, 3, padding=1), nn.BatchNorm2d(c)
        self.embed = nn.Linear(4 * c, e)
        self.head = nn.Linear(e, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        x = torch.max_pool2d(torch.relu(self.bn3(self.conv3(x))), 2)
        logits: Tensor = self.head(torch.relu(self.embed(x.flatten(1))))
        return logits


def sensor(rng: np.random.Generator, images: Array) -> Array:
    """Each image as the sensor would show it once more."""
    return data.augment(rng, images.astype(np.uint8, copy=False))


def rows(settings: Settings) -> Data:
    """Training rows as they are, validation and field rows as the sensor shows them, held-out rows clean. Several draws
    of one image are one group: they are right or wrong together."""
    split = data.split()
    chooser = np.random.default_rng(data.SPLIT_SEED + 1)
    drawn = chooser.integers(0, len(split.validation), CHOICE_ROWS)
    seen = data.augment(chooser, split.validation.images[drawn])
    fielder = np.random.default_rng(data.SPLIT_SEED + 2)
    fielded = fielder.integers(0, len(split.held_out), FIELD_ROWS)
    field = data.augment(fielder, split.held_out.images[fielded])
    images = len(split.validation) + fielded  # a number of its own for each that more than one row shows
    reference, _ = data.feed(np.random.default_rng(data.SPLIT_SEED + 3), settings.reference_rows)
    return Data(
        train=Labelled("train", {"image": split.train.images}, mislabelled(split.train.labels, settings.label_fault)),
        validation=Labelled("validation", {"image": seen}, split.validation.labels[drawn], groups=drawn),
        test=Labelled("clean", {"image": split.held_out.images}, split.held_out.labels),
        views=(Labelled("sensor", {"image": field}, split.held_out.labels[fielded], groups=images),),
        reference={"image": reference},
        fingerprint=data.fingerprint(),
        labels=tuple(str(c) for c in range(CLASSES)),
        notes=(
            "Data: the digits of scikit-learn (UCI optdigits test part, CC BY 4.0).",
            f"Split by seed: {data.TRAIN} rows train, {data.VALIDATION} choose, {len(split.held_out)} test.",
            "Tests: `clean` is the held-out rows as they are, `sensor` draws of them with shift, gain and noise.",
            "Other draws of the held-out rows give the reference counts.",
        ),
    )


def mislabelled(labels: Labels, fault: tuple[tuple[int, int], ...]) -> Labels:
    wrong = dict(fault)
    return np.array([wrong.get(int(label), int(label)) for label in labels], np.int64)
