"""The graph that a package carries: raw rows in, the task's outputs and the monitor out.

Guarantee: what quantization may touch are the modules under `net`, and no tensor that the quantized net reads is read
by the monitor or by a head: such a tensor would reach them rounded and clipped to the calibrated range, and an input
that leaves that range is what they are there to see. Equal (recipe, data, net, seed) give an equal graph.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import TensorOut

from ..recipe import Recipe
from ..rows import Array, Data
from .features import Feature, by_frequency, of_monitor, of_outputs
from .heads import ANOMALY_QUANTILE, Head, head, reconstruction_error
from .monitor import Monitor, fit_embedding
from .reference import batch_size
from .statistics import statistics
from .tap import Tapped

FIT_ROWS: Final = 8192  # the monitor's and the head's constants come from at most so many augmented training rows,
FIT_ELEMENTS: Final = 2**28  # of at most so many elements in all
ROUNDS: Final = 8  # and from at most so many augmented copies of each
_HUGE: Final = 1e30


class Plain(nn.Module):
    """raw rows → the task's outputs, without monitor: what a teacher is exported as, and the graph's cost compared.

    `apart`: the net's input has another reader, so it needs a copy of its own before it is quantized.
    """

    def __init__(self, front: nn.Module, net: nn.Module, head: Head, *, apart: bool = False) -> None:
        super().__init__()
        self.apart = apart or head.reads_input
        self.front = front
        self.net = net if isinstance(net, Tapped) else Tapped(net)
        self.head = head

    @property
    def outputs(self) -> tuple[TensorOut, ...]:
        return self.head.outputs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.answered(x)[2]

    def answered(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """(answer, embedding, outputs)."""
        prepared = self.front(x)
        read = prepared
        if self.apart and prepared.is_floating_point():
            # One operator that changes nothing, so that the net's input, which will be quantized, is a tensor apart.
            read = torch.clamp(prepared, -_HUGE, _HUGE)
        answer, embedding = self.net(read)
        return answer, embedding, self.head(answer, prepared)


class Graph(Plain):
    """raw rows → (*outputs, monitor). A front that does more than cast and move axes may do without `apart`."""

    def __init__(self, front: nn.Module, net: nn.Module, head: Head, monitor: Monitor, *, apart: bool = True) -> None:
        super().__init__(front, net, head, apart=apart)
        self.monitor = monitor

    @property
    def outputs(self) -> tuple[TensorOut, ...]:
        columns = len(self.monitor.columns)
        return (*self.head.outputs, TensorOut(name="monitor", role="monitor", shape=(columns,)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        answer, embedding, outputs = self.answered(x)
        return (*outputs, self.monitor(x, embedding, answer, outputs))


@dataclass(frozen=True, slots=True)
class Assembled:
    """The graph in eval mode, what it declares, and the channels to count, before they have edges."""

    graph: Graph
    outputs: tuple[TensorOut, ...]
    features: tuple[Feature, ...]


def plain(recipe: Recipe, data: Data, net: nn.Module, *, temperature: float, seed: int) -> Plain:
    """`net` as it is exported without a monitor. Raises as `assemble`. Two rows show its shapes; only an anomaly score
    needs training rows to scale it."""
    if recipe.task == "anomaly":
        raw, labels = fitting_rows(recipe, data, seed)
    else:
        raw, labels = data.train.inputs[recipe.input.name][:2], data.train.labels
    front = recipe.front(data).eval()
    tapped = (net if isinstance(net, Tapped) else Tapped(net)).eval()
    ran = _run(front, tapped, raw)
    return Plain(front, tapped, _head(recipe, data, ran, labels, temperature)).eval()


def assemble(recipe: Recipe, data: Data, net: nn.Module, *, temperature: float, seed: int) -> Assembled:
    """Put `net` between the recipe's front and the task's head, and beside them a monitor that knows what it knew: its
    constants come from augmented training rows.

    Raises RequestError for an answer of the wrong shape, labels that the answer has no place for, an embedding that is
    not there, not finite or constant, or an input that its statistics do not take. One forward pass over FIT_ROWS.
    """
    raw, labels = fitting_rows(recipe, data, seed)
    front = recipe.front(data).eval()
    tapped = (net if isinstance(net, Tapped) else Tapped(net)).eval()
    ran = _run(front, tapped, raw)
    top = _head(recipe, data, ran, labels, temperature)
    classes = labels.astype(np.int64) if recipe.task == "classification" else None
    monitor = Monitor(statistics(recipe.statistics, recipe.input, raw), fit_embedding(ran.embedding, classes), top)
    graph = Graph(front, tapped, top, monitor, apart=ran.untouched).eval()
    frequent: tuple[int, ...] = ()
    if recipe.task == "classification":
        frequent = by_frequency(data.train.labels)
    elif recipe.task == "detection":
        frequent = by_frequency(data.train.labels[..., 0].astype(np.int64))
    size = ran.shape[-1] - (4 if recipe.task == "detection" else 0)
    told = (*of_monitor(monitor.columns), *of_outputs(recipe.task, size=size, frequent=frequent))
    return Assembled(graph, graph.outputs, told)


def fitting_rows(recipe: Recipe, data: Data, seed: int) -> tuple[Array, Array]:
    """Training rows as a device would show them, and their labels: at most FIT_ROWS, each row up to ROUNDS times."""
    rows, labels = data.train.inputs[recipe.input.name], data.train.labels
    most = max(2, min(FIT_ROWS, FIT_ELEMENTS // max(1, math.prod(rows.shape[1:]))))
    if len(rows) < 2:
        raise RequestError(f"expected at least 2 training rows to fit the monitor on, got {len(rows)}")

    def generator(turn: int) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(b"monitor"), turn])

    if len(rows) > most:
        at = np.sort(generator(ROUNDS).choice(len(rows), most, replace=False))
        rows, labels = rows[at], labels[at]
    if recipe.augment is None:
        return rows, labels
    rounds = max(1, min(ROUNDS, most // len(rows)))
    seen = np.concatenate([recipe.augment(generator(turn), rows) for turn in range(rounds)])
    if seen.dtype != rows.dtype or seen.shape[1:] != rows.shape[1:]:
        raise RequestError(
            f"augment: expected rows {rows.shape[1:]} of {rows.dtype}, as it was given, "
            f"got {seen.shape[1:]} of {seen.dtype}"
        )
    return seen, np.concatenate([labels] * rounds)


@dataclass(frozen=True, slots=True)
class _Ran:
    answer: Tensor  # of the first batch, for its shape
    prepared: Tensor
    shape: tuple[int, ...]
    untouched: bool  # the front only casts or moves axes, so an exporter would share its result with the monitor
    embedding: npt.NDArray[np.float32]
    errors: npt.NDArray[np.float32] | None  # of a reconstruction, where shapes agree


@torch.no_grad()
def _run(front: nn.Module, net: Tapped, raw: Array) -> _Ran:
    embeddings, errors, first, untouched = [], [], None, False
    size = batch_size(math.prod(raw.shape[1:]))
    for rows in torch.split(torch.from_numpy(np.ascontiguousarray(raw)), size):
        prepared = front(rows)
        answer, embedding = net(prepared)
        if first is None:
            first = answer, prepared
            untouched = _untouched(rows, prepared)
        embeddings.append(embedding.numpy())
        if answer.shape == prepared.shape:
            errors.append(reconstruction_error(answer, prepared)[:, 0].numpy())
    assert first is not None
    found = np.concatenate(embeddings)
    return _Ran(*first, tuple(first[0].shape), untouched, found, np.concatenate(errors) if errors else None)


def _untouched(raw: Tensor, prepared: Tensor) -> bool:
    if raw.numel() != prepared.numel():
        return False
    return torch.equal(raw.flatten().to(prepared.dtype).sort().values, prepared.flatten().sort().values)


def _head(recipe: Recipe, data: Data, ran: _Ran, labels: Array, temperature: float) -> Head:
    scale = 1.0
    if recipe.task == "anomaly" and ran.errors is not None:
        scale = float(np.quantile(ran.errors.astype(np.float64), ANOMALY_QUANTILE))
        if not 0 < scale < np.inf:
            raise RequestError(
                f"the reconstruction error of the training rows is {scale} at its {ANOMALY_QUANTILE:.0%} quantile: "
                "expected a finite number above 0"
            )
    top = head(recipe.task, ran.answer, ran.prepared, labels=len(data.labels), temperature=temperature, scale=scale)
    if recipe.task == "classification":
        _in_range(labels, ran.shape[-1])
    return top


def _in_range(labels: Array, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise RequestError(f"expected labels in 0..{classes - 1}, got {low if low < 0 else high} in the training rows")
