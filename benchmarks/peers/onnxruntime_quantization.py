"""onnxruntime's own quantization, by its documentation: pre-process, then static with QDQ, or dynamic.

Static is given what the documentation recommends for x86 instead of the function's defaults: unsigned activations
(U8S8), weights per channel, min-max over the calibration rows. Dynamic is the function as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgewright_compiler.graph.reference import batches

from .given import Given, tidied


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def static(given: Given, target: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(given.file.path), str(prepared), skip_symbolic_shape=True)  # for transformers
        quantize_static(
            str(prepared),
            str(target),
            Reader(batches(given.bench.calibration)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    tidied(target)
    return {"calibration_rows": given.bench.recipe.calibration}


def dynamic(given: Given, target: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(given.file.path), str(prepared), skip_symbolic_shape=True)  # for transformers
        quantize_dynamic(str(prepared), str(target))
    tidied(target)
    return {}
