"""What a person asks of compile is tried before anything is trained, and told in one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewright.main import run
from edgewright_compiler.pipeline.choice import Arch, Candidate, Choice, Limits, Purpose
from edgewright_compiler.pipeline.recorded import limits_of, read_choice, recalled, write_choice
from edgewright_contracts.errors import RequestError

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(8, classes)
        self.calls = 0
    def forward(self, x):
        return self.last(x)

class Spectral(Net):
    def forward(self, x):
        return self.last(x) + torch.linalg.svd(x.reshape(-1, 2, 4))[1].sum(1, keepdim=True)

class Losing(Net):
    def loss(self, answer, labels):
        return answer[:, 9].mean()

class Whole(Net):
    def loss(self, answer, labels):
        return answer.detach().mean()

class Late(Net):
    def loss(self, answer, labels):
        self.calls += 1
        if self.calls > 4:
            raise ValueError("late trouble")
        return nn.functional.cross_entropy(answer, labels)

def build(classes): return Net(classes)
def spectral(classes): return Spectral(classes)
def losing(classes): return Losing(classes)
def whole(classes): return Whole(classes)
def late(classes): return Late(classes)
"""
METRICS = """
from beside import KEY

def key(outputs, labels):
    return outputs[KEY]

def nothing(outputs, labels):
    outputs.clear()

def both(outputs, labels):
    return outputs["probabilities"]

def text(outputs, labels):
    return "12"

def never(outputs, labels):
    return float("nan")

def right(outputs, labels):
    return 1.0 if (outputs["probabilities"].argmax(1) == labels).all() else float("nan")
"""
Compile = Callable[..., tuple[int, str]]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Compile:
    """(exit code, the message) of a compile of 300 rows of 8 columns, by what is asked beyond that."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, n in (("rows", 300), ("few", 36)):
        np.savez(f"{name}.npz", x=rng.normal(size=(n, 8)), y=np.arange(n) % 3)
    Path("mine.py").write_text(MODEL)
    Path("scores.py").write_text(METRICS)
    Path("beside.py").write_text('KEY = "logits"\n')

    def compile_(model: str = "build", data: str = "rows.npz", *more: str) -> tuple[int, str]:
        capfd.readouterr()
        code = run(["compile", f"mine.py:{model}", "--data", data, "--task", "classify", "--device", "x86-gateway",
                    "--epochs", "1", "--json", *more])  # fmt: skip
        out, err = capfd.readouterr()
        assert out == ""
        return code, err.strip()

    return compile_


def trained() -> list[str]:
    return [p.name for p in Path(".edgewright").glob("steps/*") if not p.name.startswith(("trial-", ".trial-"))]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "key",
            "scores.py:5: key() raised KeyError: 'logits'; it is given outputs 'probabilities' float32 [33, 3] and",
        ),
        ("nothing", "metric scores.py:nothing: expected it to return an array of 33 numbers (one a row) or one number"),
        ("both", "or one number, got ndarray of shape (33, 3) and float32; it is given outputs 'probabilities'"),
        ("text", "or one number, got str '12'; it is given outputs"),
        ("never", "metric scores.py:never: expected a finite number, got nan for 33 validation rows, and no finite"),
        (
            "absent",
            "metric scores.py:absent: scores.py: no 'absent' in it; it defines both, key, never, nothing, right, text",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_told_before_training(asked: Compile, metric: str, message: str) -> None:
    code, said = asked("build", "rows.npz", "--metric", f"scores.py:{metric}")
    assert (code, trained()) == (2, [])
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_metric_that_only_an_untrained_net_leaves_undefined_is_no_reason_to_refuse(asked: Compile) -> None:
    code, said = asked("spectral", "rows.npz", "--format", "onnx", "--metric", "scores.py:right")
    assert (code, said[:41]) == (1, "edgewright: ONNX has no form of aten._lin"), "it came past the metric"


def test_too_few_rows_to_calibrate_on_are_told_before_training(asked: Compile) -> None:
    code, said = asked("build", "few.npz")
    assert (code, trained()) == (2, [])
    assert "training rows: expected at least 32, which set the ranges of int8" in said
    assert said.endswith("give more samples")


def test_an_operator_that_a_format_lacks_is_told_before_training(asked: Compile) -> None:
    code, said = asked("spectral", "rows.npz", "--format", "onnx")
    assert (code, trained()) == (1, [])
    assert said.startswith("edgewright: ONNX has no form of aten._linalg_svd")
    assert "in module 'net.net' (Spectral); the way out: " in said
    assert said.endswith("Nothing was trained yet")


def test_what_a_loss_of_ones_own_raises_while_it_trains_is_told_with_its_line(asked: Compile) -> None:
    code, said = asked("late", "rows.npz", "--format", "onnx")
    assert code == 2
    assert "mine.py:29: loss() raised ValueError: late trouble" in said


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("mine.py", "mine.py is a file: expected a folder"),
        ("mine.py/deeper", "mine.py is a file: expected a folder"),
        ("/proc/none", "/proc: expected a folder that files can be made in"),
        ("taken", "taken/mine-1.0.0 exists already: remove it, or choose another --out or --version"),
    ],
)
def test_a_place_where_no_package_can_be_made_is_told_before_anything_is_read(
    asked: Compile, tmp_path: Path, out: str, message: str
) -> None:
    (tmp_path / "taken" / "mine-1.0.0").mkdir(parents=True)
    code, said = asked("build", "absent.npz", "--out", out)
    assert (code, trained()) == (2, [])
    assert message in said
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".edgewright-")]


def test_a_choice_that_is_none_is_told_before_anything_is_read(asked: Compile) -> None:
    assert "no choice.json of an earlier run" in asked("build", "absent.npz", "--choice", "mine.py")[1]


PURPOSE = Purpose(recipe="a" * 64, data="rows", device="x86-gateway", seed=1)
CHOICE = Choice(
    arch=Arch(share=0.5),
    chosen={"onnx": "onnx-fp32", "tflite": "tflite-fp32"},
    limits=Limits(),
    candidates=tuple(
        Candidate(arch=Arch(share=0.5), scheme=f"{f}-fp32", format=f, precision="fp32") for f in ("onnx", "tflite")
    ),
    why="",
    tried=(),
    purpose=PURPOSE,
)
ARCHS = (Arch(), Arch(share=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"recipe": "b" * 64},
            "made for another recipe or file, or other settings of it: expected a{16}, got b{16};",
        ),
        (
            {"data": "others"},
            "made for other data: expected rows, got others; compile with those, or leave",
        ),
        ({"device": "raspberry-pi-4"}, "another device: expected x86-gateway, got raspberry-pi-4; name that one"),
        ({"seed": 7}, "made for another seed: expected 1, got 7; give that one"),
    ],
)
def test_a_recorded_choice_of_something_else_is_refused(change: dict[str, object], message: str) -> None:
    other = msgspec.structs.replace(CHOICE, purpose=msgspec.structs.replace(PURPOSE, **change))
    with pytest.raises(RequestError, match=message):
        recalled(other, PURPOSE, ARCHS, ("onnx", "tflite"))


def test_a_recorded_choice_that_does_not_say_what_it_is_for_is_refused() -> None:
    with pytest.raises(RequestError, match=r"does not say what it was made for: .*; take the choice\.json"):
        recalled(msgspec.structs.replace(CHOICE, purpose=None), PURPOSE, ARCHS, ("onnx",))


def test_a_recorded_choice_has_limits_of_its_own_and_takes_no_others() -> None:
    recorded = msgspec.structs.replace(CHOICE, limits=Limits(max_drop=1.0, max_p95_ms=5))
    assert limits_of(recorded, Limits()) == limits_of(recorded, Limits(max_p95_ms=5)) == recorded.limits
    assert limits_of(None, Limits(max_drop=2.0)) == Limits(max_drop=2.0)
    message = r"\(--max-drop: expected 1, got 2; --max-size-kb: expected none, got 1\): leave these limits out"
    with pytest.raises(RequestError, match=message):
        limits_of(recorded, Limits(max_drop=2.0, max_p95_ms=5, max_size_kb=1))


def test_other_limits_than_the_recorded_ones_cost_no_training(asked: Compile) -> None:
    write_choice(CHOICE, Path("choice.json"))
    code, said = asked("build", "rows.npz", "--choice", "choice.json", "--max-p95-ms", "0.5")
    assert (code, trained()) == (2, [])
    assert "made within other limits (--max-p95-ms: expected none, got 0.5)" in said


def test_a_recorded_choice_of_something_else_costs_no_training(asked: Compile) -> None:
    write_choice(CHOICE, Path("choice.json"))
    code, said = asked("build", "rows.npz", "--choice", "choice.json")
    assert (code, trained()) == (2, [])
    assert "made for another recipe or file, or other settings of it" in said


def test_a_recorded_choice_is_what_the_recipe_can_make_in_the_formats_that_are_asked_for(tmp_path: Path) -> None:
    write_choice(CHOICE, tmp_path / "choice.json")
    assert recalled(read_choice(tmp_path / "choice.json"), PURPOSE, ARCHS, ("onnx", "tflite")) == CHOICE
    assert recalled(CHOICE, PURPOSE, ARCHS, ("tflite",)).chosen == {"tflite": "tflite-fp32"}
    trained_for_int8 = msgspec.structs.replace(CHOICE, arch=Arch(share=0.5, qat=True))
    assert recalled(trained_for_int8, PURPOSE, ARCHS, ("onnx",)).arch.qat
    wide = msgspec.structs.replace(CHOICE, arch=Arch(width=3.0))
    with pytest.raises(RequestError, match=r"choice is w3-p1: expected one of w1-p1, w1-p0.5; compile what"):
        recalled(wide, PURPOSE, ARCHS, ("onnx",))
    single = msgspec.structs.replace(CHOICE, chosen={"onnx": "onnx-fp32"})
    with pytest.raises(RequestError, match="choice has onnx: expected tflite; name another --format"):
        recalled(single, PURPOSE, ARCHS, ("tflite",))
