"""The cost of a net in time: exported as it would be packaged, without a monitor, and measured on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import nn

from edgewright_runtime.runtime import open_session

from ..export.onnx import export_onnx
from ..graph.graph import plain
from ..measuring.latency import interleaved
from .workbench import Workbench

CALLS: Final = 200


def latency_of(bench: Workbench) -> Callable[[nn.Module], float]:
    """net → p50 of one sample in onnxruntime, in reference kernels. About 4 s a net, nearly all of it the export."""
    tensor = bench.recipe.input
    rows = bench.data.validation.inputs

    def cost(net: nn.Module) -> float:
        graph = plain(bench.recipe, bench.data, net, temperature=1.0, seed=bench.seed)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.onnx"
            example = torch.zeros(1, *tensor.shape, dtype=getattr(torch, tensor.dtype))
            export_onnx(graph, example, path, inputs=[tensor.name], outputs=[o.name for o in graph.outputs])
            session = open_session(path, "onnxruntime", inputs=(tensor,), outputs=graph.outputs)
            return interleaved({"net": session}, rows, calls=CALLS)["net"].per_reference

    return cost
