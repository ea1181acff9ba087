"""A net of `sim.nets` as it is exported: an answer beside a float monitor, and what torch says about its rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewright_compiler.export.onnx import export_onnx
from edgewright_compiler.export.tflite import export_tflite
from edgewright_compiler.graph.tap import Tapped
from edgewright_compiler.quiet import quiet
from edgewright_contracts.manifest import TensorIn, TensorOut
from edgewright_runtime.runtime import Session, open_session

from .nets import Case

Array = npt.NDArray[np.generic]
RUNTIME = {".onnx": "onnxruntime", ".tflite": "litert"}


class Graph(nn.Module):
    """(answer, monitor [n, 8]): the net at path "net", the monitor at "monitor"; softmax where there are classes."""

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.net = Tapped(net)
        answer, embedding = self.net.eval()(example)
        self.classes = answer.ndim == 2
        self.monitor = nn.Linear(embedding.shape[1], 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        answer, embedding = self.net(x)
        return torch.softmax(answer, 1) if self.classes else answer, self.monitor(embedding)


def settled(case: Case, seed: int = 1) -> Graph:
    """The graph of a case: untrained, but its normalisation has seen the rows."""
    torch.manual_seed(seed)
    net = case.build().train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.from_numpy(case.rows))
    return Graph(net, case.example).eval()


def expected(graph: Graph, rows: Array) -> dict[str, Array]:
    with torch.no_grad():
        answer, monitor = graph(torch.from_numpy(rows))
    return {"answer": answer.numpy(), "monitor": monitor.numpy()}


def opened(path: Path, like: Mapping[str, Array], rows: Array) -> Session:
    inputs = (TensorIn(name="x", dtype=str(rows.dtype), shape=rows.shape[1:]),)  # type: ignore[arg-type]
    outputs = tuple(TensorOut(name=name, role="values", shape=array.shape[1:]) for name, array in like.items())
    return open_session(path, RUNTIME[path.suffix], inputs=inputs, outputs=outputs)


def answered(path: Path, like: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    return opened(path, like, rows).run({"x": rows})


class Exported(NamedTuple):
    graph: Graph
    onnx: Path
    tflite: Path
    expected: dict[str, Array]


def exported(case: Case, folder: Path) -> Exported:
    """Both files of the settled graph of a case. About 6 s."""
    graph = settled(case)
    export_onnx(graph, case.example, folder / "m.onnx", inputs=["x"], outputs=["answer", "monitor"])
    with quiet():
        export_tflite(graph, case.example, folder / "m.tflite")
    return Exported(graph, folder / "m.onnx", folder / "m.tflite", expected(graph, case.rows))
