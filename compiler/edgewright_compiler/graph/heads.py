"""What a net's answer becomes before it leaves the graph, by task; always float.

    classification  probabilities [k]  softmax(logits / T)
    multilabel      probabilities [k]  sigmoid(logits / T)
    regression      values [k]         the answer as it is
    anomaly         score [1]          1 - s / (e + s), e the mean squared error of the reconstruction
    detection       boxes [m, 4], scores [m], classes [m]

A score of an anomaly rises with the error and lies in [0, 1); s is the error that 1 % of the training rows exceed, so
0.5 is where training rows end. A detector's boxes are its answer's best (at most MAX_BOXES, in the net's own order);
of two of one class that overlap by more than OVERLAP the better one stays and the other's score becomes 0: one pass
over all pairs ("fast NMS": Bolya et al., YOLACT, 2019, section 4), because the loop of the classical one does not
export.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task, TensorOut

MAX_BOXES: Final = 64
OVERLAP: Final = 0.5
ANOMALY_QUANTILE: Final = 0.99


class Head(nn.Module):
    """(answer, prepared) → the declared outputs, one tensor each. `reads_input`: whether it looks at `prepared`."""

    reads_input = False
    outputs: tuple[TensorOut, ...]

    def __init__(self, *outputs: TensorOut) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, answer: Tensor, prepared: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError


class Classes(Head):
    """`exclusive`: softmax over logits, else a sigmoid of each."""

    def __init__(self, size: int, *, exclusive: bool, temperature: float) -> None:
        super().__init__(TensorOut(name="probabilities", role="probabilities", shape=(size,)))
        self.exclusive = exclusive
        self.factor = 1 / temperature

    def scaled(self, answer: Tensor) -> Tensor:
        return answer if self.factor == 1 else answer * self.factor

    def forward(self, answer: Tensor, prepared: Tensor) -> tuple[Tensor, ...]:
        logits = self.scaled(answer)
        return (torch.softmax(logits, dim=1) if self.exclusive else torch.sigmoid(logits),)


class Values(Head):
    def __init__(self, size: int) -> None:
        super().__init__(TensorOut(name="values", role="values", shape=(size,)))

    def forward(self, answer: Tensor, prepared: Tensor) -> tuple[Tensor, ...]:
        return (answer,)


class Anomaly(Head):
    reads_input = True

    def __init__(self, scale: float) -> None:
        super().__init__(TensorOut(name="score", role="score", shape=(1,)))
        self.scale = scale

    def forward(self, answer: Tensor, prepared: Tensor) -> tuple[Tensor, ...]:
        # 1 - s / (e + s); written with constants near 1, because onnxslim drops the addition of a very small one
        return (1 - 1 / (reconstruction_error(answer, prepared) * (1 / self.scale) + 1),)


class Boxes(Head):
    def __init__(self, boxes: int, *, temperature: float) -> None:
        self.kept = min(boxes, MAX_BOXES)
        super().__init__(
            TensorOut(name="boxes", role="boxes", shape=(self.kept, 4)),
            TensorOut(name="scores", role="score", shape=(self.kept,)),
            TensorOut(name="classes", role="classes", shape=(self.kept,), dtype="int32"),
        )
        self.boxes = boxes
        self.factor = 1 / temperature

    def forward(self, answer: Tensor, prepared: Tensor) -> tuple[Tensor, ...]:
        if self.kept < self.boxes:
            best = torch.topk(answer[:, :, 4:].amax(2), self.kept, dim=1).indices
            answer = torch.gather(answer, 1, best.unsqueeze(2).expand(-1, -1, answer.shape[2]))
        corners, logits = answer[:, :, :4], answer[:, :, 4:]
        scores = torch.sigmoid(logits.amax(2) * self.factor)
        classes = logits.argmax(2).to(torch.float32)
        low, high = corners[:, :, :2], corners[:, :, 2:]
        sides = torch.relu(high - low)
        area = sides[:, :, :1] * sides[:, :, 1:]  # [n, m, 1]
        common = torch.relu(
            torch.minimum(high.unsqueeze(2), high.unsqueeze(1)) - torch.maximum(low.unsqueeze(2), low.unsqueeze(1))
        )
        shared = common[..., 0] * common[..., 1]  # [n, m, m]
        overlaps = shared > OVERLAP * (area + area.transpose(1, 2) - shared)
        # Better: the higher score, and of equal ones the earlier; written so that no pair suppresses each other.
        rank = torch.arange(self.kept, dtype=torch.float32)
        ahead = scores.unsqueeze(2) - scores.unsqueeze(1)
        earlier = (rank.unsqueeze(1) < rank.unsqueeze(0)).to(torch.float32)
        better = (ahead > 0) | ((ahead == 0) & (earlier > 0))
        same = classes.unsqueeze(2) == classes.unsqueeze(1)
        beaten = (overlaps & better & same).to(torch.float32).amax(1)
        return corners, scores * (1 - beaten), classes.to(torch.int32)


def reconstruction_error(answer: Tensor, prepared: Tensor) -> Tensor:
    """Mean squared error of each row, [n, 1]."""
    difference = (answer - prepared).flatten(1)
    return (difference * difference).mean(1, keepdim=True)


def head(task: Task, answer: Tensor, prepared: Tensor, *, labels: int, temperature: float, scale: float) -> Head:
    """The head for a net that answers `answer` to `prepared` (any rows, for their shapes).

    `labels` counts the classes (0: as many as the answer has), `scale` is the anomaly error that scores 0.5.
    Raises RequestError for an answer of the wrong shape and for a task without a head.
    """
    shape = tuple(answer.shape[1:])
    if not temperature > 0:
        raise RequestError(f"expected a temperature above 0, got {temperature}")
    if task in ("classification", "multilabel"):
        least = 2 if task == "classification" else 1
        if len(shape) != 1 or shape[0] < least or (labels and shape[0] != labels):
            raise _wrong(task, f"logits [n, {labels or 'k'}], one for each of the {labels or 'k'} labels", shape)
        return Classes(shape[0], exclusive=task == "classification", temperature=temperature)
    if task == "regression":
        if len(shape) != 1 or shape[0] < 1:
            raise _wrong(task, "values [n, k]", shape)
        return Values(shape[0])
    if task == "anomaly":
        if shape != tuple(prepared.shape[1:]):
            raise _wrong(task, f"a reconstruction of its input, {_rows(tuple(prepared.shape[1:]))}", shape)
        return Anomaly(scale)
    if task == "detection":
        if len(shape) != 2 or shape[1] < 5 or shape[0] < 1 or (labels and shape[1] != 4 + labels):
            raise _wrong(task, f"[n, boxes, 4 + {labels or 'k'}]: corners, then one logit for each label", shape)
        return Boxes(shape[0], temperature=temperature)
    raise RequestError(
        f"no head for the task {task!r}: expected classification, multilabel, regression, anomaly or detection"
    )


def _wrong(task: Task, expected: str, shape: tuple[int, ...]) -> RequestError:
    return RequestError(f"a net for {task} answers {expected}; this one answers {_rows(shape)}: change its last layer")


def _rows(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['n', *map(str, shape)])}]"
