"""TFLite files quantized by ai-edge-quantizer: static int8, dynamic int8, float16 weights.

What may be touched is found in the file, not by a pattern: tensors are named by the module that they come from, and an
operator belongs to the modules in the name of what it writes. The borders of the file stay as they are (raw input,
float outputs). Inner names are dropped from what comes out: they are up to a third of a small file.

Embeddings are quantized by weight only in every int8 scheme, because a lookup has no activation to quantize, and the
static rules would leave them float.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe_manager
from ai_edge_quantizer.utils import qsv_utils, tfl_flatbuffer_utils

from edgewright_contracts.errors import ContractError, Refused
from edgewright_runtime.runtime import names_by_position

from ..rows import Array, Rows, count
from .islands import Node, Part, follow
from .schemes import Kinds, Scheme

_Op = qtyping.TFLOperationName
_OPERATIONS: Final = {op.value: op for op in _Op}
_WEIGHTED: Final = {
    "CONV_2D": "conv",
    "CONV_2D_TRANSPOSE": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "FULLY_CONNECTED": "linear",
    "BATCH_MATMUL": "attention",
    "EMBEDDING_LOOKUP": "embedding",
}
_CODES: Final[dict[int, str]] = {v: k for k, v in vars(flatbuffer_utils.BuiltinOperator).items() if isinstance(v, int)}
_NAMES: Final = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}  # where the quantizer calls them otherwise
_FLOAT: Final = flatbuffer_utils.TensorType.FLOAT32


@dataclass(frozen=True, slots=True)
class Operator:
    kind: str  # as ai-edge-quantizer calls it
    name: str  # of what it writes: its place for rules
    modules: tuple[str, ...]  # names of modules that it was made from, as the converter writes them
    weighted: bool
    real: bool  # writes float32
    inputs: tuple[tuple[int, int], ...]  # tensors, each with its subgraph
    outputs: tuple[tuple[int, int], ...]


def make(
    scheme: Scheme, source: Path, target: Path, calibration: Rows, scope: str | None, ranges: Path | None = None
) -> None:
    """Write `target`; see `apply.quantize`."""
    model = flatbuffer_utils.read_model(str(source))
    _fresh(model, source)
    if scheme.method == "none":
        _write(model, target)
        return
    _prepare(model)
    rules = _rules(scheme, _chosen(model, scheme, source, scope))
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # it draws bars
        prepared = Path(scratch) / "prepared.tflite"
        flatbuffer_utils.write_model(model, str(prepared))
        q = quantizer.Quantizer(str(prepared), rules.get_quantization_recipe())
        found = None
        if scheme.calibrated:
            # What others may ask for too is calibrated at once; alone, only what this scheme needs.
            wide = rules if ranges is None else _rules(scheme, _chosen(model, scheme.without_floats, source, scope))
            found = _kept(ranges) or _ranges(prepared, calibration, wide)
            _keep(ranges, found)
        made = q.quantize(found, enable_progress_bar=False, enable_progress_report=False)
        made.export_model(str(target), overwrite=True)
    quantized = flatbuffer_utils.read_model(str(target))
    # An output that a quantized operator reads as well was found replaced by its int8 form, against the signature.
    for before, after in zip(model.subgraphs, quantized.subgraphs, strict=True):
        after.inputs, after.outputs = before.inputs, before.outputs
    _write(quantized, target)


def prove(target: Path, calibration: Rows) -> None:
    """Load the file and let it answer the first row. Whatever LiteRT throws passes through."""
    interpreter = Interpreter(str(target), num_threads=1)
    interpreter.allocate_tensors()
    inputs = {d["name"]: d for d in interpreter.get_input_details()}
    for name, array in next(_feeds(list(inputs), calibration)).items():
        interpreter.set_tensor(inputs[name]["index"], _shaped(name, array, inputs[name]))
    interpreter.invoke()


def layers(source: Path, scope: str | None) -> tuple[str, ...]:
    """Layers with weights that a static scheme quantizes, in order: module paths; without a scope, what they write."""
    model = flatbuffer_utils.read_model(str(source))
    _prepare(model)
    found = [o for o in operators(model) if o.weighted and o.kind in _WEIGHTED]
    if scope is None:
        return tuple(o.name for o in found)
    return tuple(dict.fromkeys(_own(o) for o in found if inside(o, scope)))


def kinds(source: Path) -> Kinds:
    """Kinds of the layers of a file of others, by the name of what they write."""
    found: dict[str, list[str]] = {}
    model = flatbuffer_utils.read_model(str(source))
    _prepare(model)
    for o in operators(model):
        kind = _WEIGHTED.get(o.kind)
        if kind and (o.weighted or kind == "attention"):
            found.setdefault(kind, []).append(o.name)
    return Kinds(**{kind: tuple(names) for kind, names in found.items()})


def operators(model: Any) -> tuple[Operator, ...]:
    """All operators of all subgraphs, in order."""
    found = []
    codes = [_code(op) for op in model.operatorCodes]
    for at, graph in enumerate(model.subgraphs):
        constant = {i for i, t in enumerate(graph.tensors) if _size(model, t)}
        borders = {*graph.inputs, *graph.outputs}
        for op in graph.operators:
            kind = codes[op.opcodeIndex]
            outputs = [i for i in op.outputs if i >= 0]
            # The last operator writes a border, whose name is the signature's: then its weights tell.
            told = [i for i in outputs if i not in borders] or [i for i in op.inputs if i in constant]
            names = [_name(graph.tensors[i]) for i in told]
            found.append(
                Operator(
                    kind,
                    tfl_flatbuffer_utils.get_op_scope(op, graph.tensors),
                    tuple(dict.fromkeys(part for name in names for part in name.split(";") if "/" in part)),
                    any(i in constant and len(graph.tensors[i].shape) > 1 for i in op.inputs),
                    bool(outputs) and graph.tensors[outputs[0]].type == _FLOAT,
                    tuple((at, i) for i in op.inputs if i >= 0),
                    tuple((at, i) for i in outputs),
                )
            )
    return tuple(found)


def inside(operator: Operator, place: str) -> bool:
    """Whether one of the operator's modules is, or lies under, the module at path `place` of the outermost module."""
    return any(_under(module, place) for module in operator.modules)


def path(module: str) -> str:
    """Of "Graph/nets.Net_net/Conv2d_c1", "net.c1". A class with an underscore leaves a piece in front; it matches."""
    return ".".join(part.rpartition(".")[2].partition("_")[2] for part in module.split("/")[1:])


def _own(operator: Operator) -> str:
    """The innermost of the modules that were fused into it; of a convolution and its normalisation, the convolution."""
    return path(max(reversed(operator.modules), key=lambda module: module.count("/")))


def _under(module: str, place: str) -> bool:
    """ "Graph/Net_net/Conv2d_c1" lies under "net" and is "net.c1": a part is a class and an attribute, and either may
    hold underscores, so a path is matched from its own side."""
    parts, wanted = module.split("/")[1:], place.split(".")
    return len(parts) >= len(wanted) and all(
        part.endswith(f"_{name}") for part, name in zip(parts, wanted, strict=False)
    )


def _is(operator: Operator, layer: str) -> bool:
    """Whether this is the layer of that name: a module path, or what a file of others calls its output."""
    return layer == operator.name or inside(operator, layer)


def _fresh(model: Any, source: Path) -> None:
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            q = tensor.quantization
            if q is not None and q.scale is not None and len(q.scale):
                raise Refused(
                    f"{source.name} is already quantized (tensor {_name(tensor)!r}); package it as it is, or give the "
                    "float file that it was made from"
                )


def _chosen(model: Any, scheme: Scheme, source: Path, scope: str | None) -> tuple[Operator, ...]:
    found = operators(model)
    parts = [_part(o, scheme, scope) for o in found]
    if "layer" not in parts:
        where = "" if scope is None else f" under module {scope!r}"
        kept_float = f" besides {len(scheme.float_layers)} layers kept float" if scheme.float_layers else ""
        raise Refused(
            f"{scheme.id}: {source.name} has no convolution, matrix product or embedding{where}{kept_float}; package "
            "it in float"
        )
    chosen = follow([Node(o.inputs, o.outputs, part) for o, part in zip(found, parts, strict=True)])
    return tuple(found[i] for i in chosen)


def _prepare(model: Any) -> None:
    """What the quantizer takes for granted, and files of others may lack: float32 weights (float16 ones stand behind an
    operator that widens them), a name of its own for each tensor, a signature."""
    for graph in model.subgraphs:
        for op in list(graph.operators):
            if _code(model.operatorCodes[op.opcodeIndex]) != "DEQUANTIZE":
                continue
            half, whole = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
            if half.type == flatbuffer_utils.TensorType.FLOAT16 and _size(model, half):
                wide = np.frombuffer(bytes(model.buffers[half.buffer].data), np.float16).astype(np.float32)
                buffer = flatbuffer_utils.BufferT()
                buffer.data = wide.view(np.uint8)
                model.buffers.append(buffer)
                whole.buffer = len(model.buffers) - 1
                graph.operators.remove(op)
    main = model.subgraphs[0]
    kept = {*main.inputs, *main.outputs}
    taken = {_name(main.tensors[i]) for i in kept}
    for at, graph in enumerate(model.subgraphs):
        for i, tensor in enumerate(graph.tensors):
            if at or i not in kept:
                if not tensor.name or _name(tensor) in taken:
                    tensor.name = f"{_name(tensor)}#{at}.{i}".encode()
                taken.add(_name(tensor))
    if not model.signatureDefs:
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs = [_mapped(main, i) for i in main.inputs]
        signature.outputs = [_mapped(main, i) for i in main.outputs]
        model.signatureDefs = [signature]


def _code(operator: Any) -> str:
    """As the quantizer calls it. Before 2020 there was one byte for it, and it is still filled."""
    code: int = max(operator.builtinCode, operator.deprecatedBuiltinCode)
    operator.builtinCode = code
    return _NAMES.get(_CODES.get(code, ""), _CODES.get(code, str(code)))


def _mapped(graph: Any, tensor: int) -> Any:
    pair = schema.TensorMapT()
    pair.name, pair.tensorIndex = graph.tensors[tensor].name, tensor
    return pair


def _part(operator: Operator, scheme: Scheme, scope: str | None) -> Part:
    if not operator.real or (scope is not None and not _only(operator, scope)):
        return "float"
    if any(_is(operator, layer) for layer in scheme.float_layers):
        return "float"
    return "layer" if operator.weighted and operator.kind in _WEIGHTED else "between"


def _only(operator: Operator, scope: str) -> bool:
    """In the scope, and not also in a module beside it that the converter fused it with."""
    beside = [m for m in operator.modules if not _under(m, scope)]
    return inside(operator, scope) and not beside


def _rules(scheme: Scheme, chosen: tuple[Operator, ...]) -> recipe_manager.RecipeManager:
    """One rule per kind of operator, which lists the places it holds for."""
    places: dict[str, list[str]] = {}
    for o in chosen:
        places.setdefault(o.kind, []).append(re.escape(o.name))
    rules = recipe_manager.RecipeManager()
    for kind in sorted(places):
        if kind not in _OPERATIONS:
            continue
        regex, operation = f"^(?:{'|'.join(places[kind])})$", _OPERATIONS[kind]
        with contextlib.suppress(ValueError):  # an operator without such a form stays float
            if scheme.method == "fp16":
                rules.add_weight_only_config(
                    regex, operation, num_bits=16, algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING
                )
            elif operation == _Op.EMBEDDING_LOOKUP:
                rules.add_weight_only_config(regex, operation, num_bits=8)
            elif scheme.method == "dynamic":
                rules.add_dynamic_config(regex, operation, num_bits=8)
            else:
                rules.add_static_config(regex, operation, activation_num_bits=8, weight_num_bits=8)
    return rules


def _ranges(source: Path, calibration: Rows, rules: recipe_manager.RecipeManager) -> dict[str, dict[str, Any]]:
    """The default averages the ranges of single samples, which cuts off the larger half of them: embeddings were found
    to be biased by 0.4 standard deviations. The widest range that was seen is the range."""
    interpreter = Interpreter(str(source), num_threads=1)
    key = next(iter(interpreter.get_signature_list()))
    details = interpreter.get_signature_runner(key).get_input_details()
    feeds = [
        {name: _shaped(name, array, details[name]) for name, array in feed.items()}
        for feed in _feeds(list(details), calibration)
    ]
    found = calibrator.Calibrator(source.read_bytes(), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    found.calibrate({key: feeds}, rules)
    qsvs: dict[str, dict[str, Any]] = found.get_model_qsvs()
    return qsvs


def _shaped(name: str, array: Array, detail: Mapping[str, Any]) -> Array:
    if array.size != int(np.prod(detail["shape"])):
        shape = tuple(int(n) for n in detail["shape"])
        raise ContractError(f"calibration.{name}", f"rows of shape {shape}", f"{array.shape}")
    return array.reshape(detail["shape"]).astype(detail["dtype"])


def _kept(ranges: Path | None) -> dict[str, dict[str, Any]] | None:
    if ranges is None or not ranges.is_file():
        return None
    found: dict[str, dict[str, Any]] = {}
    with np.load(ranges, allow_pickle=False) as arrays:
        for key in arrays.files:
            statistic, _, tensor = key.partition(" ")
            found.setdefault(tensor, {})[statistic] = arrays[key]
    return found


def _keep(ranges: Path | None, found: dict[str, dict[str, Any]]) -> None:
    if ranges is not None and not ranges.is_file():
        arrays = {f"{name} {tensor}": value for tensor, each in found.items() for name, value in each.items()}
        with ranges.open("wb") as file:
            np.savez(file, **arrays)


def _feeds(names: list[str], rows: Rows) -> Iterator[dict[str, Any]]:
    """One sample at a time, under the file's own names. Raises ContractError when there are more or fewer inputs."""
    theirs = names_by_position(tuple(rows), names, what="inputs of the TFLite file")
    for at in range(count(rows)):
        yield {name: np.asarray(rows[ours][at : at + 1]) for name, ours in zip(theirs, rows, strict=True)}


def _write(model: Any, target: Path) -> None:
    """Without names inside; borders keep theirs, and signatures name tensors by number."""
    model.description = None
    for graph in model.subgraphs:
        borders = {*graph.inputs, *graph.outputs}
        for i, tensor in enumerate(graph.tensors):
            if i not in borders:
                tensor.name = None
    flatbuffer_utils.write_model(model, str(target))


def _name(tensor: Any) -> str:
    return tensor.name.decode() if tensor.name else ""


def _size(model: Any, tensor: Any) -> int:
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)
