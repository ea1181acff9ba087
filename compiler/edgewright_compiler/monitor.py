"""The `monitor` output: one float32 row per sample that tells whether input, embedding and output look as they used to.

Columns: 9 statistics of the image | PCA-8 of the penultimate layer | 2 Mahalanobis distances | confidence, entropy.
These 21 and the predicted class are what was found to see the shifts that matter: the statistics see what happens to a
sensor, the embedding sees new classes and shifted labels, and together they tell whether the model sees what the sensor
shows. Statistics were chosen for spread: the minimum, maximum and median of an image are nearly always one number.
Values are counted in cells between quantiles, which no monotone function changes; so distances stay squared, and
nothing takes a root.

The branch stays float when everything else becomes int8: it is built of modules of its own under `Graph.monitor`, and
quantization works on `Graph.net` only. onnxruntime pays about half a microsecond per operator, whatever it does, so
the branch is written in few operators (convolutions and matrix products), not in few multiplications.
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
    "mean", "row-gradient", "column-gradient", "dark-share", "bright-share", "top-bottom", "left-right", "energy",
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
    """float [n, 1, h, w], multiples of 1/levels in [0, 1] → [n, 9], in the order of IMAGE_COLUMNS.

    One rectified convolution gives seven maps whose averages are the mean, both signs of both gradients (beyond the
    border it is dark), and the exact indicators of the darkest and the brightest level.
    """

    def __init__(self, levels: int, height: int, width: int) -> None:
        super().__init__()
        kernels, bias = torch.zeros(7, 1, 3, 3), torch.zeros(7)
        kernels[:, 0, 1, 1] = torch.tensor([1, -1, 1, -1, 1, -levels, levels], dtype=torch.float32)
        for channel, (row, column) in enumerate([(2, 1), (2, 1), (1, 2), (1, 2)], start=1):
            kernels[channel, 0, row, column] = -kernels[channel, 0, 1, 1]
        bias[5:] = torch.tensor([1.0, 1.0 - levels])
        self.maps = nn.Conv2d(1, 7, 3, padding=1)
        self.gather = nn.Linear(7, 5, bias=False)
        self.halves = nn.Linear(height * width, 2, bias=False)
        rows = torch.ones(height, width)
        rows[height // 2 :] = -1
        columns = torch.ones(height, width)
        columns[:, width // 2 :] = -1
        with torch.no_grad():
            self.maps.weight.copy_(kernels)
            assert self.maps.bias is not None
            self.maps.bias.copy_(bias)
            self.gather.weight.copy_(torch.tensor([[1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0],
                                                   [0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1]]))  # fmt: skip
            self.halves.weight.copy_(torch.stack([rows.flatten(), columns.flatten()]) * (2 / rows.numel()))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        averages = torch.relu(self.maps(image)).mean((2, 3))
        row_energy = (image * image).mean((1, 3))
        return torch.cat(
            [
                self.gather(averages),
                self.halves(image.flatten(1)),
                row_energy.mean(1, keepdim=True),
                row_energy.amin(1, keepdim=True),
            ],
            dim=1,
        )


class EmbeddingMonitor(nn.Module):
    """embedding [n, d] → [n, 10], in the order of EMBEDDING_COLUMNS; components in standard deviations."""

    def __init__(self, constants: EmbeddingConstants) -> None:
        super().__init__()
        self.project = nn.Linear(*constants.project.shape)
        self.whiten = nn.Linear(*constants.whiten.shape)
        self.centres = nn.Buffer(_tensor(constants.centres[None]))
        with torch.no_grad():
            self.project.weight.copy_(_tensor(constants.project.T))
            self.project.bias.copy_(_tensor(constants.offset))
            self.whiten.weight.copy_(_tensor(constants.whiten.T))
            self.whiten.bias.copy_(_tensor(constants.whitened_offset))
        self.requires_grad_(False)

    def forward(self, embedding: Tensor) -> Tensor:
        z = self.project(embedding)
        away = self.whiten(embedding).unsqueeze(1) - self.centres
        nearest = (away * away).sum(2).amin(1, keepdim=True)
        return torch.cat([z, nearest, (z * z).sum(1, keepdim=True)], dim=1)


class OutputMonitor(nn.Module):
    """probabilities [n, classes] → [n, 2], in the order of OUTPUT_COLUMNS; entropy in nats."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.minus_sum = nn.Linear(classes, 1, bias=False)
        with torch.no_grad():
            self.minus_sum.weight.fill_(-1)
        self.requires_grad_(False)

    def forward(self, probabilities: Tensor) -> Tensor:
        entropy = self.minus_sum(probabilities * torch.log(probabilities.clamp(min=1e-7)))
        return torch.cat([probabilities.amax(1, keepdim=True), entropy], dim=1)


class ClassifierMonitor(nn.Module):
    def __init__(self, constants: EmbeddingConstants, *, classes: int, levels: int, height: int, width: int) -> None:
        super().__init__()
        self.statistics = ImageStatistics(levels, height, width)
        self.embedding = EmbeddingMonitor(constants)
        self.output = OutputMonitor(classes)

    def forward(self, image: Tensor, embedding: Tensor, probabilities: Tensor) -> Tensor:
        return torch.cat([self.statistics(image), self.embedding(embedding), self.output(probabilities)], dim=1)


class Graph(nn.Module):
    """What is exported: raw levels in (uint8 [n, h, w]), (probabilities, monitor) out; preprocessing is inside.

    `net` maps a normalised image, float [n, 1, h, w], to (logits, embedding); it is the part that quantization may
    touch. The monitor takes its own float image: a tensor that both used would reach it quantized.
    """

    def __init__(self, net: nn.Module, monitor: ClassifierMonitor, *, levels: int, mean: float, std: float) -> None:
        super().__init__()
        self.net = net
        self.monitor = monitor
        self.levels = levels
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw = x.to(torch.float32).unsqueeze(1)
        logits, embedding = self.net((raw - self.mean) / self.std)
        probabilities = torch.softmax(logits, dim=1)
        return probabilities, self.monitor(raw / self.levels, embedding, probabilities)


def _tensor(a: Float) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, np.float32))
