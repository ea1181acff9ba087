"""A finished file as this compiler works on it: one format, samples first, all sizes settled, float where it came so.

An exported program (.pt2) becomes ONNX where the device runs that, else TFLite.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.manifest import Format
from edgewright_devices import DeviceProfile

from ..quantization.apply import quantize
from ..quantization.schemes import Scheme
from . import surgery
from .borders import Border, Shapes, known, onnx_inputs, tflite_borders
from .samples import synthetic

RUNTIME: Mapping[Format, str] = {"onnx": "onnxruntime", "tflite": "litert"}


@dataclass(frozen=True, slots=True)
class Form:
    """`quantized`: it came so, and is left as it is."""

    path: Path
    format: Format
    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]
    quantized: bool
    notes: tuple[str, ...]


def form_of(
    model: Path, device: DeviceProfile, scratch: Path, *, shapes: Shapes, fixed: Mapping[str, float], seed: int
) -> Form:
    """Raises RequestError for a file that cannot be read or settled, Refused when the device has no runtime for it."""
    if not model.is_file():
        raise RequestError(f"{model}: no such model file")
    notes: list[str] = []
    source = model
    if model.suffix == ".pt2":
        source = _exported(model, device, scratch)
        notes.append(f"Exported from {model.name} to {source.suffix[1:].upper()}.")
    if source.suffix not in (".onnx", ".tflite"):
        raise RequestError(f"{model}: expected a finished model, .onnx, .tflite or .pt2")
    fmt: Format = "onnx" if source.suffix == ".onnx" else "tflite"
    runs = [r for r in device.runtimes if (r == "onnxruntime") == (fmt == "onnx")]
    if not runs:
        raise Refused(
            f"{device.name} runs {', '.join(device.runtimes)} only, and {model.name} is {fmt}: export the model to the "
            "other format"
        )
    base = scratch / "source" / f"{model.stem}.{fmt}"  # messages of others name it
    base.parent.mkdir()
    if fmt == "onnx":
        raw = surgery.session(source)
        if fixed:
            known(model, fixed, [i.name for i in raw.get_inputs()])
            surgery.fix(source, scratch / "fixed.onnx", fixed)
            source = scratch / "fixed.onnx"
            raw = surgery.session(source)
            notes += [f"Input {name} is fixed to {value:g}." for name, value in fixed.items()]
        asked, picked = onnx_inputs(model, raw, shapes)
        inputs, outputs = surgery.settle(source, base, asked, synthetic(asked, seed, 2))
        notes += picked
        moved = [b.name for b in asked if b.axis not in (0, None)]
        notes += [f"The batch of {', '.join(moved)} was moved to the front."] if moved else []
    else:
        if fixed:
            raise RequestError(f"{model}: --fix is for ONNX; the inputs of a TFLite file stay as they are")
        inputs, outputs = tflite_borders(model, shapes)
        base.write_bytes(source.read_bytes())
    return Form(base, fmt, inputs, outputs, _quantized(base, fmt, inputs, seed), tuple(notes))


def _quantized(base: Path, fmt: Format, inputs: tuple[Border, ...], seed: int) -> bool:
    """Does the quantizer call it quantized already? It refuses such a file in words of its own."""
    plain = Scheme(format=fmt, precision="fp32", method="none")
    target = base.with_name(f"plain.{fmt}")
    try:
        quantize(plain, base, target, synthetic(inputs, seed, 2), scope=None)
    except Refused as error:
        if "already quantized" in str(error):
            return True
        raise
    target.unlink()
    return False


def _exported(model: Path, device: DeviceProfile, scratch: Path) -> Path:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program: Any = torch.export.load(str(model))
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RequestError(f"{model}: not an exported program of torch.export.save ({reason})") from None
        if "onnxruntime" in device.runtimes:
            target = scratch / "exported.onnx"
            made = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
            assert made is not None
            made.save(str(target))
            return target
        import litert_torch

        if program.example_inputs is None:
            raise RequestError(f"{model}: holds no example inputs, which TFLite needs: save it with torch.export.save")
        args, _ = program.example_inputs
        target = scratch / "exported.tflite"
        litert_torch.convert(program.module(), tuple(a[:1] for a in args)).export(str(target))
        return target
