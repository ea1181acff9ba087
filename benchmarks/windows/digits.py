"""An 8x8 sensor that reads handwritten digits, and nine things that happen to it.

800 of scikit-learn's 1,797 digits train an MLP 64-48-32-10; the other 997 are the population. What the sensor shows is
a draw from them, moved by up to .6 pixels each way, gain within 10 %, sensor noise .25, levels 0..16. The reference is
20,000 such draws and every window is of fresh ones, so the null is exactly true.

Shifts, mild on purpose: brightness +.5 of 16; scale x.93; noise .7 instead of .25; blur, a quarter of a 3x3 mean;
translate, .3 pixels to the right; null, 4 pixels missing in 5 % of rows; label, classes 1 and 7 twice as frequent;
new_class, 10 % of the digits lie on their side; dead_row, one row dark in 10 % of frames.

Channels: the 64 pixels, or the 22 that the compiler's monitor gives any classifier of images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgewright_compiler.graph.blocks.scaling import Normalise
from edgewright_compiler.graph.features import Feature
from edgewright_compiler.graph.graph import Assembled, assemble
from edgewright_compiler.recipe import Recipe, Schedule
from edgewright_compiler.rows import Data, Labelled
from edgewright_contracts.channels import Source
from edgewright_contracts.manifest import TensorIn
from edgewright_models.digits import data

from .counting import Outputs

SHIFTS: Final = ("brightness", "scale", "noise", "blur", "translate", "null", "label", "new_class", "dead_row")
TRAIN: Final = 800
MEAN, DEVIATION = 4.9, 6.0  # of pixels, in levels
NULL_PIXELS: Final = (10, 20, 35, 50)
BATCH: Final = 20_000

Images = npt.NDArray[np.float32]  # [n, 8, 8]


class Digits:
    """Cost: about 5 s of training."""

    def __init__(self) -> None:
        split = data.split()
        parts = (split.train, split.validation, split.held_out)
        images = np.concatenate([part.images for part in parts]).astype(np.float32)
        labels = np.concatenate([part.labels for part in parts])
        self.images, self.labels = images[TRAIN:], labels[TRAIN:]
        self.model = _assembled(images[:TRAIN], labels[:TRAIN])
        self.features = {
            "pixels": tuple(
                Feature(f"pixel-{i}", "input", "numeric", Source("pixels", "column", i)) for i in range(64)
            ),
            "monitor": self.model.features,
        }

    def draw(self, rng: np.random.Generator, n: int, shift: str | None = None) -> tuple[Images, data.Labels]:
        if shift == "label":
            weight = np.where(np.isin(self.labels, (1, 7)), 2.0, 1.0)
            at = rng.choice(len(self.labels), n, p=weight / weight.sum())
        else:
            at = rng.integers(0, len(self.labels), n)
        images = self.images[at]
        if shift == "new_class":
            new = rng.random(n) < 0.1
            images[new] = np.rot90(images[new], axes=(1, 2))
        return sensed(rng, images, shift), self.labels[at]

    def outputs(self, images: Images) -> dict[str, Outputs]:
        """What each set of channels is counted from."""
        with torch.no_grad():
            told = [
                self.model.graph(torch.from_numpy(part)) for part in np.array_split(images, -(-len(images) // BATCH))
            ]
        probabilities, monitor = (torch.cat(part).numpy() for part in zip(*told, strict=True))
        return {
            "pixels": {"pixels": images.reshape(-1, 64)},
            "monitor": {"probabilities": probabilities, "monitor": monitor},
        }

    def accuracy(self, rng: np.random.Generator, n: int, shift: str | None = None) -> float:
        images, labels = self.draw(rng, n, shift)
        return float((self.outputs(images)["monitor"]["probabilities"].argmax(1) == labels).mean())


def sensed(rng: np.random.Generator, images: Images, shift: str | None = None) -> Images:
    """What the sensor shows of each image."""
    n = len(images)
    dy, dx = rng.uniform(-data.SHIFT_PX, data.SHIFT_PX, (2, n)).astype(np.float32)
    if shift == "translate":
        dx += np.float32(0.3)
    x = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    x = _moved(_moved(x, dy, 1), dx, 2)
    if shift == "blur":
        wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        mean = sum(wide[:, i : i + 10, j : j + 10] for i in range(3) for j in range(3)) / np.float32(9)
        x = np.float32(0.75) * x + np.float32(0.25) * mean
    gain = rng.uniform(1 - data.GAIN, 1 + data.GAIN, n).astype(np.float32)
    noise = np.float32(0.7 if shift == "noise" else data.NOISE)
    x = x[:, 1:-1, 1:-1] * gain[:, None, None] + noise * rng.standard_normal((n, 8, 8), np.float32)
    if shift == "scale":
        x *= np.float32(0.93)
    if shift == "brightness":
        x += np.float32(0.5)
    np.clip(x, 0, data.TOP, out=x)
    if shift == "dead_row":
        x[rng.random(n) < 0.1, 3] = 0
    if shift == "null":
        missing = np.flatnonzero(rng.random(n) < 0.05)
        x.reshape(n, 64)[np.ix_(missing, NULL_PIXELS)] = np.nan
    return x


def _moved(x: Images, by: npt.NDArray[np.float32], axis: int) -> Images:
    """Bilinear; dark beyond the border."""
    share = np.abs(by)[:, None, None]
    neighbour = np.where((by > 0)[:, None, None], np.roll(x, 1, axis), np.roll(x, -1, axis))
    return np.asarray((1 - share) * x + share * neighbour, np.float32)


def _assembled(images: Images, labels: data.Labels) -> Assembled:
    """The trained net between the compiler's front and head, with the compiler's monitor beside it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    front, rng = Normalise(MEAN, DEVIATION), np.random.default_rng(0)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    y = torch.from_numpy(labels)
    for _ in range(60):
        seen, order = torch.from_numpy(sensed(rng, images)), rng.permutation(len(labels))
        for at in np.array_split(order, len(order) // 50):
            loss = nn.functional.cross_entropy(net(front(seen[at])), y[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    train = Labelled("train", {"image": images}, labels)
    recipe = Recipe(
        name="windows", version="1", task="classification", source="", settings="", sources=(Path(__file__),),
        input=TensorIn(name="image", dtype="float32", shape=(8, 8), unit="level"), statistics="image",
        data=lambda: Data(train, train, train, ""), front=lambda _data: front, augment=sensed,
        teacher=None, student=None, schedule=Schedule(epochs=60),
    )  # fmt: skip
    rows = Data(train, train, train, "", labels=tuple("0123456789"))
    return assemble(recipe, rows, net.eval(), temperature=1.0, seed=0)
