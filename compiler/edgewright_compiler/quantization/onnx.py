"""ONNX files quantized by onnxruntime: static QDQ with 8-bit weights per channel, and dynamic.

Two things follow for every file that comes out. onnxruntime's own offline optimisation, at the level that does not
depend on this machine, is kept when it makes the file smaller and every answer stays the same bit for bit: the fused
file of one net was 20 % smaller and loaded in half of the time. And inner names go: they are a fifth of a small file.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

from edgewright_contracts.errors import ContractError, Refused
from edgewright_runtime.runtime import names_by_position

from ..export.onnx_rewrites import scaled_inputs
from ..rows import Array, Rows, count
from .onnx_file import all_nodes, prepare, write
from .onnx_nodes import DYNAMIC_OPS, QUANTIZED_OPS, STATIC_OPS, chosen, fresh, kinds, layers
from .schemes import Scheme

__all__ = ["batches", "kinds", "layers", "make", "prove"]  # what a back end offers

BATCH: Final = 32
COMPARED: Final = 64  # rows on which an optimised file must answer as before

# The library's own settings by entropy (as many bins as levels) leave nothing to choose and are min-max; its percentile
# takes ranges around 0, which wastes half of the levels behind a rectifier, and cuts nothing off 100,000 values.
_HISTOGRAM: Final[dict[str, dict[str, Any]]] = {
    "minmax": {},
    "percentile": {"num_bins": 2048, "percentile": 99.99, "symmetric": False},
    "entropy": {"num_bins": 256, "num_quantized_bins": 128},
}

_METHODS: Final = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


def make(
    scheme: Scheme, source: Path, target: Path, calibration: Rows, scope: str | None, ranges: Path | None = None
) -> None:
    """Write `target`; see `apply.quantize`."""
    onnxruntime.set_default_logger_severity(3)  # it warns about what it removes
    model = onnx.load(str(source))
    fresh(model, source)
    if scheme.method == "none":
        write(model, target)
        return
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        prepare(model, source, prepared, scope)
        model = onnx.load(str(prepared))
        nodes = chosen(model, scheme, source, scope)
        made = Path(scratch) / "made.onnx"
        if scheme.method == "dynamic":
            _dynamic(scheme, prepared, made, nodes)
        else:
            ranges = ranges or Path(scratch) / "ranges.json"
            with contextlib.redirect_stdout(io.StringIO()):  # histograms are announced with print
                if not ranges.is_file():
                    _calibrate(scheme, prepared, calibration, ranges)
                quantize_static(
                    str(prepared),
                    str(made),
                    None,
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=STATIC_OPS,
                    per_channel=True,
                    reduce_range=scheme.reduce_range,
                    activation_type=QuantType.QInt8 if scheme.activations == "s8" else QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_quantize=nodes,
                    calibrate_method=_METHODS[scheme.calibration or "minmax"],
                    calibration_cache_path=ranges,
                )
        final, quantized = Path(scratch) / "final.onnx", onnx.load(str(made))
        if not any(n.op_type in QUANTIZED_OPS or "Quantize" in n.op_type for n in all_nodes(quantized.graph)):
            raise Refused(f"{scheme.id}: no layer of {source.name} has such a form in onnxruntime; package it in float")
        scaled_inputs(quantized)
        write(quantized, final)
        if scheme.activations != "s8":  # on x86 the optimiser turns signed activations into unsigned ones
            _optimise(final, calibration)
        target.write_bytes(final.read_bytes())


def prove(target: Path, calibration: Rows) -> None:
    """Load the file and let it answer the first rows. Whatever onnxruntime throws passes through."""
    session = _session(target)
    for feed in batches(target, {name: rows[:2] for name, rows in calibration.items()}):
        session.run(None, feed)


def batches(model: Path, rows: Rows) -> Iterator[dict[str, Any]]:
    """Feeds for the file, under its own names and with as many rows as it takes: its batch where that is fixed, one
    bare sample where it has no batch axis. Raises ContractError when rows do not fit its inputs."""
    session = _session(model)
    inputs = session.get_inputs()
    names = names_by_position(tuple(rows), [i.name for i in inputs], what=f"inputs of {model.name}")
    pairs = [
        (name, next(i for i in inputs if i.name == name), rows[ours]) for name, ours in zip(names, rows, strict=True)
    ]
    bare = {name: len(i.shape) == array.ndim - 1 for name, i, array in pairs}
    for name, node, array in pairs:
        if not bare[name] and len(node.shape) != array.ndim:
            raise ContractError(f"calibration.{name}", f"rows of shape {node.shape}", f"shape {array.shape}")
    fixed = [i.shape[0] for name, i, _ in pairs if not bare[name] and isinstance(i.shape[0], int)]
    n = count(rows)
    # Histograms need batches of one size: the largest up to BATCH that divides the rows.
    even = max(k for k in range(1, BATCH + 1) if n % k == 0)
    step = 1 if any(bare.values()) else min(fixed, default=even)
    for start in range(0, n - step + 1, step):
        yield {
            name: _typed(array[start] if bare[name] else array[start : start + step], node.type)
            for name, node, array in pairs
        }


def _typed(array: Array, theirs: str) -> Array:
    dtype = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}.get(
        theirs, theirs.removeprefix("tensor(").removesuffix(")")
    )
    return np.asarray(array).astype(dtype, copy=False)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _calibrate(scheme: Scheme, prepared: Path, calibration: Rows, ranges: Path) -> None:
    """Write the range of every tensor."""
    calibrator = create_calibrator(
        prepared,
        STATIC_OPS,
        augmented_model_path=str(ranges.with_suffix(".onnx")),
        calibrate_method=_METHODS[scheme.calibration or "minmax"],
        extra_options=_HISTOGRAM[scheme.calibration or "minmax"],
    )
    calibrator.collect_data(_Reader(batches(prepared, calibration)))
    save_tensors_data(calibrator.compute_data(), ranges)


def _dynamic(scheme: Scheme, prepared: Path, made: Path, nodes: list[str]) -> None:
    """Matrix products and embeddings only: dynamic convolutions were never faster than float. Gemm becomes MatMul and
    Add first, under a name of its own."""
    quantize_dynamic(
        str(prepared),
        str(made),
        op_types_to_quantize=[op for op in DYNAMIC_OPS if op != "Gemm"],
        per_channel=True,
        reduce_range=scheme.reduce_range,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
        extra_options={"EnableSubgraph": not nodes, "MatMulConstBOnly": True},
    )


def _optimise(path: Path, calibration: Rows) -> None:
    """Replace the file by onnxruntime's own form of it, if that is smaller and answers the same, bit for bit."""
    optimised = path.with_name("optimised.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimised)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    write(onnx.load(str(optimised)), optimised)
    if optimised.stat().st_size < path.stat().st_size and _same(path, optimised, calibration):
        optimised.replace(path)


def _same(a: Path, b: Path, rows: Rows) -> bool:
    first, second = _session(a), _session(b)
    for feed in batches(a, {name: array[:COMPARED] for name, array in rows.items()}):
        for x, y in zip(first.run(None, feed), second.run(None, feed), strict=True):
            if not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
                return False
    return True


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
