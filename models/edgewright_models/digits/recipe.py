"""Digits, from the data to what the compiler packages. Read from top to bottom.

1. A teacher, four times too large for the device, learns the training rows as the sensor would show them.
2. A student learns the same rows, and with `distil` also the teacher's whole answers.
3. Half of its channels go, and the rest is trained again in the same way.
4. Around it comes the graph that a device runs: normalisation before it, the monitor beside it.

Every stage has a generator and a seed of its own, so a teacher taken from the cache gives the same student.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewright_compiler.distill import distillation_loss
from edgewright_compiler.monitor import COLUMNS, ClassifierMonitor, Graph, fit_embedding
from edgewright_compiler.prune import Pruned, prune
from edgewright_compiler.old_recipe import Bench, Feature, LabelledRows, Recipe, Trained
from edgewright_compiler.train import Draw, Loss, cross_entropy, predict, train
from edgewright_contracts.channels import Source
from edgewright_contracts.manifest import TensorIn, TensorOut

from . import data
from .data import Images, Labels

MEAN: Final = 4.9  # of the training rows, in levels
STD: Final = 6.0
CLASSES: Final = 10

TEACHER: Final = (32, 64, 64, 64)
PRUNED_SHARE: Final = 0.5
REFERENCE_ROWS: Final = 20_000
FIELD_ROWS: Final = 6_000
CALIBRATION_ROWS: Final = 256
CHOICE_ROWS: Final = 2_000  # of validation rows: they rank int8 against fp32
MONITOR_ROUNDS: Final = 8  # the monitor's constants come from so many augmented copies of the training rows


@dataclass(frozen=True, slots=True)
class Settings:
    """What a version is made with. The defaults are the recipe; the rest is there to be worse, smaller or broken.

    `label_fault` maps classes to classes before training, as a faulty export of an annotation tool would: the model
    builds, tests itself and ships like any other, and is wrong on those classes.
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
MISLABELLED: Final = Settings(version="1.2.0", epochs=8, tune_epochs=8, distil=False, label_fault=((3, 8), (7, 1)))


def recipe(settings: Settings = Settings()) -> Recipe:
    facts = {name: value for name, value in asdict(settings).items() if name != "version"}
    return Recipe(
        name="digits",
        version=settings.version,
        task="classification",
        settings=", ".join(f"{name}={value}" for name, value in facts.items()),
        data=data.fingerprint(),
        sources=(Path(__file__), Path(data.__file__)),
        train=lambda bench: make(settings, bench),
    )


class Net(nn.Module):
    """Three convolutions, two poolings, an embedding and a head: [n, 1, 8, 8] → logits [n, 10], embedding [n, e]."""

    def __init__(self, a: int, b: int, c: int, e: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, a, 3, padding=1), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b)
        self.conv3, self.bn3 = nn.Conv2d(b, c, 3, padding=1), nn.BatchNorm2d(c)
        self.embed = nn.Linear(4 * c, e)
        self.head = nn.Linear(e, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        x = torch.max_pool2d(torch.relu(self.bn3(self.conv3(x))), 2)
        embedding = torch.relu(self.embed(x.flatten(1)))
        return self.head(embedding), embedding


def make(settings: Settings, bench: Bench) -> Trained:
    rows = data.split().train
    labels = mislabelled(rows.labels, dict(settings.label_fault))
    loss = distillation_loss(teacher(settings, bench)) if settings.distil else cross_entropy
    student, pruned = compressed(settings, bench, sensor_draws(bench.seed + 1, rows.images, labels), loss)

    # The monitor measures distances from training rows, so that it knows what the model knew.
    rng = np.random.default_rng(bench.seed + 2)
    seen = np.concatenate([data.augment(rng, rows.images) for _ in range(MONITOR_ROUNDS)])
    embeddings = predict(student, normalised(seen))[1].astype(np.float64)
    monitor = ClassifierMonitor(
        fit_embedding(embeddings, np.tile(labels, MONITOR_ROUNDS)), classes=CLASSES, levels=data.TOP, height=8, width=8
    )

    held_out = data.split().held_out
    reference, _ = data.feed(np.random.default_rng(bench.seed + 3), settings.reference_rows)
    field_images, field_labels = data.feed(np.random.default_rng(bench.seed + 4), FIELD_ROWS)
    validation = data.split().validation
    chooser = np.random.default_rng(bench.seed + 5)
    drawn = chooser.integers(0, len(validation), CHOICE_ROWS)
    return Trained(
        graph=Graph(student, monitor, mean=MEAN, std=STD),
        inputs=(TensorIn(name="image", dtype="uint8", shape=(8, 8), valid=(0, data.TOP), unit="level"),),
        outputs=(
            TensorOut(name="probabilities", role="probabilities", shape=(CLASSES,)),
            TensorOut(name="monitor", role="monitor", shape=(len(COLUMNS),)),
        ),
        labels=tuple(str(c) for c in range(CLASSES)),
        features=features(),
        calibration={"image": data.augment(rng, rows.images[:CALIBRATION_ROWS])},
        reference={"image": reference},
        choice=LabelledRows(
            "validation", {"image": data.augment(chooser, validation.images[drawn])}, validation.labels[drawn]
        ),
        tests=(
            LabelledRows("sensor", {"image": field_images}, field_labels),
            LabelledRows("clean", {"image": held_out.images}, held_out.labels),
        ),
        notes=notes(settings, pruned),
    )


def teacher(settings: Settings, bench: Bench) -> Net:
    """Trained once for a seed; kept in the cache for the versions that follow."""
    net = Net(*TEACHER)
    path = _cached(bench, f"teacher {TEACHER} {settings.teacher_epochs} {bench.seed}")
    if path is not None and path.is_file():
        try:
            net.load_state_dict(torch.load(path, weights_only=True))
            return net.eval()
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            path.unlink()  # cut short by a crash: train again
    torch.manual_seed(bench.seed)
    net = Net(*TEACHER)
    rows = data.split().train
    draw = sensor_draws(bench.seed, rows.images, rows.labels)
    train(net, draw, cross_entropy, epochs=settings.teacher_epochs, progress=_staged(bench, "training the teacher"))
    if path is not None:
        part = path.with_suffix(f".{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), part)
        part.replace(path)
    return net


def compressed(settings: Settings, bench: Bench, draw: Draw, loss: Loss) -> tuple[Net, Pruned]:
    """The student: trained, pruned, trained again."""
    torch.manual_seed(bench.seed + 1)
    net = Net(*settings.student)
    train(net, draw, loss, epochs=settings.epochs, progress=_staged(bench, "training the student"))
    pruned = prune(net, torch.zeros(1, 1, 8, 8), ratio=PRUNED_SHARE, keep=(net.head,))
    train(net, draw, loss, epochs=settings.tune_epochs, progress=_staged(bench, "training the pruned student"))
    return net, pruned


def sensor_draws(seed: int, images: Images, labels: Labels) -> Draw:
    """Every epoch sees all rows once, each as a new reading of the sensor."""
    rng = np.random.default_rng(seed)

    def draw(_epoch: int) -> tuple[npt.NDArray[np.float32], Labels]:
        return normalised(data.augment(rng, images)), labels

    return draw


def normalised(images: Images) -> npt.NDArray[np.float32]:
    """What the graph does before the network: float32 [n, 1, 8, 8]."""
    return ((images[:, None].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)


def mislabelled(labels: Labels, fault: dict[int, int]) -> Labels:
    return np.array([fault.get(int(label), int(label)) for label in labels], np.int64)


def features() -> tuple[Feature, ...]:
    """21 columns of the monitor, and the predicted class."""
    columns = tuple(
        Feature(name, group, "score" if name == "confidence" else "numeric", Source("monitor", "column", column))
        for column, (name, group) in enumerate(COLUMNS)
    )
    predicted = Feature("class", "output", "categorical", Source("probabilities", "argmax"), tuple(range(CLASSES)))
    return (*columns, predicted)


def notes(settings: Settings, pruned: Pruned) -> tuple[str, ...]:
    split = data.split()
    sizes = len(split.train), len(split.validation), len(split.held_out)
    macs = pruned.macs_after
    how = "distilled from a teacher" if settings.distil else "trained on labels only"
    return (
        "Intended use: demonstration and tests of a fleet; reading handwritten digits on an 8x8 sensor of 17 levels.",
        "Limits: 13 writers, digits only, centred and upright; every input gets a class, a letter too.",
        "Data: the digits of scikit-learn (UCI optdigits test part, CC BY 4.0).",
        f"Split by seed {data.SPLIT_SEED}: {sizes[0]} rows train, {sizes[1]} rank variants, {sizes[2]} are held out.",
        "Tests: `clean` is the held-out rows as they are, `sensor` draws of them with shift, gain and noise.",
        "Other draws of the held-out rows give the reference counts.",
        f"Steps: {how}, {settings.epochs} + {settings.tune_epochs} epochs, int8 calibrated on training rows.",
        f"Pruned: {pruned.channels_before} → {pruned.channels_after} channels, {pruned.macs_before} → {macs} products.",
    )


def _staged(bench: Bench, stage: str) -> Callable[[float], None]:
    return lambda share: bench.progress(stage, share)


def _cached(bench: Bench, what: str) -> Path | None:
    """A file whose name changes with what it depends on: the settings, the data, this code and torch."""
    if bench.cache is None:
        return None
    code = Path(__file__).read_bytes() + Path(data.__file__).read_bytes()
    key = hashlib.sha256(f"{what} {data.fingerprint()} {torch.__version__}".encode() + code).hexdigest()[:16]
    return bench.cache / f"digits-teacher-{key}.pt"
