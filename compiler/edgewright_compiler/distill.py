"""Distillation: a small model learns from a large one's whole answer, not only from the label (Hinton et al., 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .train import Loss


def distillation_loss(teacher: nn.Module, *, temperature: float = 4.0, weight: float = 0.7) -> Loss:
    """weight × KL(teacher ‖ student) at `temperature`, scaled by its square, + (1 - weight) × cross-entropy."""
    teacher.eval().requires_grad_(False)

    def loss(inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            soft = functional.log_softmax(teacher(inputs)[0] / temperature, dim=1)
        close = functional.kl_div(
            functional.log_softmax(logits / temperature, dim=1), soft, reduction="batchmean", log_target=True
        )
        return weight * temperature**2 * close + (1 - weight) * functional.cross_entropy(logits, labels)

    return loss
