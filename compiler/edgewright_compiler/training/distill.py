"""Distillation: a small net learns from a large one's whole answer, not only from the label (Hinton et al., 2015).

    weight × (distance of answers) + (1 - weight) × (loss on labels) + features × (distance of embeddings)

The distance of answers, by task:
    classification  KL at `temperature`, scaled by its square
    multilabel      binary KL per label at `temperature`, scaled by its square
    regression      the task's own loss, with the teacher's values as labels
    anomaly         squared error of the two reconstructions
    detection       squared error of class logits at `temperature` (Ba and Caruana, 2014), and of boxes, each weighing
                    by the teacher's best class probability

Embeddings are compared through a linear map that is learned with the student and thrown away (FitNets: Romero et al.,
2015), relative to the size of the teacher's. Rows without a label learn from the teacher alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task, TensorIn, TensorOut
from edgewright_runtime.runtime import SUFFIXES, Session, open_session

from ..graph.reference import batch_size
from ..graph.tap import Tapped
from ..recipe import Distil
from .draws import Draw, as_tensor
from .losses import expect_answer
from .train import Batch, Loss

ROUNDING: Final = 1e-3  # probabilities of a file may be so far beside [0, 1], and their sum beside 1
AT_ONCE: Final = 64  # rows that a teacher answers: with 512, its maps left the cache and each cost 1.7 times as much


class Teaching(Protocol):
    """A teacher: (answer as the task's net gives it, embedding [n, d] or None), without gradient, where `batch` is."""

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, slots=True)
class _Module:
    tapped: Tapped

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        self.tapped.to(batch.x.device).eval()
        with torch.no_grad():
            answer, embedding = self.tapped(batch.x)
        return answer, embedding


def module_teacher(net: nn.Module) -> Teaching:
    """A net that reads what the student reads; its weights are not touched."""
    return _Module(Tapped(net.eval()))


@dataclass(frozen=True, slots=True)
class _File:
    session: Session
    reads: str
    gives: TensorOut
    logits: bool  # the file gives them, or they are made of its probabilities
    sigmoid: bool

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        found = self.session.run({self.reads: batch.raw.cpu().numpy()})[self.gives.name]
        values = torch.from_numpy(np.ascontiguousarray(found, np.float32))
        if not self.logits:
            if not bool(((values >= -ROUNDING) & (values <= 1 + ROUNDING)).all()):
                raise RequestError(
                    f"teacher's output {self.gives.name}: expected probabilities in [0, 1], got "
                    f"{float(values.min()):g} to {float(values.max()):g}; end the file with a softmax or sigmoid, or "
                    "declare its logits in the recipe: Teacher(file=..., logits=True)"
                )
            safe = values.clamp(1e-7, 1 - 1e-7)
            values = torch.logit(safe) if self.sigmoid else safe.log()
        return values.to(batch.x.device), None


def file_teacher(path: Path, task: Task, *, reads: TensorIn, gives: tuple[TensorOut, ...]) -> Teaching:
    """A finished ONNX or TFLite model of the same raw rows. Of its outputs `gives`, the first of role probabilities
    (turned into logits by log, or logit for multilabel) or values (taken as they are) is the answer.

    It has no embedding. Raises RequestError for another suffix, for a task whose answer a file does not hold, or when
    no output fits; what `open_session` raises passes through.
    """
    runtime = next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix), None)
    if runtime is None:
        raise RequestError(f"teacher {path.name}: expected a file .onnx or .tflite, got {path.suffix or 'no suffix'}")
    if task not in ("classification", "multilabel", "regression"):
        raise RequestError(
            f"teacher {path.name}: a file cannot teach {task}, because it holds scores, not the net's "
            "answer; give the teacher as a module"
        )
    answer = next((one for one in gives if one.role in ("probabilities", "values")), None)
    if answer is None:
        raise RequestError(
            f"teacher {path.name}: expected an output of role probabilities or values, got "
            + ", ".join(f"{one.name} ({one.role})" for one in gives)
        )
    session = open_session(path, runtime, inputs=(reads,), outputs=gives)
    return _File(session, reads.name, answer, answer.role == "values", task == "multilabel")


class _Remembered:
    """A copy is answered whole, in its own order, when its first batch comes: so a resumed run, which knows none of the
    answers, gets the same ones bit for bit."""

    def __init__(self, teacher: Teaching, front: nn.Module, draw: Draw, copies: int) -> None:
        self._teacher, self._front, self._draw, self._copies = teacher, front, draw, copies
        self._known: dict[int, tuple[Tensor, Tensor | None]] = {}

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if batch.at is None:  # rows of no draw
            return self._teacher.answer(batch)
        copy = batch.epoch % self._copies
        if copy not in self._known:
            self._known[copy] = self._answered(copy, batch.x.device)
        answers, embeddings = self._known[copy]
        device = batch.x.device
        return answers[batch.at].to(device), None if embeddings is None else embeddings[batch.at].to(device)

    def _answered(self, copy: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        raw, labels = map(as_tensor, self._draw(copy))
        answers, embeddings, size = [], [], min(AT_ONCE, batch_size(math.prod(raw.shape[1:])))
        with torch.no_grad():
            for rows, of in zip(torch.split(raw, size), torch.split(labels, size), strict=True):
                answer, embedding = self._teacher.answer(Batch(rows, self._front(rows.to(device)), of))
                answers.append(answer.cpu())
                embeddings.append(None if embedding is None else embedding.cpu())
        known = [one for one in embeddings if one is not None]
        return torch.cat(answers), torch.cat(known) if known else None


def remembered(teacher: Teaching, front: nn.Module, draw: Draw, *, copies: int) -> Teaching:
    """`teacher`, asked about every row of each of the `copies` that `draw` goes round once, and then out of memory."""
    return _Remembered(teacher, front, draw, copies)


def distillation(task: Task, teacher: Teaching, base: Loss, plan: Distil) -> Loss:
    """The loss of a student; `base` is its loss on labels. Raises RequestError for a plan out of range and, when
    first called, for an answer or an embedding of the teacher that does not fit."""
    if not (plan.temperature > 0 and 0 <= plan.weight <= 1 and plan.features >= 0):
        raise RequestError(f"distil: expected temperature > 0, weight in [0, 1] and features >= 0, got {plan}")
    return _Distillation(task, teacher, base, plan)


class _Distillation(nn.Module):
    """A module only for its map: the teacher must not appear among what learns."""

    def __init__(self, task: Task, teacher: Teaching, base: Loss, plan: Distil) -> None:
        super().__init__()
        self._plan, self._task, self._teacher = plan, task, teacher
        self._base = (base,)  # in a tuple, lest a base that is a module be counted as part of this one
        self.map: nn.Linear | None = None

    def forward(self, batch: Batch, answer: Tensor, embedding: Tensor) -> Tensor:
        plan = self._plan
        wanted, seen = self._teacher.answer(batch)
        if wanted.shape != answer.shape:
            raise RequestError(
                f"distillation: expected equal answers, got {list(answer.shape)} from the student and "
                f"{list(wanted.shape)} from the teacher"
            )
        loss = plan.weight * self._distance(batch, answer, wanted, embedding)
        if plan.weight < 1:
            loss = loss + (1 - plan.weight) * self._base[0](batch, answer, embedding)
        if plan.features:
            loss = loss + plan.features * self._feature_distance(embedding, seen)
        return loss

    def _distance(self, batch: Batch, answer: Tensor, wanted: Tensor, embedding: Tensor) -> Tensor:
        t = self._plan.temperature
        if self._task == "classification":
            expect_answer(self._task, answer, (len(answer), -1))
            soft, own = functional.log_softmax(wanted / t, dim=1), functional.log_softmax(answer / t, dim=1)
            return t**2 * functional.kl_div(own, soft, reduction="batchmean", log_target=True)
        if self._task == "multilabel":
            soft = torch.sigmoid(wanted / t)
            entropy = functional.binary_cross_entropy_with_logits(wanted / t, soft)
            return t**2 * (functional.binary_cross_entropy_with_logits(answer / t, soft) - entropy)
        if self._task == "regression":
            return self._base[0](replace(batch, labels=wanted), answer, embedding)
        if self._task == "anomaly":
            return functional.mse_loss(answer, wanted)
        expect_answer(self._task, answer, (len(answer), -1, -1))
        sure = torch.sigmoid(wanted[..., 4:]).amax(-1, keepdim=True)
        boxes = (sure * (answer[..., :4] - wanted[..., :4]).square()).sum() / sure.sum()
        return functional.mse_loss(answer[..., 4:] / t, wanted[..., 4:] / t) + boxes

    def _feature_distance(self, embedding: Tensor, seen: Tensor | None) -> Tensor:
        if seen is None:
            raise RequestError("distillation: features need a teacher with an embedding, and a file has none; use 0")
        if self.map is None:
            self.map = nn.Linear(embedding.shape[1], seen.shape[1]).to(embedding.device)
        return functional.mse_loss(self.map(embedding), seen) / seen.square().mean().clamp(min=1e-12)
