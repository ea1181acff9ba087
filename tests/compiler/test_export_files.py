"""Torch to ONNX and to TFLite, and what an operator that neither has is answered with."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgewright_compiler.export.onnx import export_onnx
from edgewright_compiler.export.parity import compare
from edgewright_compiler.export.tflite import export_tflite
from edgewright_compiler.graph.tap import Tapped
from edgewright_compiler.quiet import quiet
from edgewright_contracts.errors import Refused
from sim.graphs import Exported, answered
from sim.nets import case

CASE = case("depthwise")


def test_both_files_answer_as_torch_does(exported: Exported):
    for path in (exported.onnx, exported.tflite):
        found = answered(path, exported.expected, CASE.rows)
        compare(path.name, exported.expected, found, "fp32", classes=frozenset({"answer"})).required()


def test_an_onnx_file_takes_any_number_of_rows(exported: Exported):
    for n in (1, 2, 7):
        found = answered(exported.onnx, exported.expected, CASE.rows[:n])
        assert np.allclose(found["answer"], exported.expected["answer"][:n], atol=1e-5)


def test_nodes_are_named_by_the_module_that_they_come_from(exported: Exported):
    names = [node.name for node in onnx.load(exported.onnx).graph.node]
    assert len(set(names)) == len(names)
    assert "net.net.stem.0/Conv" in names  # batch normalisation was folded into it
    assert "monitor/Gemm" in names
    assert "/Softmax" in names


def test_an_onnx_file_holds_nothing_of_the_machine_that_made_it(exported: Exported):
    data = exported.onnx.read_bytes()
    assert str(Path(__file__).parent).encode() not in data
    assert b"site-packages" not in data


AGAIN = """
import sys
from pathlib import Path
from edgewright_compiler.export.onnx import export_onnx
from sim.graphs import settled
from sim.nets import case
one = case("depthwise")
export_onnx(settled(one), one.example, Path(sys.argv[1]), inputs=["x"], outputs=["answer", "monitor"])
"""


def test_another_process_writes_the_same_bytes(exported: Exported, tmp_path: Path):
    again = tmp_path / "again.onnx"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AGAIN, str(again)],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
    )
    assert digest(again) == digest(exported.onnx)


def test_the_same_graph_makes_the_same_tflite_bytes(exported: Exported, tmp_path: Path):
    with quiet():
        export_tflite(exported.graph, CASE.example, tmp_path / "again.tflite")
    assert digest(tmp_path / "again.tflite") == digest(exported.tflite)


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x)[1]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.fixture
def calm() -> object:
    """Exporters that fail leave warnings of their own behind."""
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("calm")
def test_an_operator_that_a_format_lacks_is_named_with_its_module_and_the_way_out(tmp_path: Path):
    words = r"has no form of aten\._linalg_svd.* in module 'inner' \(Spectral\); the way out: .*preprocess: host"
    words += r".*`--format (tflite|onnx)`"
    with pytest.raises(Refused, match="ONNX " + words):
        export_onnx(Holder(Spectral()), torch.zeros(1, 4, 4), tmp_path / "m.onnx", inputs=["x"], outputs=["y"])
    with pytest.raises(Refused, match="TFLite " + words):
        export_tflite(Holder(Spectral()), torch.zeros(1, 4, 4), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("calm")
def test_a_branch_on_values_is_refused_with_the_way_out(tmp_path: Path):
    with pytest.raises(Refused, match=r"torch cannot trace Holder.*torch\.where"):
        export_onnx(Holder(Branching()), torch.ones(1, 4), tmp_path / "m.onnx", inputs=["x"], outputs=["y"])


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x if x.sum() > 0 else -x)


@pytest.mark.usefixtures("calm")
def test_a_refusal_names_the_class_of_the_user_not_what_the_compiler_put_around_it(tmp_path: Path):
    with pytest.raises(Refused, match=r"torch cannot trace Forked"):
        export_onnx(Tapped(Forked()), torch.ones(1, 4), tmp_path / "m.onnx", inputs=["x"], outputs=["y", "z"])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
