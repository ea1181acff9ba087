"""Fewer operators for the same answers. onnxruntime pays for an operator, whatever it computes, and for one whose code
and data have left the cache several times as much; in a small net that is most of the time.

Each rewrite changes a model in place and leaves it topologically ordered. What it touches has no other reader, and
answers stay the same but for the rounding of a float32 product. In models with subgraphs, which may read what lies
outside of them, nothing is changed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

SQUARES: Final = 18  # the opset whose ReduceSumSquare takes its axes as ReduceSum does


def square_sums(model: onnx.ModelProto) -> None:
    """ReduceSum(x * x) becomes ReduceSumSquare(x)."""
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < SQUARES:
        return
    graph = _Graph(model.graph)
    for node in [n for n in model.graph.node if n.op_type == "ReduceSum"]:
        square = graph.only_for(node.input[0], "Mul")
        if square is not None and square.input[0] == square.input[1]:
            node.op_type, node.input[0] = "ReduceSumSquare", square.input[0]
            model.graph.node.remove(square)


def scaled_products(model: onnx.ModelProto) -> None:
    """Gemm(x) * c becomes a Gemm whose weights hold c."""
    graph = _Graph(model.graph)
    for node in [n for n in model.graph.node if n.op_type == "Mul"]:
        factor = graph.scalar(node)
        product = None if factor is None else graph.only_for(node.input[0], "Gemm")
        if product is None or factor is None or not all(graph.owns(name) for name in product.input[1:]):
            continue
        for name in product.input[1:]:
            weights = graph.weights[name]
            scaled = numpy_helper.to_array(weights).astype(np.float32) * factor
            weights.CopyFrom(numpy_helper.from_array(scaled, name))
        product.output[0] = node.output[0]
        model.graph.node.remove(node)


def scaled_inputs(model: onnx.ModelProto) -> None:
    """QuantizeLinear(x * c) becomes QuantizeLinear(x) of a finer scale: what normalises pixels costs nothing then."""
    graph = _Graph(model.graph)
    for node in [n for n in model.graph.node if n.op_type == "QuantizeLinear"]:
        product = graph.only_for(node.input[0], "Mul")
        factor = None if product is None else graph.scalar(product)
        scale = graph.weights.get(node.input[1])
        if product is None or factor is None or factor <= 0 or scale is None:
            continue
        name = f"{node.input[1]}/{product.output[0]}"  # others may read the scale itself
        model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(scale) / factor, name))
        node.input[0], node.input[1] = product.input[0], name
        model.graph.node.remove(product)


class _Graph:
    """Who makes and who reads each tensor, before any rewrite."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        nested = any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute)
        self.weights = {} if nested else {w.name: w for w in graph.initializer}
        self.borders = {v.name for v in graph.output}
        self.maker = {} if nested else {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def only_for(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of that kind that makes `name` for a single reader."""
        node = self.maker.get(name)
        alone = len(self.readers.get(name, ())) == 1 and name not in self.borders
        return node if node is not None and node.op_type == kind and alone else None

    def owns(self, name: str) -> bool:
        """Whether it is a float32 constant of a single reader."""
        weights = self.weights.get(name)
        alone = len(self.readers[name]) == 1 and name not in self.borders
        return weights is not None and weights.data_type == onnx.TensorProto.FLOAT and alone

    def scalar(self, product: onnx.NodeProto) -> np.float32 | None:
        """c of x * c, one number and float32."""
        weights = self.weights.get(product.input[1])
        if weights is None or weights.data_type != onnx.TensorProto.FLOAT:
            return None
        value = numpy_helper.to_array(weights)
        return np.float32(value.reshape(())) if value.size == 1 and value.ndim < 2 else None
