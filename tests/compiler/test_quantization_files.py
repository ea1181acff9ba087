"""From a float file to what a scheme makes of it, in both formats."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert.tools import flatbuffer_utils
from onnx import numpy_helper
from torch import Tensor, nn

from edgewright_compiler.export.onnx import export_onnx
from edgewright_compiler.export.parity import compare
from edgewright_compiler.export.tflite import export_tflite
from edgewright_compiler.quantization.apply import quantize
from edgewright_compiler.quantization.mixed import layer_sensitivity, mixed
from edgewright_compiler.quantization.onnx import layers as onnx_layers
from edgewright_compiler.quantization.schemes import Scheme
from edgewright_compiler.quantization.tflite import layers as tflite_layers
from edgewright_compiler.quiet import quiet
from edgewright_contracts.errors import ContractError, Refused, RequestError
from sim.graphs import Exported, Graph, answered
from sim.nets import case

ROWS = case("depthwise").rows
CALIBRATION = {"x": ROWS}
U8 = Scheme(format="onnx", precision="int8", method="static", calibration="minmax", activations="u8")
S8 = Scheme(format="tflite", precision="int8", method="static", calibration="minmax", activations="s8")
NONE = Scheme(format="onnx", precision="fp32", method="none")
SCHEMES = {
    "float": NONE,
    "static": U8,
    "percentile": replace(U8, calibration="percentile"),
    "seven bits": replace(U8, reduce_range=True),
    "signed": replace(U8, activations="s8"),
    "depthwise float": U8.keeping(("net.net.blocks.0.body.3", "net.net.blocks.1.body.3")),
    "tflite float": replace(NONE, format="tflite"),
    "tflite static": S8,
    "tflite depthwise float": S8.keeping(("net.net.blocks.0.body.3", "net.net.blocks.1.body.3")),
    "tflite dynamic": Scheme(format="tflite", precision="int8", method="dynamic"),
    "tflite halves": Scheme(format="tflite", precision="fp16", method="fp16"),
}


def source(scheme: Scheme, exported: Exported) -> Path:
    return exported.onnx if scheme.format == "onnx" else exported.tflite


def made(scheme: Scheme, exported: Exported, folder: Path) -> Path:
    target = folder / f"{scheme.id}.{scheme.format}"
    quantize(scheme, source(scheme, exported), target, CALIBRATION)
    return target


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_agrees_with_torch_is_smaller_and_is_made_of_the_same_bytes_again(
    exported: Exported, tmp_path: Path, name: str
):
    scheme = SCHEMES[name]
    target = made(scheme, exported, tmp_path)
    found = answered(target, exported.expected, ROWS)
    compare(scheme.id, exported.expected, found, scheme.precision, classes=frozenset({"answer"})).required()
    assert target.stat().st_size < source(scheme, exported).stat().st_size
    once = target.read_bytes()
    assert made(scheme, exported, tmp_path).read_bytes() == once


def test_entropy_chooses_other_ranges_than_min_max(exported: Exported, tmp_path: Path):
    entropy = replace(U8, calibration="entropy")
    target = made(entropy, exported, tmp_path)
    once = target.read_bytes()
    assert made(entropy, exported, tmp_path).read_bytes() == once
    assert once != made(U8, exported, tmp_path).read_bytes()
    answered(target, exported.expected, ROWS)


def test_a_small_product_that_stands_alone_stays_float(exported: Exported, tmp_path: Path):
    """The head behind a mean, which onnxruntime takes in float: two conversions cost more than 48 products save."""
    nodes = onnx.load(made(U8, exported, tmp_path)).graph.node
    assert sum(node.op_type == "QLinearConv" for node in nodes) > 1
    assert not any(node.op_type in ("QGemm", "QLinearMatMul") for node in nodes)


def test_a_tflite_file_holds_equal_vectors_once_and_weights_where_the_schema_wants_them(
    exported: Exported, tmp_path: Path
):
    target = made(S8, exported, tmp_path)
    model = flatbuffer_utils.read_model(str(target))
    flatbuffer_utils.write_model(model, str(tmp_path / "twice.tflite"))
    assert target.stat().st_size < (tmp_path / "twice.tflite").stat().st_size
    data = target.read_bytes()
    weights = [bytes(b.data) for b in model.buffers if b.data is not None and len(b.data) >= 256]
    assert weights
    assert all(data.find(each) % 16 == 0 for each in weights)


AGAIN = """
import sys
import numpy as np
from pathlib import Path
from edgewright_compiler.quantization.apply import quantize
from edgewright_compiler.quantization.schemes import Scheme
rows, format, activations, source, target = sys.argv[1:]
scheme = Scheme(format=format, precision="int8", method="static", calibration="minmax", activations=activations)
quantize(scheme, Path(source), Path(target), {"x": np.load(rows)})
"""


@pytest.mark.parametrize("scheme", [U8, S8], ids=["onnx", "tflite"])
def test_another_process_makes_the_same_bytes(exported: Exported, tmp_path: Path, scheme: Scheme):
    rows, again = tmp_path / "rows.npy", tmp_path / f"again.{scheme.format}"
    np.save(rows, ROWS)
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            AGAIN,
            rows,
            scheme.format,
            scheme.activations,
            source(scheme, exported),
            again,
        ],
        check=True,
        capture_output=True,
        env={"PATH": "", "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
    )
    assert digest(again) == digest(made(scheme, exported, tmp_path))


def test_the_monitor_keeps_its_float_weights(exported: Exported, tmp_path: Path):
    weights = exported.graph.monitor.weight.detach().numpy()
    inside = [numpy_helper.to_array(w) for w in onnx.load(made(U8, exported, tmp_path)).graph.initializer]
    assert any(w.shape == weights.shape and np.array_equal(w, weights) for w in inside)
    assert weights.tobytes() in made(S8, exported, tmp_path).read_bytes()


def test_weights_of_seven_bits_stay_below_64(exported: Exported, tmp_path: Path):
    def top(path: Path) -> int:
        arrays = [numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer]
        return max(int(np.abs(a.astype(int)).max()) for a in arrays if a.dtype == np.int8 and a.ndim > 1)

    assert top(made(U8, exported, tmp_path)) == 127
    assert top(made(replace(U8, reduce_range=True), exported, tmp_path)) <= 64


def test_names_of_modules_do_not_travel(exported: Exported, tmp_path: Path):
    for scheme in (U8, S8):
        assert b"blocks" not in made(scheme, exported, tmp_path).read_bytes()
    session_names = flatbuffer_utils.read_model(str(tmp_path / f"{S8.id}.tflite")).signatureDefs
    assert session_names is not None


def test_the_same_layers_have_the_same_names_in_both_formats(exported: Exported):
    names = onnx_layers(exported.onnx, "net")
    assert names == tflite_layers(exported.tflite, "net")
    assert names[0] == "net.net.stem.0"
    assert names[-1] == "net.net.head"


def test_ranges_are_found_once_for_schemes_that_share_them(exported: Exported, tmp_path: Path):
    kept = SCHEMES["depthwise float"].float_layers
    for scheme in (U8, S8):
        ranges = tmp_path / f"ranges-{scheme.format}"
        first, second = tmp_path / f"a.{scheme.format}", tmp_path / f"b.{scheme.format}"
        quantize(scheme, source(scheme, exported), first, CALIBRATION, ranges=ranges)
        quantize(scheme.keeping(kept), source(scheme, exported), second, {"x": ROWS[:32] * 9}, ranges=ranges)
        assert digest(second) == digest(made(scheme.keeping(kept), exported, tmp_path))


class Words(nn.Module):
    """Ids → an embedding's mean → a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(400, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x).mean(1))


def test_embeddings_and_matrix_products_shrink_to_a_quarter(tmp_path: Path):
    one = case("transformer")
    graph = Graph(Words(), one.example).eval()
    export_onnx(graph, one.example, tmp_path / "m.onnx", inputs=["x"], outputs=["answer", "monitor"])
    with quiet():
        export_tflite(graph, one.example, tmp_path / "m.tflite")
    for suffix, activations in (("onnx", "u8"), ("tflite", "")):
        scheme = Scheme(format=suffix, precision="int8", method="dynamic", activations=activations)
        before, after = tmp_path / f"m.{suffix}", tmp_path / f"q.{suffix}"
        quantize(scheme, before, after, {"x": one.rows})
        once = after.read_bytes()
        quantize(scheme, before, after, {"x": one.rows})
        assert after.read_bytes() == once
        assert len(once) < 0.5 * before.stat().st_size
        like = {"answer": np.zeros((1, 3)), "monitor": np.zeros((1, 8))}
        float_answers, answers = answered(before, like, one.rows), answered(after, like, one.rows)
        compare(scheme.id, float_answers, answers, "int8").required()


def test_the_layer_that_int8_harms_is_ranked_first_and_kept_float(exported: Exported, tmp_path: Path):
    model, harmed, rows = onnx.load(exported.onnx), "net.net.stem.0", ROWS.copy()
    rows[:, 2] = 0
    weight = next(w for w in model.graph.initializer if w.name == f"{harmed}.weight")
    values = numpy_helper.to_array(weight).copy()
    values[:, 2] *= 300  # drowns all others in the scale of its output channel, and multiplies zeros
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    spoilt = tmp_path / "spoilt.onnx"
    onnx.save(model, spoilt)
    reference, calibration = answered(spoilt, exported.expected, rows)["answer"], {"x": rows}

    def score(path: Path) -> float:
        return -float(np.abs(answered(path, exported.expected, rows)["answer"] - reference).mean())

    table = layer_sensitivity(U8, spoilt, calibration, score, progress=lambda share: None)
    assert table.layers[0].layer == harmed
    assert table.float_score == 0
    assert table.int8_score < -table.layers[1].harm
    drop = -table.int8_score / 2
    chosen = mixed(table, spoilt, calibration, score, max_drop=drop, progress=lambda share: None)
    assert harmed in chosen.scheme.float_layers
    assert chosen.scheme.precision == "mixed"
    assert chosen.score >= -drop
    easy = mixed(table, spoilt, calibration, score, max_drop=1.0, progress=lambda share: None)
    assert easy.scheme == U8
    with pytest.raises(Refused, match="expected a drop of at most 0, and with all but one"):
        mixed(table, spoilt, calibration, score, max_drop=0.0, progress=lambda share: None)


def test_too_few_rows_to_calibrate_are_counted(exported: Exported, tmp_path: Path):
    with pytest.raises(RequestError, match="expected at least 32 rows, got 31"):
        quantize(U8, exported.onnx, tmp_path / "q.onnx", {"x": ROWS[:31]})


def test_a_row_that_is_not_a_number_is_named(exported: Exported, tmp_path: Path):
    rows = ROWS.copy()
    rows[40, 0, 3, 3] = np.nan
    with pytest.raises(RequestError, match="row 40 of input 'x'"):
        quantize(U8, exported.onnx, tmp_path / "q.onnx", {"x": rows})


@pytest.mark.parametrize("scheme", [U8, S8], ids=["onnx", "tflite"])
def test_rows_of_another_shape_are_refused_with_both_shapes(exported: Exported, tmp_path: Path, scheme: Scheme):
    target = tmp_path / f"q.{scheme.format}"
    with pytest.raises(ContractError, match=r"calibration\..*expected rows of shape"):
        quantize(scheme, source(scheme, exported), target, {"x": ROWS.reshape(len(ROWS), -1)[:, :-1]})
    assert not target.exists()


@pytest.mark.parametrize("scheme", [U8, S8], ids=["onnx", "tflite"])
def test_a_file_that_is_already_quantized_is_left_alone(exported: Exported, tmp_path: Path, scheme: Scheme):
    once = made(scheme, exported, tmp_path)
    with pytest.raises(Refused, match=r"already quantized.*package it as it is"):
        quantize(scheme, once, tmp_path / f"twice.{scheme.format}", CALIBRATION, scope=None)


@pytest.mark.parametrize("scheme", [U8, S8], ids=["onnx", "tflite"])
def test_a_scope_without_layers_is_refused(exported: Exported, tmp_path: Path, scheme: Scheme):
    with pytest.raises(Refused, match="under module 'front'"):
        quantize(scheme, source(scheme, exported), tmp_path / f"q.{scheme.format}", CALIBRATION, scope="front")


def test_a_file_of_the_other_format_is_refused(exported: Exported, tmp_path: Path):
    with pytest.raises(RequestError, match=r"expected \.tflite files"):
        quantize(S8, exported.onnx, tmp_path / "q.tflite", CALIBRATION)


def test_mixed_precision_needs_ranges(exported: Exported):
    with pytest.raises(RequestError, match="calibrated ranges"):
        layer_sensitivity(NONE, exported.onnx, CALIBRATION, lambda path: 0.0, progress=lambda share: None)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
