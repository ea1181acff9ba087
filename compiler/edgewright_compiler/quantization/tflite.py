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
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe_manager
from ai_edge_quantizer.utils import qsv_utils

from edgewright_contracts.errors import ContractError, Refused
from edgewright_runtime.runtime import names_by_position

from ..rows import Array, Rows, count
from .islands import Node, Part, follow
from .schemes import Kinds, Scheme
from .tflite_file import Operator, inside, is_layer, name_of, operators, own, prepare, under, write

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


def make(
    scheme: Scheme, source: Path, target: Path, calibration: Rows, scope: str | None, ranges: Path | None = None
) -> None:
    """Write `target`; see `apply.quantize`."""
    model = flatbuffer_utils.read_model(str(source))
    _fresh(model, source)
    if scheme.method == "none":
        write(model, target)
        return
    prepare(model)
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
    write(quantized, target)


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
    prepare(model)
    found = [o for o in operators(model) if o.weighted and o.kind in _WEIGHTED]
    if scope is None:
        return tuple(o.name for o in found)
    return tuple(dict.fromkeys(own(o) for o in found if inside(o, scope)))


def kinds(source: Path) -> Kinds:
    """Kinds of the layers of a file of others, by the name of what they write."""
    found: dict[str, list[str]] = {}
    model = flatbuffer_utils.read_model(str(source))
    prepare(model)
    for o in operators(model):
        kind = _WEIGHTED.get(o.kind)
        if kind and (o.weighted or kind == "attention"):
            found.setdefault(kind, []).append(o.name)
    return Kinds(**{kind: tuple(names) for kind, names in found.items()})


def _fresh(model: Any, source: Path) -> None:
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            q = tensor.quantization
            if q is not None and q.scale is not None and len(q.scale):
                raise Refused(
                    f"{source.name} is already quantized (tensor {name_of(tensor)!r}); package it as it is, or give "
                    "the float file that it was made from"
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


def _part(operator: Operator, scheme: Scheme, scope: str | None) -> Part:
    if not operator.real or (scope is not None and not _only(operator, scope)):
        return "float"
    if any(is_layer(operator, layer) for layer in scheme.float_layers):
        return "float"
    return "layer" if operator.weighted and operator.kind in _WEIGHTED else "between"


def _only(operator: Operator, scope: str) -> bool:
    """In the scope, and not also in a module beside it that the converter fused it with."""
    beside = [m for m in operator.modules if not under(m, scope)]
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
