"""A builder and its hooks, tried on the first rows: what cannot work is told before anything is trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..graph.heads import head
from ..recipe import Augment
from ..rows import Array, Data, take
from .models import Builder


def own_front(hooks: Builder, data: Data) -> nn.Module:
    assert hooks.front is not None
    made = hooks.front(data)
    if not isinstance(made, nn.Module):
        raise RequestError(f"{hooks.file}: front(data) gave {type(made).__name__}: expected an nn.Module")
    return made


def prepared_rows(front: nn.Module, rows: Data, hooks: Builder) -> Tensor:
    try:
        with torch.no_grad():
            prepared = front.eval()(_two(rows))
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"{hooks.file}: its front does not take raw rows of shape {tuple(_two(rows).shape)}: {error}"
        ) from error
    if not isinstance(prepared, Tensor) or len(prepared) != 2:
        raise RequestError(f"{hooks.file}: its front must give one tensor with the samples along the first axis")
    return prepared


def answering(build: Builder, task: Task, rows: Data, prepared: Tensor) -> None:
    """Does it answer two rows as its task needs? Raises RequestError with the net's own words."""
    net = build.make(1.0).eval()
    try:
        with torch.no_grad():
            answer = net(prepared)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RequestError(
            f"{build.said} does not take two samples of shape {tuple(prepared.shape[1:])}, which is what the front "
            f"gives it: {reason[0]}; let the builder take `shape`, or define front(data) in {build.file.name}"
        ) from error
    if not isinstance(answer, Tensor):
        raise RequestError(f"{build.said} answers {type(answer).__name__}: expected one tensor")
    if not torch.isfinite(answer).all():
        raise RequestError(f"{build.said}, untrained, answers NaN or infinity to the first two samples")
    labels = len(rows.labels) if task in ("classification", "multilabel", "detection") else 0
    head(task, answer, prepared, labels=labels, temperature=1.0, scale=1.0)
    if task == "regression" and answer.shape[1] != rows.train.labels.shape[1]:
        raise RequestError(f"{build.said} gives {answer.shape[1]} values: the data have {rows.train.labels.shape[1]}")
    if task == "detection" and not callable(getattr(net, "loss", None)):
        raise RequestError(f"{build.said}: a detector needs a method loss(answer, labels) -> scalar of its own")


def augmenting(build: Builder, rows: Data) -> None:
    assert build.augment is not None
    hook: Augment = build.augment
    (array,) = take(rows.train.inputs, slice(0, 4)).values()
    before = array.copy()
    made: Array = hook(np.random.default_rng(0), array)
    if not isinstance(made, np.ndarray) or made.shape != array.shape or made.dtype != array.dtype:
        got = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
        raise RequestError(
            f"{build.file}: augment(rng, rows) gave {got} for {array.dtype} {array.shape}: expected raw rows of the "
            "same shape and dtype"
        )
    if not np.array_equal(before, array):
        raise RequestError(f"{build.file}: augment(rng, rows) changed the rows that it was given: work on a copy")


def _two(rows: Data) -> Tensor:
    (array,) = take(rows.train.inputs, slice(0, 2)).values()
    return torch.from_numpy(np.ascontiguousarray(array))
