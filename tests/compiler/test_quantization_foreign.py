"""ONNX files that others made: old opsets, weights as nodes, integers in, nets inside branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewright_compiler.quantization.apply import quantize
from edgewright_compiler.quantization.onnx import kinds, layers
from edgewright_compiler.quantization.schemes import Scheme
from edgewright_contracts.errors import Refused

RNG = np.random.default_rng(3)
STATIC = Scheme(format="onnx", precision="int8", method="static", calibration="minmax", activations="u8")
DYNAMIC = Scheme(format="onnx", precision="int8", method="dynamic", activations="u8")
NONE = Scheme(format="onnx", precision="fp32", method="none")


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((RNG.normal(0, 0.3, shape)).astype(np.float32), name)


def convolutions(opset: int, *, constants: bool = False, levels: bool = False) -> onnx.ModelProto:
    """[n, 8, 8, 2], channels last as TensorFlow has it, bytes when `levels` → [n, 12]."""
    weights = [weight("w1", 8, 2, 3, 3), weight("b1", 8), weight("w2", 12, 8, 3, 3), weight("b2", 12)]
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)] if levels else []
    nodes += [
        helper.make_node("Transpose", ["f" if levels else "x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    if constants:
        nodes = [helper.make_node("Constant", [], [w.name], value=w) for w in weights] + nodes
    kind = TensorProto.UINT8 if levels else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", kind, ["n", 8, 8, 2])]
    if opset < 10:  # as exporters of that time did, weights are inputs with a default
        inputs += [helper.make_tensor_value_info(w.name, TensorProto.FLOAT, w.dims) for w in weights]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 12])],
        [] if constants else weights,
    )
    ir = 3 if opset < 10 else 8
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def answer(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


FLOATS = RNG.normal(0, 1, (40, 8, 8, 2)).astype(np.float32)
LEVELS = RNG.integers(0, 256, (40, 8, 8, 2)).astype(np.uint8)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20])
def test_opsets_from_9_to_20_become_int8_per_channel(tmp_path: Path, opset: int):
    source, target = saved(convolutions(opset), tmp_path), tmp_path / "q.onnx"
    quantize(STATIC, source, target, {"x": FLOATS}, scope=None)
    reference, found = answer(source, FLOATS), answer(target, FLOATS)
    assert np.abs(found - reference).max() < 0.05 * np.ptp(reference)
    arrays = [numpy_helper.to_array(w) for w in onnx.load(target).graph.initializer]
    assert {a.shape for a in arrays if a.dtype == np.int8 and a.ndim == 4} == {(8, 2, 3, 3), (12, 8, 3, 3)}
    assert any(a.shape == (12,) and a.dtype == np.float32 for a in arrays)  # a scale for each channel


def test_weights_as_constant_nodes_and_bytes_in_are_no_obstacle(tmp_path: Path):
    source, target = saved(convolutions(13, constants=True, levels=True), tmp_path), tmp_path / "q.onnx"
    quantize(STATIC, source, target, {"x": LEVELS}, scope=None)
    reference, found = answer(source, LEVELS), answer(target, LEVELS)
    assert np.abs(found - reference).max() < 0.05 * np.ptp(reference)
    assert onnx.load(target).graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_layers_of_a_file_of_others_are_its_nodes(tmp_path: Path):
    model = convolutions(17)
    for i, node in enumerate(model.graph.node):
        node.name = f"op{i}"
    source = saved(model, tmp_path)
    assert layers(source, None) == ("op1", "op3")
    assert kinds(source).conv == ("op1", "op3")
    quantize(STATIC.keeping(("op3",)), source, tmp_path / "q.onnx", {"x": FLOATS}, scope=None)
    arrays = [numpy_helper.to_array(w) for w in onnx.load(tmp_path / "q.onnx").graph.initializer]
    assert {a.shape for a in arrays if a.dtype == np.float32 and a.ndim == 4} == {(12, 8, 3, 3)}


def test_an_input_of_integers_reaches_an_embedding(tmp_path: Path):
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT32, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight("table", 300, 16), weight("w", 16, 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    source, target = saved(model, tmp_path), tmp_path / "q.onnx"
    rows = RNG.integers(0, 300, (40, 6)).astype(np.int32)
    for scheme in (STATIC, DYNAMIC):
        quantize(scheme, source, target, {"x": rows}, scope=None)
        assert np.abs(answer(target, rows) - answer(source, rows)).max() < 0.03
        assert target.stat().st_size < 0.4 * source.stat().st_size


def branches() -> onnx.ModelProto:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        product = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"], name=name)
        return helper.make_graph([product], name, [], [out], [weight(f"{name}_w", 64, 64)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch("yes"), else_branch=branch("no")),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


def test_a_net_inside_branches_is_quantized_dynamically_and_refused_statically(tmp_path: Path):
    source, target = saved(branches(), tmp_path), tmp_path / "q.onnx"
    rows = RNG.normal(0, 1, (40, 64)).astype(np.float32)
    with pytest.raises(Refused, match=r"inside the branches of If 'choice'.*the way out: dynamic"):
        quantize(STATIC, source, target, {"x": rows}, scope=None)
    quantize(DYNAMIC, source, target, {"x": rows}, scope=None)
    assert np.abs(answer(target, rows) - answer(source, rows)).max() < 0.3
    assert target.stat().st_size < 0.5 * source.stat().st_size


def test_a_file_without_layers_is_refused(tmp_path: Path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    source = saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path)
    rows = np.ones((40, 4), np.float32)
    for scheme in (STATIC, DYNAMIC):
        with pytest.raises(Refused, match="no convolution, matrix product or embedding"):
            quantize(scheme, source, tmp_path / "q.onnx", {"x": rows}, scope=None)
    assert not (tmp_path / "q.onnx").exists()
    quantize(NONE, source, tmp_path / "q.onnx", {"x": rows[:1]}, scope=None)


def test_an_operator_that_onnxruntime_lacks_is_named_and_nothing_is_left(tmp_path: Path):
    model = convolutions(17)
    model.graph.node[2].op_type, model.graph.node[2].domain = "Sparkle", "org.example"
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(Refused, match="Sparkle"):
        quantize(STATIC, tmp_path / "m.onnx", tmp_path / "q.onnx", {"x": FLOATS}, scope=None)
    assert not (tmp_path / "q.onnx").exists()
