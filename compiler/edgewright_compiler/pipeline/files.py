"""Model files: one that a step has made, and what a scheme makes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.errors import Refused
from edgewright_contracts.manifest import Format, TensorIn, TensorOut
from edgewright_runtime.runtime import Session, open_session

from ..quantization.apply import quantize
from ..quantization.schemes import Scheme
from .steps import Step
from .workbench import QUANTIZERS, QUANTIZING, Workbench

HOST_RUNTIME: Final[dict[Format, str]] = {"onnx": "onnxruntime", "tflite": "litert"}
NAMES: Final[dict[Format, str]] = {"onnx": "ONNX", "tflite": "TFLite"}
_REFUSED: Final = "refused.json"


@dataclass(frozen=True, slots=True)
class File:
    """One model file: the step that made it, where it is, and what it declares."""

    step: str
    path: Path
    input: TensorIn
    outputs: tuple[TensorOut, ...]
    alone: bool = False  # it finds ranges when it runs, so rows must not be run beside one another

    def open(self) -> Session:
        runtime = HOST_RUNTIME["onnx" if self.path.suffix == ".onnx" else "tflite"]
        return open_session(self.path, runtime, inputs=(self.input,), outputs=self.outputs)


@dataclass(frozen=True, slots=True)
class Made:
    """A scheme's file, or why there is none."""

    scheme: Scheme
    file: File | None
    refused: str = ""


def made(bench: Workbench, source: File, scheme: Scheme) -> Made:
    """What `scheme` makes of `source`, an export with all its names; a refusal is remembered like a file.

    The scheme without a method leaves the numbers as they are and takes the names out, which nobody downloads for.
    """
    facts = bench.facts(
        QUANTIZING, QUANTIZERS, source=source.step, scheme=asdict(scheme), calibration=bench.recipe.calibration
    )
    step = Step(scheme.precision, facts)

    def make(part: Path) -> None:
        try:
            quantize(scheme, source.path, part / source.path.name, bench.calibration)
        except Refused as reason:
            (part / _REFUSED).write_bytes(msgspec.json.encode(str(reason)))

    directory = bench.store.get(step, make)
    if (directory / _REFUSED).is_file():
        return Made(scheme, None, msgspec.json.decode((directory / _REFUSED).read_bytes(), type=str))
    alone = scheme.format == "onnx" and scheme.method == "dynamic"
    return Made(scheme, File(step.name, directory / source.path.name, source.input, source.outputs, alone))
