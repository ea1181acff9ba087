"""Which nodes of an ONNX file a scheme makes int8, and which layers there are to choose from. Pure but for `layers` and
`kinds`, which read a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from edgewright_contracts.errors import Refused

from .islands import Node, Part, follow
from .onnx_file import all_nodes, subgraphs, under, weighted
from .schemes import Kinds, Scheme

LONELY: Final = 1024  # weights of a product that is not worth two conversions

QUANTIZED_OPS: Final = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearConv"}
)
STATIC_OPS: Final = sorted({*QDQRegistry, *QLinearOpsRegistry})
_WEIGHTED: Final = {
    "Conv": "conv",
    "ConvTranspose": "conv",
    "Gemm": "linear",
    "MatMul": "linear",
    "Gather": "embedding",
}
DYNAMIC_OPS: Final = ("EmbedLayerNormalization", "Gather", "Gemm", "LSTM", "MatMul")
_RECURRENT: Final = {"GRU": "recurrent", "RNN": "recurrent", "LSTM": "lstm"}


def fresh(model: onnx.ModelProto, source: Path) -> None:
    node = next((n for n in all_nodes(model.graph) if n.op_type in QUANTIZED_OPS), None)
    if node is not None:
        raise Refused(
            f"{source.name} is already quantized ({node.op_type} {node.name!r}); package it as it is, or give the "
            "float file that it was made from"
        )


def chosen(model: onnx.ModelProto, scheme: Scheme, source: Path, scope: str | None) -> list[str]:
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


def _lonely(chosen: list[onnx.NodeProto], weights: Mapping[str, Sequence[int]]) -> set[str]:
    """Names of small products that no int8 operator feeds or reads: the two conversions cost more than they save."""
    kept = [n for n in chosen if n.op_type in STATIC_OPS]
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
    kinds_of_layer = DYNAMIC_OPS if scheme.method == "dynamic" else _WEIGHTED
    if node.op_type in kinds_of_layer and any(name in weights for name in node.input):
        return "layer"
    return "activation" if node.op_type in ("Relu", "Clip") else "between"


def _groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _mixes(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a matrix product reads this output: softmax in front of one is attention, at the end it is the answer."""
    if node.op_type != "Softmax":
        return True
    return any(n.op_type == "MatMul" and node.output[0] in n.input for n in all_nodes(model.graph))
