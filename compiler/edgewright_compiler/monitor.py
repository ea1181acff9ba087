"""The `monitor` output: one float32 row per sample that tells whether input, embedding and output look as they used to.

Columns: 9 statistics of the image | PCA-8 of the penultimate layer | 2 Mahalanobis distances | confidence, entropy.
These 21 and the predicted class are what was found to see the shifts that matter: the statistics see what happens to a
sensor, the embedding sees new classes and shifted labels, and together they tell whether the model sees what the sensor
shows. Statistics were chosen for spread: the minimum, maximum and median of an image are nearly always one number.
Values are counted in cells between quantiles, which no monotone function changes; so distances stay squared, and
nothing takes a root.

The branch stays float when everything else becomes int8: it is built of modules of its own under `Graph.monitor`, and
quantization works on `Graph.net` only. onnxruntime pays about half a microsecond per operator, whatever it does, so
the branch is written in few operators (convolutions and matrix products), not in few multiplications: beside a network
of 17 µs in onnxruntime and 8 µs in LiteRT it was measured at 10 and 3 µs on one x86 core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewright_contracts.channels import Group

Float = npt.NDArray[np.float64]

COMPONENTS: Final = 8
_FLOOR: Final = 1e-6

IMAGE_COLUMNS: Final = (
    "mean", "row-gradient", "column-gradient", "dark-share", "bright-share", "strong", "top-bottom", "left-right",
    "quietest-row",
)  # fmt: skip
EMBEDDING_COLUMNS: Final = (*(f"pca-{i}" for i in range(1, COMPONENTS + 1)), "distance-class", "distance-all")
OUTPUT_COLUMNS: Final = ("confidence", "entropy")
COLUMNS: Final[tuple[tuple[str, Group], ...]] = (
    *((name, "input") for name in IMAGE_COLUMNS),
    *((name, "embedding") for name in EMBEDDING_COLUMNS),
    *((name, "output") for name in OUTPUT_COLUMNS),
)


@dataclass(frozen=True, slots=True)
class EmbeddingConstants:
    """e @ project + offset is PCA-8 in standard deviations; e @ whiten + whitened_offset is the same space with unit
    covariance within the classes, whose means there are `centres`."""

    project: Float  # [d, 8]
    offset: Float  # [8]
    whiten: Float  # [d, 8]
    whitened_offset: Float  # [8]
    centres: Float  # [classes, 8]


def fit_embedding(embeddings: Float, labels: npt.NDArray[np.int64]) -> EmbeddingConstants:
    """Constants from training rows: embeddings [n, d] with d >= 8, labels [n]. Equal inputs give equal constants."""
    mean = embeddings.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((embeddings - mean).T))
    top = np.argsort(values)[::-1][:COMPONENTS]
    basis = vectors[:, top]
    basis *= np.sign(basis[np.abs(basis).argmax(axis=0), range(COMPONENTS)])  # an eigenvector's sign is arbitrary
    project = basis / np.sqrt(np.maximum(values[top], _FLOOR))
    z = (embeddings - mean) @ project
    classes = np.unique(labels)
    centres = np.stack([z[labels == c].mean(axis=0) for c in classes])
    within = z - centres[np.searchsorted(classes, labels)]
    tied = within.T @ within / len(z) + _FLOOR * np.eye(COMPONENTS)
    whiten = np.linalg.cholesky(np.linalg.inv(tied))
    return EmbeddingConstants(
        project=project,
        offset=-mean @ project,
        whiten=project @ whiten,
        whitened_offset=-mean @ project @ whiten,
        centres=centres @ whiten,
    )


class ImageStatistics(nn.Module):
    """Whole levels as float [n, 1, h, w] → [n, 9], in the order of IMAGE_COLUMNS, in levels. Exact: sums of integers.

    One rectified convolution gives six maps, whose averages are the mean, the rising half of both gradients (beyond the
    border it is dark), the exact indicators of the darkest and the brightest level, and what lies above half of it.
    """

    def __init__(self, levels: int, height: int, width: int) -> None:
        super().__init__()
        kernels = torch.zeros(6, 1, 3, 3)
        kernels[:, 0, 1, 1] = torch.tensor([1.0, 1, 1, -1, 1, 1])
        kernels[1, 0, 2, 1] = kernels[2, 0, 1, 2] = -1
        rows, columns = torch.ones(height, width), torch.ones(height, width)
        rows[height // 2 :] = -1
        columns[:, width // 2 :] = -1
        self.maps = nn.Conv2d(1, 6, 3, padding=1)
        self.halves = nn.Linear(height * width, 2, bias=False)
        with torch.no_grad():
            self.maps.weight.copy_(kernels)
            assert self.maps.bias is not None
            self.maps.bias.copy_(torch.tensor([0.0, 0, 0, 1, 1 - levels, -levels / 2]))
            self.halves.weight.copy_(torch.stack([rows.flatten(), columns.flatten()]) * (2 / rows.numel()))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        averages = torch.relu(self.maps(image)).mean((2, 3))
        quietest = image.mean((1, 3)).amin(1, keepdim=True)
        return torch.cat([averages, self.halves(image.flatten(1)), quietest], dim=1)


class EmbeddingMonitor(nn.Module):
    """embedding [n, d] → [n, 10], in the order of EMBEDDING_COLUMNS; components in standard deviations.

    Squared distances in the whitened space: to the nearest class as |u|² + min(|m|² - 2 u·m), to the middle as |u|².
    """

    def __init__(self, constants: EmbeddingConstants) -> None:
        super().__init__()
        m = constants.centres
        self.project = _linear(constants.project, constants.offset)
        self.whiten = _linear(constants.whiten, constants.whitened_offset)
        self.towards = _linear(-2 * constants.whiten @ m.T, (m * m).sum(1) - 2 * constants.whitened_offset @ m.T)

    def forward(self, embedding: Tensor) -> Tensor:
        u = self.whiten(embedding)
        overall = (u * u).sum(1, keepdim=True)
        nearest = overall + self.towards(embedding).amin(1, keepdim=True)
        return torch.cat([self.project(embedding), nearest, overall], dim=1)


class OutputMonitor(nn.Module):
    """logits and probabilities [n, classes] → [n, 2], in the order of OUTPUT_COLUMNS; entropy in nats."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.minus_sum = _linear(-np.ones((classes, 1)), np.zeros(1))

    def forward(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        entropy = self.minus_sum(probabilities * torch.log_softmax(logits, dim=1))
        return torch.cat([probabilities.amax(1, keepdim=True), entropy], dim=1)


class ClassifierMonitor(nn.Module):
    def __init__(self, constants: EmbeddingConstants, *, classes: int, levels: int, height: int, width: int) -> None:
        super().__init__()
        self.statistics = ImageStatistics(levels, height, width)
        self.embedding = EmbeddingMonitor(constants)
        self.output = OutputMonitor(classes)

    def forward(self, image: Tensor, embedding: Tensor, logits: Tensor, probabilities: Tensor) -> Tensor:
        parts = [self.statistics(image), self.embedding(embedding), self.output(logits, probabilities)]
        return torch.cat(parts, dim=1)


class Graph(nn.Module):
    """What is exported: raw levels in (uint8 [n, h, w]), (probabilities, monitor) out; preprocessing is inside.

    `net` maps a normalised image, float [n, 1, h, w], to (logits, embedding); it is the part that quantization may
    touch. The monitor takes the levels as they are: a tensor that both used would reach it quantized.
    """

    def __init__(self, net: nn.Module, monitor: ClassifierMonitor, *, mean: float, std: float) -> None:
        super().__init__()
        self.net = net
        self.monitor = monitor
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw = x.to(torch.float32).unsqueeze(1)
        logits, embedding = self.net((raw - self.mean) / self.std)
        probabilities = torch.softmax(logits, dim=1)
        return probabilities, self.monitor(raw, embedding, logits, probabilities)


def _linear(weight: Float, bias: Float) -> nn.Linear:
    """x @ weight + bias, with constants."""
    layer = nn.Linear(*weight.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer.requires_grad_(False)
