"""ONNX files quantized by onnxruntime: static QDQ with 8-bit weights per channel, and dynamic.

Two things follow for every file that comes out. onnxruntime's own offline optimisation, at the level that does not
depend on this machine, is kept when it makes the file smaller and every answer stays the same bit for bit: the fused
file of one net was 20 % smaller and loaded in half of the time. And inner names go: they are a fifth of a small file.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from edgewright_contracts.errors import ContractError, Refused
from edgewright_runtime.runtime import names_by_position

from ..export.onnx_rewrites import scaled_inputs, unrounded
from ..rows import Array, Rows, count
from .islands import Node, Part, follow
from .onnx_file import all_nodes, prepare, subgraphs, under, weighted, write
from .schemes import Kinds, Scheme

BATCH: Final = 32
LONELY: Final = 1024  # weights of a product that is not worth two conversions
COMPARED: Final = 64  # rows on which an optimised file must answer as before

# The library's own settings by entropy (as many bins as levels) leave nothing to choose and are min-max; its percentile
# takes ranges around 0, which wastes half of the levels behind a rectifier, and cuts nothing off 100,000 values.
_HISTOGRAM: Final[dict[str, dict[str, Any]]] = {
    "minmax": {},
    "percentile": {"num_bins": 2048, "percentile": 99.99, "symmetric": False},
    "entropy": {"num_bins": 256, "num_quantized_bins": 128},
}

_QUANTIZED_OPS: Final = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearConv"}
)
_STATIC_OPS: Final = sorted({*QDQRegistry, *QLinearOpsRegistry})
_METHODS: Final = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_WEIGHTED: Final = {
    "Conv": "conv",
    "ConvTranspose": "conv",
    "Gemm": "linear",
    "MatMul": "linear",
    "Gather": "embedding",
}
_DYNAMIC_OPS: Final = ("EmbedLayerNormalization", "Gather", "Gemm", "LSTM", "MatMul")
_RECURRENT: Final = {"GRU": "recurrent", "RNN": "recurrent", "LSTM": "lstm"}


def make(
    scheme: Scheme, source: Path, target: Path, calibration: Rows, scope: str | None, ranges: Path | None = None
) -> None:
    """Write `target`; see `apply.quantize`."""
    onnxruntime.set_default_logger_severity(3)  # it warns about what it removes
    model = onnx.load(str(source))
    _fresh(model, source)
    if scheme.method == "none":
        write(model, target)
        return
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        prepare(model, source, prepared, scope)
        model = onnx.load(str(prepared))
        nodes = _chosen(model, scheme, source, scope)
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
                    op_types_to_quantize=_STATIC_OPS,
                    per_channel=True,
                    reduce_range=scheme.reduce_range,
                    activation_type=QuantType.QInt8 if scheme.activations == "s8" else QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_quantize=nodes,
                    calibrate_method=_METHODS[scheme.calibration or "minmax"],
                    calibration_cache_path=ranges,
                )
        final, quantized = Path(scratch) / "final.onnx", onnx.load(str(made))
        if not any(n.op_type in _QUANTIZED_OPS or "Quantize" in n.op_type for n in all_nodes(quantized.graph)):
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


def layers(source: Path, scope: str | None) -> tuple[str, ...]:
    """Layers with weights that a static scheme quantizes, in order: module paths, or node names without a scope."""
    model = onnx.load(str(source))
    weights = weighted(model)
    nodes = [n for n in model.graph.node if n.op_type in _WEIGHTED and any(w in weights for w in n.input)]
    if scope is None:
        return tuple(node.name for node in nodes if node.name)
    return tuple(dict.fromkeys(n.name.partition("/")[0] for n in nodes if under(n.name, scope)))


def kinds(source: Path) -> Kinds:
    """Kinds of the layers of a file of others, by node name."""
    model = onnx.load(str(source))
    weights = weighted(model)
    found: dict[str, list[str]] = {}
    for node in all_nodes(model.graph):
        kind = _WEIGHTED.get(node.op_type)
        if node.op_type in _RECURRENT:
            kind = _RECURRENT[node.op_type]
        elif node.op_type in ("Attention", "MultiHeadAttention", "Softmax") and _mixes(model, node):
            kind = "attention"
        elif node.op_type in ("LayerNormalization", "GroupNormalization"):
            kind = "norm"
        elif kind and not any(name in weights for name in node.input[:2]):
            kind = None
        elif node.op_type == "Conv" and _groups(node) > 1 and weights.get(node.input[1], (0, 0))[1] == 1:
            kind = "depthwise"
        if kind:
            found.setdefault(kind, []).append(node.name)
    return Kinds(**{kind: tuple(names) for kind, names in found.items()})


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


def _fresh(model: onnx.ModelProto, source: Path) -> None:
    node = next((n for n in all_nodes(model.graph) if n.op_type in _QUANTIZED_OPS), None)
    if node is not None:
        raise Refused(
            f"{source.name} is already quantized ({node.op_type} {node.name!r}); package it as it is, or give the "
            "float file that it was made from"
        )


def _chosen(model: onnx.ModelProto, scheme: Scheme, source: Path, scope: str | None) -> list[str]:
    """Names of the nodes to quantize."""
    weights = weighted(model)
    nodes = list(model.graph.node)
    parts = [_part(node, weights, scheme, scope) for node in nodes]
    if "layer" in parts:
        graph = [Node(n.input, n.output, part) for n, part in zip(nodes, parts, strict=True)]
        chosen = [nodes[i] for i in follow(graph)]
        lonely = set() if scheme.method == "dynamic" else _lonely(chosen, weights)
        return [n.name for n in chosen if n.name not in lonely or len(lonely) == parts.count("layer")]
    inside = next((n for n in model.graph.node if subgraphs(n)), None)
    if inside is not None:
        if scheme.method == "dynamic" and scope is None:
            return []  # the quantizer descends by itself when nobody lists nodes
        raise Refused(
            f"{scheme.id}: the net of {source.name} lies inside the branches of {inside.op_type} {inside.name!r}, "
            "where ranges cannot be calibrated; the way out: dynamic, or a file with that branch only"
        )
    where = "" if scope is None else f" under module {scope!r}"
    kept_float = f" besides {len(scheme.float_layers)} layers kept float" if scheme.float_layers else ""
    raise Refused(
        f"{scheme.id}: {source.name} has no convolution, matrix product or embedding{where}{kept_float}; package it in "
        "float"
    )


def _lonely(chosen: list[onnx.NodeProto], weights: Mapping[str, Sequence[int]]) -> set[str]:
    """Names of small products that no int8 operator feeds or reads: the two conversions cost more than they save."""
    kept = [n for n in chosen if n.op_type in _STATIC_OPS]
    made = {name for n in kept for name in n.output}
    read = {name for n in kept for name in n.input}
    return {
        n.name
        for n in kept
        if n.op_type in ("Gemm", "MatMul")
        and made.isdisjoint(n.input)
        and read.isdisjoint(n.output)
        and sum(math.prod(weights[name]) for name in n.input if name in weights) <= LONELY
    }


def _part(node: onnx.NodeProto, weights: Mapping[str, Sequence[int]], scheme: Scheme, scope: str | None) -> Part:
    if scope is not None and not under(node.name, scope):
        return "float"
    if any(under(node.name, layer) for layer in scheme.float_layers):
        return "float"
    kinds_of_layer = _DYNAMIC_OPS if scheme.method == "dynamic" else _WEIGHTED
    if node.op_type in kinds_of_layer and any(name in weights for name in node.input):
        return "layer"
    return "activation" if node.op_type in ("Relu", "Clip") else "between"


def _calibrate(scheme: Scheme, prepared: Path, calibration: Rows, ranges: Path) -> None:
    """Write the range of every tensor."""
    calibrator = create_calibrator(
        prepared,
        _STATIC_OPS,
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
        op_types_to_quantize=[op for op in _DYNAMIC_OPS if op != "Gemm"],
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
        model = onnx.load(str(optimised))
        unrounded(model)
        write(model, path)


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


def _groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _mixes(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a matrix product reads this output: softmax in front of one is attention, at the end it is the answer."""
    if node.op_type != "Softmax":
        return True
    return any(n.op_type == "MatMul" and node.output[0] in n.input for n in all_nodes(model.graph))
