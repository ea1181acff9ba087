"""Steps that make files of a net: the graph around it, exported to each format, without a choice yet.

The graph itself is not kept: it is put together again, equal, from the net and the training rows whenever one of its
files has to be made. What it declares is kept, so that a finished file can be used without it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import nn

from edgewright_contracts.built import built
from edgewright_contracts.errors import Refused
from edgewright_contracts.manifest import Format, TensorIn, TensorOut

from ..export.onnx import export_onnx
from ..export.tflite import export_tflite
from ..graph.features import Feature
from ..graph.graph import Assembled, Plain, assemble, plain
from ..measuring.calibration import temperature
from ..quantization.schemes import Kinds, Scheme, layer_kinds
from ..training.train import answers
from .files import NAMES, File, made
from .learn import Learned
from .steps import Step
from .workbench import BUILDING, EXPORTERS, HEATED, Workbench

_META: Final = "graph.json"


class Declared(msgspec.Struct, frozen=True):
    """What a graph says of itself."""

    temperature: float
    outputs: tuple[TensorOut, ...]
    features: tuple[Feature, ...]


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
        return self._at(self.declared.temperature)

    def _at(self, heat: float) -> Assembled:
        bench = self.bench
        return bench.once(
            f"{self.learned.step} at {heat}",
            lambda: assemble(bench.recipe, bench.data, self.net, temperature=heat, seed=bench.seed),
        )

    @cached_property
    def declared(self) -> Declared:
        return msgspec.json.decode((self._declared_in / _META).read_bytes(), type=built(Declared))

    @cached_property
    def _declared_in(self) -> Path:
        bench = self.bench
        step = Step("graph", bench.facts(HEATED, EXPORTERS, net=self.learned.step))

        def make(part: Path) -> None:
            rows = bench.data.validation
            logits, _ = answers(self.net, bench.front, rows.inputs[bench.recipe.input.name])
            heat = temperature(logits, rows.labels, bench.recipe.task)
            made = self._at(heat)
            (part / _META).write_bytes(msgspec.json.encode(Declared(heat, made.outputs, made.features)))

        return bench.store.get(step, make)

    def source(self, form: Format) -> File:
        """The export that schemes are made of. Raises Refused for an operator that the format lacks."""
        facts = self.bench.facts(BUILDING, EXPORTERS, net=self._declared_in.name)
        step = Step(form, facts)
        path = self.bench.store.get(step, lambda part: self._export(self.assembled.graph, form, part))
        return File(step.name, path / f"model.{form}", self.bench.recipe.input, self.declared.outputs)

    def bare_source(self, form: Format, heat: float = 1.0) -> File:
        """The same without a monitor: what the monitor costs is measured against it, and a reference is one."""
        bench = self.bench
        graph = plain(bench.recipe, bench.data, self.net, temperature=heat, seed=bench.seed)
        step = Step(form, bench.facts(BUILDING, EXPORTERS, net=self.learned.step, temperature=heat, monitor=False))
        path = bench.store.get(step, lambda part: self._export(graph, form, part))
        return File(step.name, path / f"model.{form}", bench.recipe.input, graph.outputs)

    def file(self, form: Format) -> File:
        """The float file that is packaged, monitor included."""
        return self._float(self.source(form), form)

    def without_monitor(self, form: Format, heat: float = 1.0) -> File:
        return self._float(self.bare_source(form, heat), form)

    def _float(self, source: File, form: Format) -> File:
        done = made(self.bench, source, float_of(form))
        if done.file is None:
            raise Refused(f"the float file of {form} is not taken by its runtime: {done.refused}")
        return done.file

    def _export(self, graph: Plain, form: Format, part: Path) -> None:
        say = self.bench.progress(f"exporting {NAMES[form]}")
        say(0.0)
        export(graph, self.bench.recipe.input, form, part)
        say(1.0)


def export(graph: Plain, tensor: TensorIn, form: Format, directory: Path) -> Path:
    """The file that was written. Raises Refused for an operator that the format lacks."""
    example = torch.zeros(1, *tensor.shape, dtype=getattr(torch, tensor.dtype))
    target = directory / f"model.{form}"
    if form == "onnx":
        names = [output.name for output in graph.outputs]
        export_onnx(graph, example, target, inputs=[tensor.name], outputs=names)
    else:
        export_tflite(graph, example, target)
    return target


def float_of(form: Format) -> Scheme:
    return Scheme(format=form, precision="fp32", method="none")
