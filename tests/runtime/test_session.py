"""Every runtime that works here keeps one contract, and a file's quantized borders are converted by the session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewright_contracts.errors import ContractError, RequestError, Unavailable
from edgewright_contracts.manifest import SessionOptions, TensorIn, TensorOut
from edgewright_runtime import runtime
from edgewright_runtime.selftest import run_selftest
from sim import packages, tflite

VARIANTS = [("onnxruntime", "onnx-fp32"), ("litert", "tflite-fp32")]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packages.make_package(tmp_path_factory.mktemp("package") / "p", with_tflite=True)


def open_variant(package, name, variant):
    m = package.manifest
    return runtime.open_session(package.root / m.variant(variant).model, name, inputs=m.inputs, outputs=m.outputs)


def test_both_runtimes_work_here():
    assert {"onnxruntime", "litert"} <= set(runtime.available())


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_session_answers_in_declared_shapes_batch_first(package, name, variant):
    session = open_variant(package, name, variant)
    x, labels = packages.draw(50, seed=1)
    for rows in (1, 7, 50):
        y = session.run({"image": x[:rows]})
        assert y["probabilities"].shape == (rows, 10)
        assert y["monitor"].shape == (rows, 6)
        assert y["probabilities"].dtype == np.float32
    assert (y["probabilities"].argmax(axis=1) == labels).mean() > 0.9
    assert session.runtime == name
    assert session.version


def test_runtimes_agree(package):
    x, _ = packages.draw(20, seed=2)
    a, b = (open_variant(package, *v).run({"image": x}) for v in VARIANTS)
    for key in a:
        np.testing.assert_allclose(a[key], b[key], atol=1e-5)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_the_selftest_passes_where_the_file_answers_as_on_the_build_host(package, name, variant):
    v = package.manifest.variant(variant)
    result = run_selftest(open_variant(package, name, variant), package.read(v.selftest), package.manifest, v)
    assert result.passed
    assert result.rows == 32
    assert result.worst <= 1


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_the_selftest_refuses_a_file_that_answers_otherwise(tmp_path, name, variant):
    package = packages.make_package(tmp_path / "p", broken_selftest=True, with_tflite=True)
    v = package.manifest.variant(variant)
    result = run_selftest(open_variant(package, name, variant), package.read(v.selftest), package.manifest, v)
    assert not result.passed
    assert result.flipped > 0
    assert "probabilities" in result.reason


@pytest.mark.parametrize(
    "options",
    [
        SessionOptions(),
        SessionOptions(mmap=True),
        SessionOptions(prepack=False),
        SessionOptions(threads=64, arena=False),
    ],
)
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_options_change_how_a_file_runs_and_not_what_it_answers(package, tmp_path, name, variant, options):
    m = package.manifest
    file, tensors = package.root / m.variant(variant).model, {"inputs": m.inputs, "outputs": m.outputs}
    x, _ = packages.draw(5, seed=4)
    expected = runtime.open_session(file, name, **tensors).run({"image": x})
    sessions = [runtime.open_session(file, name, **tensors, options=options)]
    made = runtime.optimise(file, name, tmp_path, options)
    if made:
        sessions.append(runtime.open_session(made[0], name, **tensors, options=options, optimised=True))
    assert bool(made) == (name == "onnxruntime")
    for session in sessions:
        for key, value in session.run({"image": x}).items():
            np.testing.assert_allclose(value, expected[key], atol=1e-6)


def test_mapped_weights_lie_in_a_file_of_their_own(tmp_path):
    package = packages.make_package(tmp_path / "p", slow=1)
    made = runtime.optimise(
        package.root / "variants/onnx-fp32/model.onnx", "onnxruntime", tmp_path, SessionOptions(mmap=True)
    )
    graph, weights = (file.stat().st_size for file in made)
    assert graph < 20_000 < 512 * 512 * 4 < weights


def test_too_little_memory_is_the_devices_and_not_the_files(package, tmp_path, monkeypatch):
    import onnxruntime

    def refuse(*_, **__):
        raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")

    runtime.probe("onnxruntime")
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(runtime.NoMemory, match="too little memory to load"):
        open_variant(package, *VARIANTS[0])
    assert runtime.short_of_memory(MemoryError())
    assert not runtime.short_of_memory(RuntimeError("INVALID_GRAPH"))


def test_a_selftest_that_lacks_an_array_names_it(package):
    v = package.manifest.variant("onnx-fp32")
    with pytest.raises(ContractError, match="npz"):
        run_selftest(open_variant(package, *VARIANTS[0]), b"junk", package.manifest, v)


def test_quantized_borders_are_converted_by_scale_and_zero_point(tmp_path: Path):
    g = tflite.Graph()
    x = g.quantized_input("x", (1, 4), 0.5, -10)
    y = g.dequantize(x)
    g.output("y", y)
    g.output("q", g.quantize(y, 0.25, 3))
    file = tmp_path / "model.tflite"
    file.write_bytes(g.finish())
    ins = (TensorIn(name="x", dtype="float32", shape=(4,)),)
    outs = (
        TensorOut(name="y", role="values", shape=(4,)),
        TensorOut(name="q", role="values", shape=(4,)),
    )
    session = runtime.open_session(file, "litert", inputs=ins, outputs=outs)
    got = session.run({"x": np.array([[-3.0, 0.5, 1.24, 1000.0]], np.float32)})
    np.testing.assert_allclose(got["y"], [[-3.0, 0.5, 1.0, 68.5]])
    np.testing.assert_allclose(got["q"], [[-3.0, 0.5, 1.0, 31.0]])  # saturates at (127 - 3) / 4
    assert got["q"].dtype == np.float32


def test_raw_integers_pass_through_unchanged(tmp_path: Path):
    g = tflite.Graph()
    x = g.quantized_input("x", (1, 4), 0.5, -10)
    g.output("y", g.dequantize(x))
    file = tmp_path / "model.tflite"
    file.write_bytes(g.finish())
    session = runtime.open_session(
        file,
        "litert",
        inputs=(TensorIn(name="x", dtype="int8", shape=(4,)),),
        outputs=(TensorOut(name="y", role="values", shape=(4,)),),
    )
    np.testing.assert_allclose(session.run({"x": np.array([[-10, -8, 0, 1]], np.int8)})["y"], [[0, 1, 5, 5.5]])


def test_numbered_tensors_match_by_number_and_not_by_order():
    assert runtime.names_by_position(("a", "b"), ["output_1", "output_0"], what="x") == ["output_0", "output_1"]
    assert runtime.names_by_position(("a", "b"), ["b", "a"], what="x") == ["a", "b"]
    assert runtime.names_by_position(("a", "b"), ["q", "r"], what="x") == ["q", "r"]


def test_what_cannot_be_opened_says_who_must_act(tmp_path: Path, package):
    m = package.manifest
    bad = tmp_path / "model.onnx"
    bad.write_bytes(b"not a model")
    tensors = {"inputs": m.inputs, "outputs": m.outputs}
    with pytest.raises(RequestError, match="among onnxruntime"):
        runtime.open_session(bad, "tensorrt", **tensors)
    with pytest.raises(RequestError, match=r"reads .tflite files"):
        runtime.open_session(bad, "litert", **tensors)
    with pytest.raises(runtime.LoadFailed, match="onnxruntime"):
        runtime.open_session(bad, "onnxruntime", **tensors)
    with pytest.raises(runtime.LoadFailed, match="expected a model file"):
        runtime.open_session(tmp_path / "none.onnx", "onnxruntime", **tensors)
    two = (*m.inputs, TensorIn(name="more", dtype="float32", shape=()))
    with pytest.raises(ContractError, match="inputs of the ONNX file"):
        runtime.open_session(
            package.root / "variants/onnx-fp32/model.onnx", "onnxruntime", inputs=two, outputs=m.outputs
        )
    if "tflite-runtime" not in runtime.available():
        with pytest.raises(Unavailable, match="agent-tflite-legacy"):
            runtime.open_session(tmp_path / "x.tflite", "tflite-runtime", **tensors)
