"""An ONNX file as the quantizer needs it, and as it is packaged: walking, preparing, writing.

Equal models are written as equal bytes. Costs milliseconds, but for the simplification of files of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import onnx
from onnx import numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgewright_contracts.errors import Refused

OPSET: Final = 13  # the first whose QuantizeLinear takes a scale per channel


def under(name: str, path: str) -> bool:
    """Whether a node's name is `path` or lies under that module path."""
    return name == path or name.startswith((f"{path}/", f"{path}."))


def prepare(model: onnx.ModelProto, source: Path, prepared: Path, scope: str | None) -> None:
    """What onnxruntime's quantizer takes for granted: weights as initializers that nobody can override, names on all
    nodes, an opset with scales per channel. Files of others are also simplified by it; ours are already."""
    graph = model.graph
    constants = [n for n in graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"]
    for node in constants:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
    weights = {w.name for w in graph.initializer}
    for given in [i for i in graph.input if i.name in weights]:
        graph.input.remove(given)
    model.ir_version = max(model.ir_version, 4)
    taken = {n.name for n in graph.node}
    for i, node in enumerate(graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{i}"
            while node.name in taken:
                node.name += "_"
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:  # the converter throws RuntimeError with text of its C++ side
            raise Refused(
                f"{source.name} is of opset {opset}, and int8 per channel needs {OPSET}: {error}; the way out: export "
                f"it again with opset {OPSET} or later"
            ) from None
    onnx.save(model, str(prepared))
    if scope is None and not any(subgraphs(node) for node in model.graph.node):  # branches would copy shared weights
        quant_pre_process(str(prepared), str(prepared), skip_symbolic_shape=True)


def write(model: onnx.ModelProto, path: Path) -> None:
    """The canonical form: raw tensors and none that nobody reads, no remarks, only the opsets in use, short names.

    Borders keep their names. With subgraphs, which see outer names, all names stay.
    """
    graph = model.graph
    read = {name for node in all_nodes(graph) for name in node.input} | {v.name for v in graph.output}
    read |= {v.name for node in all_nodes(graph) for inner in subgraphs(node) for v in inner.output}
    for tensor in [w for w in graph.initializer if w.name not in read]:
        graph.initializer.remove(tensor)
    for tensor in graph.initializer:
        if not tensor.raw_data and tensor.data_type != onnx.TensorProto.STRING:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        tensor.doc_string = ""
    for node in all_nodes(graph):
        node.doc_string = ""
        del node.metadata_props[:]
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:], graph.quantization_annotation[:]
    model.doc_string = graph.doc_string = ""
    used = {n.domain for n in all_nodes(graph)} | {n.domain for f in model.functions for n in f.node}
    for opset in [o for o in model.opset_import if o.domain not in used | {"", "ai.onnx"}]:
        model.opset_import.remove(opset)
    if not any(subgraphs(node) for node in graph.node) and not graph.sparse_initializer:
        _shorten(graph)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _shorten(graph: onnx.GraphProto) -> None:
    short = {v.name: v.name for v in (*graph.input, *graph.output)}
    fresh = (name for name in _letters() if name not in short)
    short[""] = ""  # an optional input that is not there
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name not in short:
                    short[name] = next(fresh)
                names[i] = short[name]
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)


def _letters() -> Iterator[str]:
    """a, b, .. z, aa, ba, .."""
    n = 0
    while True:
        name, rest = "", n
        while True:
            name, rest = name + chr(97 + rest % 26), rest // 26 - 1
            if rest < 0:
                break
        yield name
        n += 1


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def weighted(model: onnx.ModelProto) -> dict[str, Sequence[int]]:
    """Shapes of float constants of two axes or more, of all subgraphs."""
    found = {w.name: tuple(w.dims) for w in model.graph.initializer}
    for node in all_nodes(model.graph):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = tuple(node.attribute[0].t.dims)
        for inner in subgraphs(node):
            found.update({w.name: tuple(w.dims) for w in inner.initializer})
    return {name: dims for name, dims in found.items() if len(dims) > 1}
