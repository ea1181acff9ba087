"""Tiny nets of every kind that the compiler must hold for, with seeded rows and labels that can be learned.

Each answers by the contract of `edgewright_compiler.recipe`. A case is a few thousand products large: training one for
an epoch takes well under a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright_contracts.manifest import Task

ROWS: Final = 96
CLASSES: Final = 3
Array = npt.NDArray[np.generic]


class Cnn(nn.Module):
    """[n, 1, 8, 8] → logits [n, 3]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.embed = nn.Linear(8 * width, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = torch.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        return self.head(torch.relu(self.embed(x.flatten(1))))


class ResidualDepthwise(nn.Module):
    """[n, 3, 8, 8] → logits [n, 3]: a stem, two inverted residual blocks, mean over space."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width, 2 * width, 1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.ReLU(),
                nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.ReLU(),
                nn.Conv2d(2 * width, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(self.Block(width), self.Block(width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ConvGru(nn.Module):
    """Series [n, 24, 4] → logits [n, 3]: two Conv1d, a GRU, its last state."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(4, width, 5, padding=2), nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.gru = nn.GRU(width, 16, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x.transpose(1, 2))))
        out, _ = self.gru(torch.relu(self.conv2(x)).transpose(1, 2))
        return self.head(out[:, -1])


class Mlp(nn.Module):
    """Vector [n, 6] → [n, out]."""

    def __init__(self, out: int = 2, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class Transformer(nn.Module):
    """Token ids [n, 12] below 50 → logits [n, 3]; `embedding` names its pooled output."""

    embedding = "pool"

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, width)
        self.places = nn.Parameter(torch.zeros(1, 12, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.pool = nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places
        h = self.norm1(h + self.attention(h, h, h, need_weights=False)[0])
        h = self.norm2(h + self.narrow(functional.gelu(self.wide(h))))
        return self.head(torch.tanh(self.pool(h.mean(1))))


class Autoencoder(nn.Module):
    """Vector [n, 6] → its reconstruction [n, 6]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
        self.up = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Detector(nn.Module):
    """[n, 1, 16, 16] → [n, 16, 4 + 2]: one box for each cell of 4 × 4, x0, y0, x1, y1, then two class logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2, padding=1)
        )
        self.head = nn.Conv2d(width, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.head(torch.relu(self.body(x))).flatten(2).transpose(1, 2)
        return torch.cat([torch.sigmoid(cells[..., :4]), cells[..., 4:]], dim=2)

    def loss(self, answer: Tensor, labels: Tensor) -> Tensor:
        """The cell of an object's centre answers for it; all others for nothing."""
        wanted = torch.zeros_like(answer[..., 4:])
        row, place = torch.nonzero(labels[..., 0] >= 0, as_tuple=True)
        objects = labels[row, place]
        centre = ((objects[:, 1:3] + objects[:, 3:5]) / 2 * 4).long().clamp(0, 3)
        cell = centre[:, 1] * 4 + centre[:, 0]
        wanted[row, cell, objects[:, 0].long()] = 1.0
        boxes = functional.l1_loss(answer[row, cell, :4], objects[:, 1:], reduction="sum") / max(1, len(row))
        return boxes + functional.binary_cross_entropy_with_logits(answer[..., 4:], wanted)


@dataclass(frozen=True)
class Case:
    """`build` takes a width where nothing is fixed by the task; rows are what the net reads: its front is identity."""

    name: str
    task: Task
    build: Callable[..., nn.Module]
    rows: Array
    labels: Array

    @property
    def example(self) -> Tensor:
        return torch.from_numpy(self.rows[:1])


def _images(channels: int, side: int) -> tuple[Array, Array]:
    """A bright row of pixels, at a height that is the class."""
    rng = np.random.default_rng([7, channels, side])
    labels = np.arange(ROWS) % CLASSES
    rows = rng.normal(0, 0.5, (ROWS, channels, side, side)).astype(np.float32)
    for k in range(CLASSES):
        rows[labels == k, :, 1 + 2 * k] += 1.5
    return rows, labels.astype(np.int64)


def _series() -> tuple[Array, Array]:
    """A sine whose frequency is the class."""
    rng = np.random.default_rng(8)
    labels = np.arange(ROWS) % CLASSES
    t = np.arange(24)[None, :, None] / 24
    phase = rng.uniform(0, 2 * np.pi, (ROWS, 1, 4))
    rows = np.sin(2 * np.pi * t * (1 + 2 * labels)[:, None, None] + phase) + rng.normal(0, 0.2, (ROWS, 24, 4))
    return rows.astype(np.float32), labels.astype(np.int64)


def _vectors() -> tuple[Array, Array]:
    """Six columns that three numbers make, and two values linear in them."""
    rng = np.random.default_rng(9)
    hidden = rng.normal(0, 1, (ROWS, 3))
    rows = hidden @ rng.normal(0, 1, (3, 6)) + rng.normal(0, 0.05, (ROWS, 6))
    return rows.astype(np.float32), (2 * hidden[:, :2] + 1).astype(np.float32)


def _tokens() -> tuple[Array, Array]:
    """Ids of which a few belong to the class."""
    rng = np.random.default_rng(10)
    labels = np.arange(ROWS) % CLASSES
    rows = rng.integers(10, 50, (ROWS, 12))
    rows[:, 3:5] = (1 + 2 * labels)[:, None]
    return rows.astype(np.int64), labels.astype(np.int64)


def _scenes() -> tuple[Array, Array]:
    """One bright box, or two, in an image: labels [n, 2, 5], class -1 fills up."""
    rng = np.random.default_rng(11)
    rows = rng.normal(0, 0.1, (ROWS, 1, 16, 16)).astype(np.float32)
    labels = np.full((ROWS, 2, 5), -1, np.float32)
    for i in range(ROWS):
        for k in range(1 + i % 2):
            x, y = rng.integers(0, 12, 2)
            rows[i, 0, y : y + 4, x : x + 4] += 1.0 if k == 0 else -1.0
            labels[i, k] = k, x / 16, y / 16, (x + 4) / 16, (y + 4) / 16
    return rows, labels


def zoo() -> tuple[Case, ...]:
    """One case of each kind: all five tasks, all kinds of layer. Equal on every call."""
    vectors, values = _vectors()
    return (
        Case("cnn", "classification", Cnn, *_images(1, 8)),
        Case("depthwise", "classification", ResidualDepthwise, *_images(3, 8)),
        Case("gru", "classification", ConvGru, *_series()),
        Case("mlp", "regression", Mlp, vectors, values),
        Case("tagger", "multilabel", Mlp, vectors, (values > 1).astype(np.float32)),
        Case("transformer", "classification", Transformer, *_tokens()),
        Case("autoencoder", "anomaly", Autoencoder, vectors, np.zeros(ROWS, np.int64)),
        Case("detector", "detection", Detector, *_scenes()),
    )


def case(name: str) -> Case:
    return next(one for one in zoo() if one.name == name)
