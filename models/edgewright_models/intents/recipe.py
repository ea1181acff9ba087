"""Intents, from the sentences to what the compiler packages. Read from top to bottom.

The graph takes bytes and hashes every three of them to a row of an embedding table, so no tokenizer has to travel with
the package. The teacher is a transformer (Vaswani et al. 2017, arXiv:1706.03762; normalised before each part, Xiong et
al. 2020, arXiv:2002.04745) over every fourth place; the student is one convolution over a narrow table and the largest
answer of each channel.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from edgewright_compiler.graph.blocks.text import HashedNgrams
from edgewright_compiler.recipe import Distil, Recipe, Schedule, Teacher
from edgewright_contracts.manifest import TensorIn

from . import data, templates

BUCKETS: Final = 2048
ORDER: Final = 3  # bytes
PLACES: Final = data.LENGTH - ORDER + 1
LABELS: Final = 27  # intents with enough templates
STRIDE: Final = 4  # the teacher looks at every fourth place
HEADS: Final = 4
TABLE_SPREAD: Final = 0.3  # of rows of the embedding table at the start


@dataclass(frozen=True, slots=True)
class Settings:
    """The defaults are the recipe. `teacher` is its width and number of layers, `student` those of table and
    convolution."""

    version: str = "1.0.0"
    teacher: tuple[int, int] = (64, 2)
    teacher_epochs: int = 10
    student: tuple[int, int] = (16, 32)
    epochs: int = 12


QUICK: Final = Settings(teacher=(32, 1), teacher_epochs=1, student=(8, 32), epochs=4)


def recipe(settings: Settings = Settings()) -> Recipe:
    facts = {name: value for name, value in asdict(settings).items() if name != "version"}
    return Recipe(
        name="intents",
        version=settings.version,
        task="classification",
        input=TensorIn(name="utterance", dtype="uint8", shape=(data.LENGTH,), unit="UTF-8 byte, zeros behind"),
        data=data.data,
        source=data.PIN[1],
        settings=", ".join(f"{name}={value}" for name, value in facts.items()),
        sources=(Path(__file__), Path(data.__file__), Path(templates.__file__)),
        front=lambda _rows: HashedNgrams(BUCKETS, orders=(ORDER,)),
        statistics="tokens",
        teacher=Teacher(
            build=lambda: Transformer(*settings.teacher),
            schedule=Schedule(
                epochs=settings.teacher_epochs, rate=2e-3, optimiser="adamw", weight_decay=1e-2, smoothing=0.05
            ),
        ),
        student=lambda width: Convolution(settings.student[0], max(8, 8 * round(settings.student[1] * width / 8))),
        schedule=Schedule(epochs=settings.epochs, rate=4e-3, optimiser="adamw", weight_decay=1e-2),
        distil=Distil(temperature=3.0, weight=0.8, copies=1),
        widths=(1.0, 0.5),
        notes=(
            "Intended use: a demonstration of text in the graph, and of a transformer that fits a small device.",
            "Limits: the sentences are expanded from templates; no figure here is one for what people really say.",
            "English only; every input gets an intent.",
        ),
    )


class Table(nn.Module):
    """Ids [n, places] → [n, width, places]; id 0 is nothing, and gives zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(BUCKETS, width)
        nn.init.normal_(self.rows.weight, std=TABLE_SPREAD)

    def forward(self, ids: Tensor) -> Tensor:
        there = ids.clamp(0, 1).unsqueeze(2).to(torch.float32)
        found: Tensor = self.rows(ids) * there
        return found.transpose(1, 2)


class Convolution(nn.Module):
    """Ids [n, places] → logits [n, k]."""

    def __init__(self, table: int, channels: int) -> None:
        super().__init__()
        self.table = Table(table)
        self.convolution = nn.Conv1d(table, channels, 5, stride=2, padding=2)
        self.head = nn.Linear(channels, LABELS)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.convolution(self.table(ids))).amax(2))
        return logits


class Transformer(nn.Module):
    """Ids [n, places] → logits [n, k]. While it learns, each id is left out with the chance `lost`."""

    def __init__(self, width: int, layers: int, *, lost: float = 0.15, dropout: float = 0.2) -> None:
        super().__init__()
        self.lost = lost
        self.table = Table(width)
        self.convolution = nn.Conv1d(width, width, 7, stride=STRIDE, padding=3)
        self.position = nn.Parameter(torch.randn(1, (PLACES - 1) // STRIDE + 1, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, LABELS)

    def forward(self, ids: Tensor) -> Tensor:
        if self.training:
            ids = ids * (torch.rand(ids.shape, device=ids.device) >= self.lost)
        x = self.convolution(self.table(ids)).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.layers(x)).amax(1))
        return logits


class Layer(nn.Module):
    """Attention, then two linear layers, each added to what it read: [n, t, width] → the same. Written out, because
    this form exports to both formats."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (_heads(of(y)) for of in (self.queries, self.keys, self.values))
        attention = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=3)
        x = x + self.dropout(self.mix((attention @ v).transpose(1, 2).flatten(2)))
        changed: Tensor = x + self.dropout(self.down(torch.relu(self.up(self.between(x)))))
        return changed


def _heads(x: Tensor) -> Tensor:
    """[n, t, width] → [n, heads, t, width / heads]."""
    return x.reshape(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)
