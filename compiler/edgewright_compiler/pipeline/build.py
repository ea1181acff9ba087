"""Steps that make files of a net: the graph around it, exported to each format, without a choice yet.

The graph itself is not kept: it is put together again, equal, from the net and the training rows whenever one of its
files has to be made. What it declares is kept, so that a finished file can be used without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import nn

from edgewright_contracts.manifest import Format, TensorIn, TensorOut
from edgewright_runtime.runtime import Session, open_session

from ..export.onnx import export_onnx
from ..export.tflite import export_tflite
from ..graph.features import Feature
from ..graph.graph import Assembled, Plain, assemble, plain
from ..measuring.calibration import temperature
from ..quantization.schemes import Kinds, layer_kinds
from ..training.train import answers
from .learn import Learned
from .steps import Step
from .workbench import BUILDING, EXPORTERS, Workbench

HOST_RUNTIME: Final[dict[Format, str]] = {"onnx": "onnxruntime", "tflite": "litert"}
_META: Final = "graph.json"
_NAMES: Final[dict[Format, str]] = {"onnx": "ONNX", "tflite": "TFLite"}


class Declared(msgspec.Struct, frozen=True):
    """What a graph says of itself."""

    temperature: float
    outputs: tuple[TensorOut, ...]
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class File:
    """One model file: the step that made it, where it is, and what it declares."""

    step: str
    path: Path
    input: TensorIn
    outputs: tuple[TensorOut, ...]

    def open(self) -> Session:
        runtime = HOST_RUNTIME["onnx" if self.path.suffix == ".onnx" else "tflite"]
        return open_session(self.path, runtime, inputs=(self.input,), outputs=self.outputs)


class Built:
    """The graph of one learned net and its float files, made when they are asked for."""

    def __init__(self, bench: Workbench, learned: Learned) -> None:
        self.bench = bench
        self.learned = learned

    @cached_property
    def net(self) -> nn.Module:
        return self.learned.net()

    @cached_property
    def kinds(self) -> Kinds:
        return layer_kinds(self.net)

    @cached_property
    def assembled(self) -> Assembled:
        bench = self.bench
        return assemble(bench.recipe, bench.data, self.net, temperature=self.declared.temperature, seed=bench.seed)

    @cached_property
    def declared(self) -> Declared:
        return msgspec.json.decode((self._declared_in / _META).read_bytes(), type=Declared)

    @cached_property
    def _declared_in(self) -> Path:
        bench = self.bench
        step = Step("graph", bench.facts((*BUILDING, "measuring/calibration.py"), EXPORTERS, net=self.learned.step))

        def make(part: Path) -> None:
            rows = bench.data.validation
            logits, _ = answers(self.net, bench.front, rows.inputs[bench.recipe.input.name])
            heat = temperature(logits, rows.labels, bench.recipe.task)
            made = assemble(bench.recipe, bench.data, self.net, temperature=heat, seed=bench.seed)
            (part / _META).write_bytes(msgspec.json.encode(Declared(heat, made.outputs, made.features)))

        return bench.store.get(step, make)

    def file(self, form: Format) -> File:
        """The float file that is packaged, monitor included. Raises Refused for an operator that the format lacks."""
        facts = self.bench.facts(BUILDING, EXPORTERS, net=self._declared_in.name)
        step = Step(form, facts)
        path = self.bench.store.get(step, lambda part: self._export(self.assembled.graph, form, part))
        return File(step.name, path / f"model.{form}", self.bench.recipe.input, self.declared.outputs)

    def without_monitor(self, form: Format, heat: float = 1.0) -> File:
        """The same without its monitor: what the monitor costs is measured against it, and a reference is one."""
        bench = self.bench
        graph = plain(bench.recipe, bench.data, self.net, temperature=heat, seed=bench.seed)
        step = Step(form, bench.facts(BUILDING, EXPORTERS, net=self.learned.step, temperature=heat, monitor=False))
        path = bench.store.get(step, lambda part: self._export(graph, form, part))
        return File(step.name, path / f"model.{form}", bench.recipe.input, graph.outputs)

    def _export(self, graph: Plain, form: Format, part: Path) -> None:
        tensor = self.bench.recipe.input
        say = self.bench.progress(f"exporting {_NAMES[form]}")
        say(0.0)
        example = torch.zeros(1, *tensor.shape, dtype=getattr(torch, tensor.dtype))
        target = part / f"model.{form}"
        if form == "onnx":
            names = [output.name for output in graph.outputs]
            export_onnx(graph, example, target, inputs=[tensor.name], outputs=names)
        else:
            export_tflite(graph, example, target)
        say(1.0)
