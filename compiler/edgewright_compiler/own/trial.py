"""A builder and its hooks, tried on the first rows: what cannot work is told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..data.loaders import guarded, line_of
from ..graph.heads import head
from ..recipe import Augment
from ..rows import Array, Data, take
from ..training.draws import as_tensor
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
    except (Exception, SystemExit) as error:
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
        answer = net(prepared)
    except (Exception, SystemExit) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RequestError(
            f"{build.said} does not take two samples of shape {tuple(prepared.shape[1:])}, which is what the front "
            f"gives it: {reason[0]} ({line_of(error, build.file)}); let the builder take `shape`, or define "
            f"front(data) in {build.file.name}"
        ) from error
    if not isinstance(answer, Tensor):
        raise RequestError(f"{build.said} answers {type(answer).__name__}: expected one tensor")
    if not torch.isfinite(answer).all():
        raise RequestError(f"{build.said}, untrained, answers NaN or infinity to the first two samples")
    labels = len(rows.labels) if task in ("classification", "multilabel", "detection") else 0
    head(task, answer, prepared, labels=labels, temperature=1.0, scale=1.0)
    if task == "regression" and answer.shape[1] != rows.train.labels.shape[1]:
        raise RequestError(f"{build.said} gives {answer.shape[1]} values: the data have {rows.train.labels.shape[1]}")
    own = getattr(net, "loss", None)
    if callable(own):
        _losing(build, own, answer, as_tensor(rows.train.labels[:2]))
    elif task == "detection":
        raise RequestError(f"{build.said}: a detector needs a method loss(answer, labels) -> scalar of its own")


def _losing(build: Builder, own: Callable[..., object], answer: Tensor, labels: Tensor) -> None:
    """Its own loss, which training would call only after the teacher's, perhaps hours later."""
    given = f"answer {list(answer.shape)} and labels {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
    try:
        loss = guarded(own, build.file)(answer, labels)
    except RequestError as error:
        raise RequestError(f"{error}; it is given {given} of two training rows") from error
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        got = type(loss).__name__
        if isinstance(loss, Tensor):
            got = f"shape {list(loss.shape)}" + ("" if loss.requires_grad else " without a gradient")
        raise RequestError(
            f"{build.said}: expected loss(answer, labels) to return a scalar tensor that depends on the answer, got "
            f"{got}; it is given {given}"
        )


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
