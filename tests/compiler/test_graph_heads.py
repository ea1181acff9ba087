"""Outputs by task are what a package declares, and an answer of the wrong shape is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgewright_compiler.graph.features import of_outputs
from edgewright_compiler.graph.heads import MAX_BOXES, Head, head
from edgewright_contracts.binning import quantile_edges
from edgewright_contracts.channels import Binner, Channel
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task


def of(task: Task, answer: Tensor, prepared: Tensor | None = None, *, labels: int = 0, temperature: float = 1) -> Head:
    return head(task, answer, answer if prepared is None else prepared, labels=labels, temperature=temperature, scale=2)


def test_probabilities_are_softmax_of_logits_over_the_temperature() -> None:
    logits = torch.randn(5, 4)
    (got,) = of("classification", logits, labels=4, temperature=2.0)(logits, logits)
    torch.testing.assert_close(got, torch.softmax(logits / 2, 1))
    (each,) = of("multilabel", logits, temperature=2.0)(logits, logits)
    torch.testing.assert_close(each, torch.sigmoid(logits / 2))


def test_values_are_the_answer() -> None:
    answer = torch.randn(3, 2)
    assert of("regression", answer)(answer, answer)[0] is answer


def test_an_anomaly_score_rises_with_the_error_and_is_a_half_at_its_scale() -> None:
    prepared = torch.zeros(6, 3)
    errors = torch.tensor([0.0, 1e-6, 1.0, 2.0, 200.0, 1e20])
    answer = errors.sqrt()[:, None].expand(6, 3)
    (score,) = of("anomaly", answer, prepared)(answer, prepared)
    assert score.shape == (6, 1)
    assert (score.diff(dim=0) > 0).all()
    torch.testing.assert_close(score[3, 0], torch.tensor(0.5))
    assert 0 <= score.min() <= score.max() <= 1


def boxed(*rows: tuple[float, float, float, float, float, float]) -> Tensor:
    return torch.tensor([rows])


def test_of_two_boxes_of_one_class_that_overlap_the_better_stays() -> None:
    answer = boxed(
        (0.1, 0.1, 0.5, 0.5, 2.0, -9),
        (0.12, 0.1, 0.5, 0.52, 3.0, -9),  # better than the first
        (0.1, 0.1, 0.5, 0.5, -9, 1.0),  # another class
        (0.6, 0.6, 0.9, 0.9, 1.0, -9),  # elsewhere
        (0.6, 0.6, 0.9, 0.9, 1.0, -9),  # the same once more: the earlier one stays
        (0.7, 0.7, 0.6, 0.6, 0.5, -9),  # turned inside out: no area, overlaps nothing
    )
    boxes, scores, classes = of("detection", answer, labels=2)(answer, answer)
    logits = [0, 3.0, 1.0, 1.0, 0, 0.5]
    expected = [float(torch.sigmoid(torch.tensor(x))) if x else 0.0 for x in logits]
    np.testing.assert_allclose(scores[0].numpy(), expected, rtol=1e-6)
    assert classes.tolist() == [[0, 0, 1, 0, 0, 0]]
    assert classes.dtype == torch.int32
    assert torch.equal(boxes, answer[:, :, :4])


def test_of_many_boxes_the_best_are_kept() -> None:
    generator = torch.Generator().manual_seed(1)
    answer = torch.rand(2, 3 * MAX_BOXES, 7, generator=generator)
    top = of("detection", answer)
    boxes, scores, _ = top(answer, answer)
    assert boxes.shape == (2, MAX_BOXES, 4)
    assert top.outputs[0].shape == (MAX_BOXES, 4)
    best = torch.sigmoid(answer[:, :, 4:].amax(2)).sort(descending=True).values[:, :MAX_BOXES]
    kept = scores > 0
    assert torch.isin(scores[kept], best).all()
    assert (scores.amax(1) == best[:, 0]).all()


@pytest.mark.parametrize(
    ("task", "answer", "labels", "message"),
    [
        ("classification", (7, 10), 12, r"logits \[n, 12\], one for each of the 12 labels; this one answers \[n, 10\]"),
        ("classification", (7, 3, 3), 3, r"this one answers \[n, 3, 3\]"),
        ("classification", (7, 1), 0, r"answers \[n, 1\]"),
        ("regression", (7, 2, 2), 0, r"values \[n, k\]"),
        ("anomaly", (7, 5), 0, r"a reconstruction of its input, \[n, 8\]; this one answers \[n, 5\]"),
        ("detection", (7, 9, 6), 3, r"\[n, boxes, 4 \+ 3\]"),
        ("embedding", (7, 9), 0, r"no head for the task 'embedding'"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_named(task: Task, answer: tuple[int, ...], labels: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        of(task, torch.zeros(answer), torch.zeros(7, 8), labels=labels)


def test_a_temperature_of_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="temperature above 0, got 0"):
        of("classification", torch.zeros(2, 3), temperature=0)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "anomaly", "detection"])
def test_what_is_counted_of_an_output_can_be_counted(task: Task) -> None:
    shape = {"detection": (40, 6, 7)}.get(task, (40, 3))
    answer = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    top = of(task, answer, torch.zeros_like(answer))
    found = top(answer, torch.zeros_like(answer))
    outputs = {o.name: y.numpy() for o, y in zip(top.outputs, found, strict=True)}
    assert [y.shape[1:] for y in outputs.values()] == [o.shape for o in top.outputs]
    assert [y.dtype.name for y in outputs.values()] == [o.dtype for o in top.outputs]
    edges = quantile_edges(np.arange(100.0))
    channels = [
        Channel(f.name, f.group, f.kind, f.source, edges if f.kind == "numeric" else (), f.values)
        for f in of_outputs(task, size=3)
    ]
    binner = Binner(channels)
    binner.add(outputs)
    assert binner.take().sum() > 0
    assert len({c.name for c in channels}) == len(channels)
