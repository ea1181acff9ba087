"""A finished file teaches whether it gives logits or probabilities, and what cannot teach is told before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgewright_compiler.own.recipe import own_recipe
from edgewright_compiler.own.teacher import finished_teacher
from edgewright_compiler.pipeline import learn
from edgewright_compiler.pipeline.choice import Arch
from edgewright_compiler.pipeline.steps import Store
from edgewright_compiler.pipeline.workbench import Workbench
from edgewright_compiler.recipe import Recipe
from edgewright_compiler.training.train import reproducible
from edgewright_contracts.errors import RequestError
from sim.tflite import Graph

NET = """
from torch import nn
def build(classes, shape):
    return nn.Sequential(nn.Linear(shape[0], 6), nn.ReLU(), nn.Linear(6, classes))
"""
ENDS = {"classify": "softmax", "multilabel": "logistic"}
WEIGHTS = np.random.default_rng(1).normal(0, 1.5, (4, 3)).astype(np.float32)
BOTH = pytest.mark.parametrize("suffix", [".onnx", ".tflite"])

Own = Callable[..., Recipe]


@pytest.fixture
def own(tmp_path: Path) -> Own:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (90, 4)).astype(np.float32)
    (tmp_path / "mine.py").write_text(NET)
    targets = {"classify": np.arange(90) % 3, "multilabel": (x[:, :3] > 0).astype(np.int64), "regress": x[:, :3]}

    def recipe(teacher: Path, task: str = "classify") -> Recipe:
        np.savez(tmp_path / "rows.npz", x=x, y=targets[task])
        place = f"{tmp_path / 'mine.py'}:build"
        return own_recipe(place, tmp_path / "rows.npz", task=task, teacher=str(teacher), epochs=2)

    return recipe


def file(path: Path, end: str = "", *, weights: Any = WEIGHTS, bias: float = 0.0) -> Path:
    """One dense layer and what it ends in."""
    offset = np.full(weights.shape[1], bias, np.float32)
    if path.suffix == ".onnx":
        return _onnx(path, end, weights, offset)
    graph = Graph()
    y = graph.dense(graph.input("x", (1, len(weights))), weights, offset)
    y = y if not end else graph.quantize(graph.softmax(y), 1 / 256, -128) if end == "int8" else getattr(graph, end)(y)
    graph.output("y", y)
    path.write_bytes(graph.finish())
    return path


def _onnx(path: Path, end: str, weights: Any, offset: Any, batch: str | int = "n") -> Path:
    """`end` may also be argmax, or both: labels beside probabilities, as scikit-learn's models are exported."""
    softmax = helper.make_node("Softmax", ["z"], ["y"])
    argmax = helper.make_node("ArgMax", ["z"], ["label"], axis=1)
    ends = {"softmax": [softmax], "logistic": [helper.make_node("Sigmoid", ["z"], ["y"])], "argmax": [argmax]}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), *ends.get(end, [])]
    kinds = {"argmax": [("label", TensorProto.INT64)]}
    kinds["both"] = [*kinds["argmax"], ("y", TensorProto.FLOAT)]
    if end == "both":
        nodes += [softmax, argmax]
    outputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in kinds.get(end, [("y" if end else "z", TensorProto.FLOAT)])
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, len(weights)))], outputs,
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(offset, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def bench(root: Path, recipe: Recipe) -> Workbench:
    return Workbench(recipe, seed=3, store=Store(root / "steps", lambda: 0.0), say=lambda _stage, _share: None)


@BOTH
@pytest.mark.parametrize("task", sorted(ENDS))
def test_logits_teach_and_are_judged_like_the_probabilities_that_they_make(
    suffix: str, task: str, own: Own, tmp_path: Path
) -> None:
    names, nets, truths = [], [], []
    for end, given in (("", "logits"), (ENDS[task], "probabilities")):
        recipe = own(file(tmp_path / f"t-{given}{suffix}", end), task)
        assert recipe.teacher is not None
        assert recipe.teacher.logits == (given == "logits")
        assert recipe.notes[-1].endswith(f"it gives {given}.")
        at = bench(tmp_path, recipe)
        with reproducible(3):
            student = learn.student(at, Arch(), None)
        names.append(student.step)
        nets.append(torch.cat([weight.flatten() for weight in student.net().state_dict().values()]))
        truths.append(learn.reference_outputs(at, None, "test", at.data.test))
    assert names[0] != names[1]
    torch.testing.assert_close(nets[0], nets[1], atol=1e-4, rtol=1e-4)
    assert [list(one) for one in truths] == [["probabilities"]] * 2
    np.testing.assert_allclose(truths[0]["probabilities"], truths[1]["probabilities"], atol=1e-6)


def test_what_the_file_gives_is_part_of_what_steps_hang_on(own: Own, tmp_path: Path) -> None:
    recipe = own(file(tmp_path / "t.onnx"))
    assert recipe.teacher is not None
    other = replace(recipe, teacher=replace(recipe.teacher, logits=False))
    with reproducible(3):
        one = bench(tmp_path, recipe)
        learn.reference_outputs(one, None, "test", one.data.test)
        before = {path.name for path in one.store.root.iterdir()}
        learn.reference_outputs(bench(tmp_path, other), None, "test", one.data.test)
    assert len({path.name for path in one.store.root.iterdir()} - before) == 1


@BOTH
def test_logits_that_lie_between_0_and_1_are_no_probabilities_of_one_class(
    suffix: str, own: Own, tmp_path: Path
) -> None:
    recipe = own(file(tmp_path / f"t{suffix}", weights=WEIGHTS / 100, bias=0.5))
    assert recipe.teacher is not None
    assert recipe.teacher.logits


def test_probabilities_rounded_to_int8_need_not_sum_to_1(own: Own, tmp_path: Path) -> None:
    recipe = own(file(tmp_path / "t.tflite", "int8"))
    assert recipe.teacher is not None
    assert not recipe.teacher.logits


@BOTH
def test_values_teach_a_regression_as_they_are(suffix: str, own: Own, tmp_path: Path) -> None:
    recipe = own(file(tmp_path / f"t{suffix}"), "regress")
    assert recipe.teacher is not None
    assert not recipe.teacher.logits
    assert recipe.notes[-1] == f"Teacher: t{suffix}, a finished file."


@BOTH
def test_a_file_that_does_not_fit_is_told_by_what_it_answers(suffix: str, own: Own, tmp_path: Path) -> None:
    def refused(match: str, task: str = "classify", **kinds: Any) -> None:
        with pytest.raises(RequestError, match=match):
            own(file(tmp_path / f"t{suffix}", **kinds), task)

    two = r"answers \[\d+, 2\] to \d+ training rows: expected \[\d+, 3\], one for each class \(0, 1, 2\)"
    refused(two, weights=WEIGHTS[:, :2])
    refused(r"expected \[\d+, 3\], one value for each target", "regress", weights=WEIGHTS[:, :2])
    refused(r"NaN or infinity to training row 0: does it take raw rows", bias=np.nan)


def test_a_finished_teacher_leaves_nothing_to_finetune(own: Own, tmp_path: Path) -> None:
    path = file(tmp_path / "t.onnx")
    own(path)
    with pytest.raises(RequestError, match=r"w\.pt: --finetune starts the teacher, and t\.onnx is finished"):
        own_recipe(
            f"{tmp_path / 'mine.py'}:build", tmp_path / "rows.npz", task="classify", teacher=str(path),
            finetune=tmp_path / "w.pt",
        )  # fmt: skip


def test_a_file_holds_no_answer_to_a_task_of_scores(own: Own, tmp_path: Path) -> None:
    path = file(tmp_path / "t.onnx")
    recipe = own(path)
    with pytest.raises(RequestError, match=r"cannot teach anomaly; give the teacher as FILE\.py:FUNCTION"):
        finished_teacher(path, "anomaly", recipe.input, recipe.data())


def test_an_onnx_file_that_cannot_teach_says_how_to_export_it(own: Own, tmp_path: Path) -> None:
    path, offset = tmp_path / "t.onnx", np.zeros(3, np.float32)
    for end, outputs in (("argmax", "label int64"), ("both", "label int64, y float32")):
        with pytest.raises(RequestError, match=f"its outputs are {outputs}: expected one of float32 or float16; exp"):
            own(_onnx(path, end, WEIGHTS, offset))
    with pytest.raises(RequestError, match=r"does not take \d+ training rows float32 \[\d+, 4\]: .*any number of them"):
        own(_onnx(path, "", WEIGHTS, offset, batch=1))
    with pytest.raises(RequestError, match=r"does not take \d+ training rows float32"):
        own(file(path, weights=np.ones((5, 3), np.float32)))
    path.write_bytes(b"no model")
    with pytest.raises(RequestError, match="onnxruntime does not load it"):
        own(path)
    path = tmp_path / "t.pt2"
    path.touch()
    with pytest.raises(RequestError, match=r"a teacher is FILE\.py:FUNCTION, \.onnx or \.tflite"):
        own(path)
