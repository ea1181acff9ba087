"""Rewrites of ONNX files: fewer operators, the same answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import parser

from edgewright_compiler.export.onnx_rewrites import scaled_inputs, scaled_products, square_sums

ROWS = np.random.default_rng(1).normal(0, 3, (5, 4)).astype(np.float32)
HEAD = '<ir_version: 10, opset_import: ["": 20]> g (float[N, 4] x) => (float[N, K] y) '
WEIGHTS = "<float[4, 2] w = {0.5, -1, 2, 0.25, 1, 1, -2, 3}, float[2] b = {1, -3}, float c = {0.3}, int64[1] one = {1}>"
SCALE = "<float s = {0.1}, uint8 z = {128}, float c = {0.5}, float[1] c1 = {0.5}, int64[1] one = {1}> "


def answers(model: onnx.ModelProto) -> npt.NDArray[np.float32]:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": ROWS})
    return found


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("rewrite", "text", "left"),
    [
        (square_sums, WEIGHTS + "{ q = Mul(x, x) y = ReduceSum(q, one) }", ["ReduceSumSquare"]),
        (scaled_products, WEIGHTS + "{ p = Gemm(x, w, b) y = Mul(p, c) }", ["Gemm"]),
        (
            scaled_inputs,
            SCALE + "{ n = Mul(x, c1) q = QuantizeLinear(n, s, z) y = DequantizeLinear(q, s, z) }",
            ["QuantizeLinear", "DequantizeLinear"],
        ),
    ],
)
def test_an_operator_goes_and_the_answer_stays(
    rewrite: Callable[[onnx.ModelProto], None], text: str, left: list[str]
) -> None:
    model = parser.parse_model(HEAD + text)
    before = answers(model)
    rewrite(model)
    assert kinds(model) == left
    np.testing.assert_allclose(answers(model), before, atol=1e-6)


@pytest.mark.parametrize(
    ("rewrite", "text"),
    [
        (square_sums, WEIGHTS + "{ q = Mul(x, x) s = ReduceSum(q, one) y = Add(s, q) }"),
        (square_sums, WEIGHTS + "{ q = Mul(x, c) y = ReduceSum(q, one) }"),
        (scaled_products, WEIGHTS + "{ p = Gemm(x, w, b) q = Mul(p, c) y = Add(p, q) }"),
        (scaled_products, WEIGHTS + "{ p = Gemm(x, w, b) r = Gemm(x, w, b) q = Mul(p, c) y = Add(q, r) }"),
        (
            scaled_inputs,
            SCALE + "{ n = Mul(x, c) q = QuantizeLinear(n, s, z) d = DequantizeLinear(q, s, z) y = Add(d, n) }",
        ),
    ],
)
def test_what_another_operator_reads_too_or_does_not_fit_stays(
    rewrite: Callable[[onnx.ModelProto], None], text: str
) -> None:
    model = parser.parse_model(HEAD + text)
    before = model.SerializeToString()
    rewrite(model)
    assert model.SerializeToString() == before


def test_what_a_subgraph_may_read_stays() -> None:
    model = parser.parse_model(HEAD + WEIGHTS + "{ p = Gemm(x, w, b) y = Mul(p, c) }")
    inner = parser.parse_graph("inner () => (float[N, K] i) { i = Identity(p) }")
    condition = onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    model.graph.node.append(condition)
    before = model.SerializeToString()
    scaled_products(model)
    assert model.SerializeToString() == before
