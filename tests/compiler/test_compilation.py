"""The whole compiler on real digits at a tiny size, twice, in two processes: equal in, equal out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.package import Package, read_package

pytestmark = [pytest.mark.slow, pytest.mark.process]

PROGRAM = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from edgewright_compiler.compilation import compile_recipe
from edgewright_devices import load
from edgewright_models.digits.recipe import Settings, recipe

settings = Settings(
    version="0.1", epochs=2, tune_epochs=2, teacher_epochs=1, student=(16, 16, 16, 24), reference_rows=1000
)
out, cache = Path(sys.argv[1]), Path(sys.argv[2])
told = []
compile_recipe(
    recipe(settings), load("x86-gateway"), out, seed=7, now=datetime.now(UTC), cache=cache,
    progress=lambda stage, share: told.append(stage),
)
print("STAGES", *dict.fromkeys(told), sep="|")
"""
STAGES = (
    "training the teacher", "training the student", "training the pruned student", "exporting ONNX", "exporting TFLite",
    "quantizing", "measuring",
)  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package, str]:
    """Two packages made side by side, from different directories and hash seeds; and what the first one told."""
    root = tmp_path_factory.mktemp("compiled")
    running = []
    for name in ("a", "b"):
        (root / name).mkdir()
        arguments = [sys.executable, "-c", PROGRAM, str(root / name / "package"), str(root / name / "cache")]
        environment = {"PATH": "", "HOME": str(root), "PYTHONHASHSEED": str(len(running)), "OMP_NUM_THREADS": "1"}
        running.append(
            subprocess.Popen(
                arguments, cwd=root / name, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=240) for process in running]
    assert [p.returncode for p in running] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    line = next(line for line in said[0][0].splitlines() if line.startswith("STAGES"))
    return read_package(root / "a" / "package"), read_package(root / "b" / "package"), line


def test_equal_recipe_seed_and_data_give_an_equal_digest(compiled: tuple[Package, Package, str]) -> None:
    a, b, _ = compiled
    different = [f for f in a.manifest.files if a.manifest.files[f] != b.manifest.files[f]]
    assert not different
    assert a.digest == b.digest
    assert a.evidence() != b.evidence(), "what a clock measured differs, and is outside of the digest"


def test_the_package_is_whole_and_says_what_it_was_made_from(compiled: tuple[Package, Package, str]) -> None:
    package, _, _ = compiled
    package.verify()
    m = package.manifest
    assert [v.id for v in m.variants] == ["onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"]
    assert (m.name, m.version, m.task, m.provenance.seed) == ("digits", "0.1", "classification", 7)
    assert "student=(16, 16, 16, 24)" in m.provenance.recipe
    assert m.provenance.tools["torch"]
    assert {v.batch for v in m.variants if v.format == "tflite"} == {1}
    assert m.ranked("x86_64", ("tflite-runtime",))[0][0].precision == "fp32"
    for variant in m.variants:
        baseline = decode_baseline(package.read(variant.baseline))
        assert (baseline.n, len(baseline.channels)) == (1000, 22)
        with np.load(package.root / variant.selftest, allow_pickle=False) as arrays:
            names = {"input:image", "output:probabilities", "output:monitor", "fp32:probabilities", "fp32:monitor"}
            assert set(arrays.files) == names
            assert all(len(arrays[name]) == 32 for name in names)
    card = package.read("card.md").decode()
    assert "Limits:" in card
    assert "Recall by class" in card


def test_progress_names_every_stage_in_order(compiled: tuple[Package, Package, str]) -> None:
    assert tuple(compiled[2].split("|")[1:]) == STAGES


def test_channels_of_the_exported_network_are_multiples_of_eight(compiled: tuple[Package, Package, str]) -> None:
    model = onnx.load_from_string(compiled[0].read("variants/onnx-fp32/model.onnx"))
    shapes = {w.name: tuple(w.dims) for w in model.graph.initializer if w.name.startswith("net.conv")}
    weights = [shape for shape in shapes.values() if len(shape) == 4]
    assert len(weights) == 3
    assert all(shape[0] % 8 == 0 for shape in weights)
    assert not any(node.metadata_props for node in model.graph.node), "stack traces name the build host"


def test_int8_reaches_the_network_and_stops_before_the_monitor(compiled: tuple[Package, Package, str]) -> None:
    package = compiled[0]
    model = onnx.load_from_string(package.read("variants/onnx-int8/model.onnx"))
    types = {w.name: w.data_type for w in model.graph.initializer}
    assert any(t == onnx.TensorProto.INT8 for name, t in types.items() if name.startswith("net."))
    monitor = {name: t for name, t in types.items() if name.startswith("monitor.")}
    assert monitor
    assert set(monitor.values()) == {onnx.TensorProto.FLOAT}

    interpreter = Interpreter(str(package.root / "variants/tflite-int8/model.tflite"))
    named = {d["name"]: d["dtype"] for d in interpreter.get_tensor_details()}
    assert any(dtype is np.int8 for name, dtype in named.items() if "Net_net" in name)
    inside = {name: dtype for name, dtype in named.items() if "_monitor/" in name and "Net_net" not in name}
    assert len(inside) > 20
    assert not [name for name, dtype in inside.items() if dtype is np.int8]
