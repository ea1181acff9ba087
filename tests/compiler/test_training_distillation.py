"""Distillation: any teacher to any student, by answers and by embeddings, with and without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright_compiler.recipe import Distil, Schedule
from edgewright_compiler.rows import Labelled
from edgewright_compiler.training.distill import Teaching, distillation, file_teacher, module_teacher
from edgewright_compiler.training.draws import draws
from edgewright_compiler.training.losses import task_loss
from edgewright_compiler.training.train import Batch, answers, reproducible, train
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import TensorIn, TensorOut
from sim.nets import Case, Cnn, case, zoo

ZOO = pytest.mark.parametrize("one", zoo(), ids=lambda one: one.name)
SCHEDULE = Schedule(epochs=12, batch=32, rate=0.01)


def built(one: Case, seed: int, **kinds: Any) -> nn.Module:
    with reproducible(seed):
        return one.build(**kinds).eval()


def learn(one: Case, net: nn.Module, loss: Any, *, labels: Any = None, schedule: Schedule = SCHEDULE) -> nn.Module:
    rows = Labelled("train", {"x": one.rows}, one.labels if labels is None else labels)
    train(net, nn.Identity(), draws(rows, None, 1), loss, schedule, seed=1, progress=lambda share: None)
    return net


def base(one: Case, net: nn.Module | None = None) -> Any:
    return task_loss(one.task, schedule=SCHEDULE, labels=one.labels, net=net or one.build())


def batch(one: Case) -> Batch:
    x = torch.from_numpy(one.rows)
    return Batch(x, x, torch.from_numpy(one.labels))


@ZOO
def test_a_student_that_answers_like_its_teacher_has_no_distance_left(one: Case) -> None:
    teacher, stranger = built(one, 3), built(one, 4)
    loss = distillation(one.task, module_teacher(teacher), base(one, teacher), Distil(weight=1.0))
    rows = batch(one)
    if one.task == "detection":  # its boxes must not lie where a sigmoid is flat
        rows = Batch(rows.raw, rows.x * 3, rows.labels)
    with torch.no_grad():
        same, other = (loss(rows, net(rows.x), torch.zeros(len(rows.x), 1)).item() for net in (teacher, stranger))
    assert abs(same) < 1e-5
    assert other > 10 * abs(same)
    assert other > 1e-6


@ZOO
def test_a_student_comes_near_its_teacher_without_a_single_label(one: Case) -> None:
    teacher = learn(one, net := built(one, 3), base(one, net))
    student = built(one, 4, width=8)
    unknown = np.full_like(one.labels, -1 if one.labels.dtype == np.int64 else np.nan)
    wanted = answers(teacher, nn.Identity(), one.rows)[0]

    def away() -> float:
        return float(np.square(answers(student, nn.Identity(), one.rows)[0] - wanted).mean())

    before = away()
    learn(one, student, distillation(one.task, module_teacher(teacher), base(one, student), Distil()), labels=unknown)
    assert away() < 0.7 * before


def test_the_teacher_stays_as_it_was() -> None:
    one = case("cnn")
    teacher = built(one, 3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss = distillation(one.task, module_teacher(teacher), base(one), Distil(features=1.0))
    learn(one, built(one, 4), loss, schedule=Schedule(epochs=1))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert isinstance(loss, nn.Module)
    assert [name for name, _ in loss.named_parameters()] == ["map.weight", "map.bias"], "only the map learns beside"


def test_features_pull_embeddings_of_another_width_to_the_teachers() -> None:
    one = case("depthwise")
    teacher = learn(one, net := built(one, 3, width=32), base(one, net))
    loss = distillation(one.task, module_teacher(teacher), base(one), Distil(features=1.0, weight=0.0))
    unknown = Labelled("train", {"x": one.rows}, np.full_like(one.labels, -1))
    history = train(
        built(one, 4, width=8),
        nn.Identity(),
        draws(unknown, None, 1),
        loss,
        SCHEDULE,
        seed=1,
        progress=lambda share: None,
    )
    assert history.losses[0] > 0.5, "relative to the size of the teacher's"
    assert history.losses[-1] < 0.4 * history.losses[0]


@pytest.mark.parametrize("plan", [Distil(temperature=0.0), Distil(weight=1.5), Distil(features=-1.0)])
def test_a_plan_out_of_range_is_named(plan: Distil) -> None:
    with pytest.raises(RequestError, match=r"expected temperature > 0, weight in \[0, 1\]"):
        distillation("classification", module_teacher(Cnn()), base(case("cnn")), plan)


def test_answers_that_do_not_compare_are_named() -> None:
    one = case("cnn")
    loss = distillation(
        "classification", module_teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 5))), base(one), Distil()
    )
    with pytest.raises(RequestError, match=r"\[2, 3\] from the student and \[2, 5\] from the teacher"):
        learn(one, Cnn(), loss)


# Files as teachers.


class Raw(nn.Module):
    """Probabilities from raw uint8 images, as a packaged graph gives them."""

    def __init__(self, net: nn.Module, *, sigmoid: bool = False) -> None:
        super().__init__()
        self.net, self.sigmoid = net, sigmoid

    def forward(self, raw: Tensor) -> Tensor:
        answer = self.net(raw.float() / 255)
        return torch.sigmoid(answer) if self.sigmoid else torch.softmax(answer, 1)


class Scale(nn.Module):
    def forward(self, raw: Tensor) -> Tensor:
        return raw.float() / 255


IMAGE = TensorIn(name="image", dtype="uint8", shape=(1, 8, 8))
PROBABILITIES = TensorOut(name="probabilities", role="probabilities", shape=(3,))


def exported(net: nn.Module, path: Path) -> Path:
    raw = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    if path.suffix == ".tflite":
        import litert_torch

        litert_torch.convert(net.eval(), (raw[:1],)).export(str(path))
    else:
        torch.onnx.export(
            net.eval(), (raw,), path, dynamo=True, verbose=False, external_data=False,
            input_names=["image"], output_names=["probabilities"], dynamic_shapes=({0: torch.export.Dim("n")},),
        )  # fmt: skip
    return path


def images() -> Any:
    return np.random.default_rng(5).integers(0, 256, (16, 1, 8, 8), np.uint8)


def of(raw: Any) -> Batch:
    tensor = torch.from_numpy(raw)
    return Batch(tensor, tensor.float() / 255, torch.zeros(len(raw), dtype=torch.int64))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # exporters warn about themselves
@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_file_teaches_what_the_net_in_it_would(suffix: str, tmp_path: Path) -> None:
    net = built(case("cnn"), 3)
    taught = file_teacher(
        exported(Raw(net), tmp_path / f"t{suffix}"), "classification", reads=IMAGE, gives=(PROBABILITIES,)
    )
    logits, embedding = taught.answer(of(images()))
    assert embedding is None
    with torch.no_grad():
        expected = torch.log_softmax(net(of(images()).x), 1)
    assert torch.allclose(logits, expected, atol=1e-4)
    student = Cnn(8)
    rows = Labelled("train", {"x": images()}, np.arange(16) % 3)
    loss = distillation("classification", taught, base(case("cnn")), Distil())
    schedule = Schedule(epochs=3, batch=8)
    history = train(student, Scale(), draws(rows, None, 1), loss, schedule, seed=1, progress=lambda share: None)
    assert history.losses[-1] < history.losses[0]


class Fixed:
    """A session of which the answer is known."""

    runtime, version, concurrent = "fixed", "0", True

    def __init__(self, answer: Any) -> None:
        self.answer = np.asarray(answer, np.float32)

    def run(self, inputs: Any) -> Any:
        return {"out": self.answer}


def opened(monkeypatch: pytest.MonkeyPatch, answer: Any, task: Any, role: Any) -> Teaching:
    monkeypatch.setattr("edgewright_compiler.training.distill.open_session", lambda *_, **__: Fixed(answer))
    return file_teacher(Path("t.onnx"), task, reads=IMAGE, gives=(TensorOut(name="out", role=role, shape=(2,)),))


def test_probabilities_of_labels_become_logits_and_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    many = opened(monkeypatch, [[0.5, 1.0]], "multilabel", "probabilities").answer(of(images()[:1]))[0]
    assert many[0, 0].item() == pytest.approx(0, abs=1e-6)
    assert 15 < many[0, 1].item() < 17, "certainty is finite"
    rounded = opened(monkeypatch, [[-2e-4, 1.0002]], "classification", "probabilities").answer(of(images()[:1]))[0]
    assert torch.isfinite(rounded).all(), "what rounding leaves beside [0, 1] is no logit"
    values = opened(monkeypatch, [[-3.0, 40.0]], "regression", "values").answer(of(images()[:1]))[0]
    assert values.tolist() == [[-3.0, 40.0]]


def test_a_file_that_cannot_teach_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"expected probabilities in \[0, 1\], got -1 to 7; end the file with a"):
        opened(monkeypatch, [[-1, 7]], "classification", "probabilities").answer(of(images()[:1]))
    with pytest.raises(RequestError, match="a file cannot teach anomaly"):
        opened(monkeypatch, [[0.1]], "anomaly", "score")
    with pytest.raises(RequestError, match=r"role probabilities or values, got out \(boxes\)"):
        opened(monkeypatch, [[0.1]], "classification", "boxes")
    with pytest.raises(RequestError, match=r"expected a file .onnx or .tflite, got .pb"):
        file_teacher(tmp_path / "t.pb", "classification", reads=IMAGE, gives=(PROBABILITIES,))


def test_features_need_a_teacher_that_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    taught = opened(monkeypatch, np.full((2, 3), 1 / 3), "classification", "probabilities")
    loss = distillation("classification", taught, base(case("cnn")), Distil(features=1.0))
    with pytest.raises(RequestError, match="a file has none; use 0"):
        learn(case("cnn"), Cnn(), loss)
