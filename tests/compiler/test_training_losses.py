"""Losses by task: scale-free, weighed, blind to unknown labels; and a net's own loss that wins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright_compiler.recipe import Schedule
from edgewright_compiler.training.losses import task_loss
from edgewright_compiler.training.train import Batch, Loss
from edgewright_contracts.errors import RequestError
from sim.nets import case

PLAIN = Schedule(epochs=1)
BALANCED = Schedule(epochs=1, balanced=True)
SMOOTH = Schedule(epochs=1, smoothing=0.2)


def value(loss: Loss, answer: Any, labels: Any) -> float:
    a, y = torch.as_tensor(answer), torch.as_tensor(labels)
    return loss(Batch(a, a, y), a, a).item()


def test_a_rare_class_weighs_by_the_inverse_of_its_count() -> None:
    labels = np.array([0] * 9 + [1])
    loss = task_loss("classification", schedule=BALANCED, labels=labels)
    logits = torch.tensor([[0.0, 0.0]] * 9 + [[3.0, 0.0]])
    right, wrong = np.log(2), float(functional.cross_entropy(logits[9:], torch.tensor([1])))
    assert value(loss, logits, labels) == pytest.approx((right + wrong) / 2), "nine of one count as one of the other"


def test_a_class_that_training_rows_do_not_have_has_a_weight_like_any() -> None:
    loss = task_loss("classification", schedule=BALANCED, labels=np.array([0, 2, 2]))
    assert np.isfinite(value(loss, torch.zeros(2, 5), torch.tensor([1, 4])))


def test_smoothing_keeps_a_perfect_answer_from_being_free() -> None:
    labels = np.array([0, 1, 2])
    sure = 100 * torch.eye(3)
    assert value(task_loss("classification", schedule=PLAIN, labels=labels), sure, labels) < 1e-6
    assert value(task_loss("classification", schedule=SMOOTH, labels=labels), sure, labels) > 1
    both = np.eye(3, dtype=np.float32)
    assert value(task_loss("multilabel", schedule=SMOOTH, labels=both), 200 * sure - 100, both) > 1


def test_rare_positives_of_one_label_weigh_more() -> None:
    labels = np.zeros((10, 2), np.float32)
    labels[:5, 0] = labels[0, 1] = 1
    loss = task_loss("multilabel", schedule=BALANCED, labels=labels)
    missed = torch.tensor([[0.0, -4.0]])
    assert value(loss, missed, [[1.0, 1.0]]) > 3 * value(loss, -missed, [[1.0, 0.0]])


def test_regression_is_in_units_of_each_columns_spread() -> None:
    small = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    large = small * np.array([1e-3, 1e4], np.float32)
    off = np.array([0.1, 0.2], np.float32)
    a = value(task_loss("regression", schedule=PLAIN, labels=small), small + off, small)
    b = value(
        task_loss("regression", schedule=PLAIN, labels=large), large + off * np.array([1e-3, 1e4], np.float32), large
    )
    assert a == pytest.approx(b, rel=1e-2)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_unknown_labels_do_not_count(task: Any) -> None:
    labels: Any = np.array([0, 1, 2, 1]) if task == "classification" else np.eye(4, 3, dtype=np.float32)
    loss = task_loss(task, schedule=PLAIN, labels=labels)
    answer = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    some = labels.copy()
    some[2:] = -1 if task == "classification" else np.nan
    assert value(loss, answer, some) == pytest.approx(value(loss, answer[:2], labels[:2]))
    answer.requires_grad_(True)
    x = answer.detach()
    loss(Batch(x, x, torch.as_tensor(np.full_like(some, some[3]))), answer, x).backward()  # type: ignore[no-untyped-call]
    assert answer.grad is not None
    assert float(answer.grad.abs().sum()) == 0


def test_one_label_of_many_may_be_unknown() -> None:
    labels = np.array([[0, 1], [1, 0]], np.float32)
    loss = task_loss("multilabel", schedule=PLAIN, labels=labels)
    assert value(loss, torch.tensor([[2.0, 50.0]]), [[1.0, np.nan]]) == pytest.approx(np.log1p(np.exp(-2)), rel=1e-5)


class Own(nn.Module):
    def __init__(self, answers: Any = None) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.answers = answers

    def loss(self, answer: Tensor, labels: Tensor) -> Any:
        self.seen.append(len(labels))
        return answer.mean() if self.answers is None else self.answers


def test_a_nets_own_loss_wins_and_sees_labelled_rows_only() -> None:
    net = Own()
    loss = task_loss("classification", schedule=PLAIN, labels=np.array([0, 0]), net=net)
    assert value(loss, torch.full((3, 2), 7.0), [0, -1, 1]) == 7.0
    assert value(loss, torch.full((3, 2), 7.0), [-1, -1, -1]) == 0.0
    assert net.seen == [2]


@pytest.mark.parametrize("answer", [torch.zeros(3), 0.5])
def test_a_nets_own_loss_that_is_no_scalar_is_named(answer: Any) -> None:
    loss = task_loss("detection", schedule=PLAIN, labels=np.zeros((1, 1, 5)), net=Own(answer))
    with pytest.raises(RequestError, match="expected a scalar tensor, got"):
        value(loss, torch.zeros(1, 2, 5), np.zeros((1, 1, 5), np.float32))


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        ("classification", np.full(8, 3), "at least 2 classes among 8 training labels, got only class 3"),
        ("classification", np.full(8, -1), "at least 2 classes among 0 training labels, got none"),
        ("multilabel", np.ones((4, 2), np.float32), "expected both 0 and 1 among 8 training labels"),
        ("regression", np.array([[1.0, 2.0], [2.0, 2.0]]), "a constant in column 1"),
        ("detection", np.zeros((1, 1, 5)), r"a method loss\(answer, labels\) -> scalar on Conv2d"),
        ("embedding", np.zeros(1), "expected a task among classification"),
    ],
)
def test_nothing_to_learn_is_named(task: Any, labels: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        task_loss(task, schedule=PLAIN, labels=labels, net=nn.Conv2d(1, 1, 1))


def test_the_detector_of_the_zoo_is_judged_by_its_own_loss() -> None:
    one = case("detector")
    net = one.build()
    loss = task_loss(one.task, schedule=PLAIN, labels=one.labels, net=net)
    answer = net(torch.from_numpy(one.rows)).detach()
    assert value(loss, answer, one.labels) == pytest.approx(float(net.loss(answer, torch.from_numpy(one.labels))))
