"""What every peer is given, and what becomes of its file: both the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from edgewright_compiler.graph.graph import Plain, assemble, plain
from edgewright_compiler.measuring.counted import Counted
from edgewright_compiler.pipeline.build import Built
from edgewright_compiler.pipeline.files import File
from edgewright_compiler.pipeline.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Given:
    """A trained float net, as module and as ONNX file: raw rows in, probabilities at temperature `heat` out, and what
    the monitor says if it is `monitored`.

    Who takes weights out of it aims at a `cost` of `goal`, which `until` says in words.
    """

    built: Built
    monitored: bool
    heat: float
    cost: Callable[[Counted], float]
    goal: float
    until: str

    @property
    def bench(self) -> Workbench:
        return self.built.bench

    @property
    def file(self) -> File:
        return self.built.file("onnx") if self.monitored else self.built.without_monitor("onnx", self.heat)

    def graph(self, net: nn.Module) -> Plain:
        """`net` as `file` was exported: the recipe's own front before it, its head and monitor behind."""
        recipe, data, seed = self.bench.recipe, self.bench.data, self.bench.seed
        if self.monitored:
            return assemble(recipe, data, net, temperature=self.heat, seed=seed).graph
        return plain(recipe, data, net, temperature=self.heat, seed=seed)


def tidied(path: Path) -> None:
    """Take out of a peer's file what no runtime reads: traces of its makers, shapes of inner tensors, remarks."""
    model = onnx.load(str(path))
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in graph.initializer:
        tensor.doc_string = ""
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:], graph.quantization_annotation[:]
    model.doc_string = graph.doc_string = ""
    path.write_bytes(model.SerializeToString(deterministic=True))
