"""What training minimises, by task; scale-free, so that one rate suits metres and millimetres.

    classification  cross-entropy, smoothed; classes weigh n / (k × count) when balanced
    multilabel      binary cross-entropy, smoothed; positives weigh negatives / positives when balanced
    regression      squared error in units of each column's standard deviation over the training labels
    anomaly         squared error of the reconstruction
    detection       the net's own loss

A net's own `loss(answer, labels)` wins over the task's; smoothing and balancing are then its own business too. Labels
of -1 (classes) and NaN (all else) are unknown and count for nothing: a batch of nothing else has a loss of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..recipe import Schedule
from ..rows import Array
from .train import Batch, Loss

ANSWERS: Final[dict[str, str]] = {
    "classification": "logits [n, k]",
    "multilabel": "logits [n, k]",
    "regression": "values [n, k]",
    "anomaly": "a reconstruction of the net's input",
    "detection": "[n, boxes, 4 + k]: box and class logits",
}
MAX_WEIGHT: Final = 100.0  # of a rare positive: one sample must not outweigh a batch


def task_loss(task: Task, *, schedule: Schedule, labels: Array, net: nn.Module | None = None) -> Loss:
    """The loss on labels; `labels` are those of the training rows, `net` is asked for a loss of its own.

    Raises RequestError when there is nothing to learn: one class only, constant values, or a detector without a loss.
    """
    own = getattr(net, "loss", None)
    if callable(own):
        return _own(own)
    if task == "classification":
        return _classification(schedule, np.asarray(labels))
    if task == "multilabel":
        return _multilabel(schedule, np.asarray(labels))
    if task == "regression":
        return _regression(np.asarray(labels))
    if task == "anomaly":
        return _reconstruction
    if task == "detection":
        name = "the net" if net is None else type(net).__name__
        raise RequestError(f"detection: expected a method loss(answer, labels) -> scalar on {name}, got none")
    raise RequestError(f"expected a task among {', '.join(ANSWERS)}, got {task!r}")


def expect_answer(task: Task, answer: Tensor, shape: tuple[int, ...]) -> None:
    """Raises RequestError unless `answer` has this shape; -1 is any size."""
    fits = len(answer.shape) == len(shape) and all(w in (-1, g) for w, g in zip(shape, answer.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if n < 0 else str(n) for n in shape)
        raise RequestError(f"{task}: expected {ANSWERS[task]} from the net, here [{wanted}], got {list(answer.shape)}")


def nothing(answer: Tensor) -> Tensor:
    """A loss of 0 that still has a gradient."""
    return answer.sum() * 0.0


def _own(own: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    def loss(batch: Batch, answer: Tensor, _embedding: Tensor) -> Tensor:
        known = _known_rows(batch.labels)
        if bool(known.all()):
            value = own(answer, batch.labels)
        elif bool(known.any()):
            value = own(answer[known], batch.labels[known])
        else:
            return nothing(answer)
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise RequestError(f"the net's loss(answer, labels): expected a scalar tensor, got {got}")
        return value

    return loss


def _known_rows(labels: Tensor) -> Tensor:
    if not labels.is_floating_point():
        return labels >= 0 if labels.ndim == 1 else torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return ~labels.flatten(1).isnan().all(1) if labels.ndim > 1 else ~labels.isnan()


def _classification(schedule: Schedule, labels: Array) -> Loss:
    classes = labels.astype(np.int64)
    known = classes[classes >= 0]
    found = np.unique(known)
    if len(found) < 2:
        raise RequestError(
            f"classification: expected at least 2 classes among {len(known)} training labels, got "
            + (f"only class {found[0]}" if len(found) else "none")
        )
    counts = np.bincount(known)
    weights: Tensor | None = None
    if schedule.balanced:
        share = len(known) / (len(found) * np.maximum(counts, 1))
        weights = torch.tensor(np.where(counts > 0, share, 1.0), dtype=torch.float32)

    def loss(batch: Batch, answer: Tensor, _embedding: Tensor) -> Tensor:
        expect_answer("classification", answer, (len(batch.labels), -1))
        if answer.shape[1] < len(counts):
            raise RequestError(
                f"classification: expected logits of at least {len(counts)} classes (training labels go up to "
                f"{len(counts) - 1}), got {answer.shape[1]}"
            )
        if not bool((batch.labels >= 0).any()):
            return nothing(answer)
        weight = weights
        if weight is not None:  # classes that the net knows and the training rows do not
            weight = functional.pad(weight, (0, answer.shape[1] - len(counts)), value=1.0).to(answer.device)
        return functional.cross_entropy(
            answer, batch.labels, weight=weight, ignore_index=-1, label_smoothing=schedule.smoothing
        )

    return loss


def _multilabel(schedule: Schedule, labels: Array) -> Loss:
    values = labels.astype(np.float64)
    positives, negatives = np.nansum(values, axis=0), np.nansum(1 - values, axis=0)
    if not positives.sum() or not negatives.sum():
        raise RequestError(f"multilabel: expected both 0 and 1 among {labels.size} training labels, got one of them")
    weights: Tensor | None = None
    if schedule.balanced:
        share = np.where(positives > 0, negatives / np.maximum(positives, 1), 1.0)
        weights = torch.tensor(np.clip(share, 1 / MAX_WEIGHT, MAX_WEIGHT), dtype=torch.float32)

    def loss(batch: Batch, answer: Tensor, _embedding: Tensor) -> Tensor:
        expect_answer("multilabel", answer, tuple(batch.labels.shape))
        known = ~batch.labels.isnan()
        wanted = torch.where(known, batch.labels, 0.0).to(answer.dtype)
        wanted = wanted * (1 - schedule.smoothing) + schedule.smoothing / 2
        weight = None if weights is None else weights.to(answer.device)
        each = functional.binary_cross_entropy_with_logits(answer, wanted, pos_weight=weight, reduction="none")
        return _mean(each, known)

    return loss


def _regression(labels: Array) -> Loss:
    spread = np.nanstd(labels.astype(np.float64), axis=0)
    if not np.all(spread > 0):
        column = int(np.argmin(spread > 0))
        raise RequestError(f"regression: expected values that vary, got a constant in column {column} of the labels")
    scale = torch.tensor(1 / spread, dtype=torch.float32)

    def loss(batch: Batch, answer: Tensor, _embedding: Tensor) -> Tensor:
        expect_answer("regression", answer, tuple(batch.labels.shape))
        known = ~batch.labels.isnan()
        error = (answer - torch.where(known, batch.labels, 0.0)) * scale.to(answer.device)
        return _mean(error.square(), known)

    return loss


def _reconstruction(batch: Batch, answer: Tensor, _embedding: Tensor) -> Tensor:
    expect_answer("anomaly", answer, tuple(batch.x.shape))
    return functional.mse_loss(answer, batch.x.to(answer.dtype))


def _mean(each: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, each, 0.0).sum() / known.sum().clamp(min=1)
