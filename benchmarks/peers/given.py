"""What every peer is given, and what becomes of its file: both the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from edgewright_compiler.graph.graph import Plain, plain
from edgewright_compiler.pipeline.build import File
from edgewright_compiler.pipeline.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Given:
    """A trained float net; `file` is the same as ONNX: raw rows in, probabilities out, without a monitor.

    `small_enough` says when pruning may stop, and `until` says it in words.
    """

    bench: Workbench
    net: nn.Module
    file: File
    small_enough: Callable[[nn.Module], bool]
    until: str

    def graph(self, net: nn.Module) -> Plain:
        """`net` between the recipe's own front and head, as `file` was exported."""
        return plain(self.bench.recipe, self.bench.data, net, temperature=1.0, seed=self.bench.seed)


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
