"""The `monitor` output: one float32 row per sample that tells whether input, embedding and output look as they used to.

Columns: statistics of the input | up to 8 principal components of the embedding | Mahalanobis distances | of the output
what its own tensors do not say (confidence, entropy). Together they see the shifts that matter: statistics see what
happens to a sensor, the embedding sees new classes and shifted labels, and both tell whether the model sees what the
sensor shows. Values are counted in cells between quantiles, which no monotone function changes; so distances stay
squared, and nothing takes a root.

The branch stays float when everything else becomes int8: it is built of modules of its own under `Graph.monitor`, and
quantization works on `Graph.net` only. Runtimes pay for an operator, whatever it computes, so the branch is written in
few operators (convolutions and matrix products), not in few multiplications. What it costs is in evidence.json, by
variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright_contracts.errors import RequestError

from .features import Columns
from .heads import Classes, Head
from .moments import FLOOR, Float, affine, principal
from .statistics import Statistics

COMPONENTS: Final = 8
WIDE: Final = 256  # of a wider embedding, the numbers that vary most: its weights would outgrow a small net


@dataclass(frozen=True, slots=True)
class EmbeddingConstants:
    """z = e[chosen] @ project + offset is PCA-k in standard deviations; u = z @ whiten has unit covariance within the
    classes, whose means are `centres` in the space of u. Without classes the covariance is that of all rows."""

    chosen: npt.NDArray[np.int64] | None  # None: all d
    project: Float  # [d, k]
    offset: Float  # [k]
    whiten: Float  # [k, k]
    centres: Float | None  # [classes, k]


def fit_embedding(embeddings: npt.NDArray[np.floating], labels: npt.NDArray[np.int64] | None) -> EmbeddingConstants:
    """Constants from training rows: embeddings [n, d], classes [n] where the task has them. k is 8, or fewer where the
    embedding varies in fewer directions. Equal inputs give equal constants.

    Raises RequestError for an embedding that is not finite or never varies: the net is dead.
    """
    if not np.isfinite(embeddings).all():
        row = int(np.argmin(np.isfinite(embeddings).all(axis=1)))
        raise RequestError(f"training row {row} has an embedding that is not finite: look at the data and the net")
    chosen = None
    if embeddings.shape[1] > WIDE:
        chosen = np.sort(np.argsort(-embeddings.var(axis=0, dtype=np.float64), kind="stable")[:WIDE])
        embeddings = embeddings[:, chosen]
    e = embeddings.astype(np.float64)
    try:
        project, offset = principal(e, COMPONENTS)
    except RequestError as error:
        raise RequestError(f"the embedding of the training rows: {error}") from None
    z = e @ project + offset
    within, means = z, None
    if labels is not None:
        classes = np.unique(labels)
        means = np.stack([z[labels == c].mean(axis=0) for c in classes])
        within = z - means[np.searchsorted(classes, labels)]
    tied = within.T @ within / len(z) + FLOOR * np.eye(z.shape[1])
    whiten = np.linalg.cholesky(np.linalg.inv(tied))
    return EmbeddingConstants(chosen, project, offset, whiten, None if means is None else means @ whiten)


class EmbeddingMonitor(nn.Module):
    """embedding [n, d] → [n, len(names)]: components in standard deviations, then squared distances in the whitened
    space: to the nearest class, where there are classes, and to the middle.

    The nearest is the least of all |u - m|², not |u|² + min(|m|² - 2 u·m), which is two operators less: classes that
    are far apart make |u|² a thousand times what remains of the difference, and with it the rounding.
    """

    def __init__(self, constants: EmbeddingConstants) -> None:
        super().__init__()
        m = constants.centres
        self.chosen = None if constants.chosen is None else nn.Buffer(torch.from_numpy(constants.chosen))
        self.project = affine(constants.project, constants.offset)
        self.whiten = affine(constants.whiten, np.zeros(constants.whiten.shape[1]))
        self.centres = None if m is None else nn.Buffer(torch.from_numpy(m.astype(np.float32)))
        components = tuple(f"pca-{i + 1}" for i in range(constants.project.shape[1]))
        self.names = (*components, *(() if m is None else ("distance-class",)), "distance-all")

    def forward(self, embedding: Tensor) -> Tensor:
        if self.chosen is not None:
            embedding = embedding.index_select(1, self.chosen)
        z = self.project(embedding)
        u = self.whiten(z)
        overall = (u * u).sum(1, keepdim=True)
        if self.centres is None:
            return torch.cat([z, overall], dim=1)
        apart = u.unsqueeze(1) - self.centres
        nearest = (apart * apart).sum(2).amin(1, keepdim=True)
        return torch.cat([z, nearest, overall], dim=1)


class OutputMonitor(nn.Module):
    """(answer, probabilities) → [n, 2]: confidence is the largest probability, entropy is in nats; of several labels
    the sum of their entropies, one by one."""

    names = ("confidence", "entropy")

    def __init__(self, head: Classes) -> None:
        super().__init__()
        self.exclusive, self.factor = head.exclusive, head.factor
        self.minus_sum = affine(-np.ones((head.outputs[0].shape[0], 1)), np.zeros(1))

    def forward(self, answer: Tensor, probabilities: Tensor) -> Tensor:
        logits = answer if self.factor == 1 else answer * self.factor
        if self.exclusive:
            entropy = self.minus_sum(probabilities * torch.log_softmax(logits, dim=1))
        else:  # H(p) = log(1 + e^z) - p z
            entropy = self.minus_sum(probabilities * logits - functional.softplus(logits))
        return torch.cat([probabilities.amax(1, keepdim=True), entropy], dim=1)


class Monitor(nn.Module):
    """(raw, embedding, answer, outputs) → [n, len(columns)]."""

    def __init__(self, statistics: Statistics, embedding: EmbeddingConstants, head: Head) -> None:
        super().__init__()
        self.statistics = statistics
        self.embedding = EmbeddingMonitor(embedding)
        self.output = OutputMonitor(head) if isinstance(head, Classes) else None
        self.columns: Columns = (
            *((name, "input") for name in self.statistics.names),
            *((name, "embedding") for name in self.embedding.names),
            *((name, "output") for name in (self.output.names if self.output is not None else ())),
        )

    def forward(self, raw: Tensor, embedding: Tensor, answer: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
        parts = [self.statistics(raw), self.embedding(embedding)]
        if self.output is not None:
            parts.append(self.output(answer, outputs[0]))
        return torch.cat(parts, dim=1)
