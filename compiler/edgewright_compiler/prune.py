"""Structured pruning: whole channels go, so that the model is smaller and faster without a sparse kernel.

Channel counts stay multiples of 8, because onnxruntime's blocked convolutions pad to them anyway: a net of 12 channels
was measured slower than one of 16. A pruned model has lost its accuracy until it is trained again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch_pruning
from torch import Tensor, nn

ROUND_TO: Final = 8


@dataclass(frozen=True, slots=True)
class Pruned:
    channels_before: tuple[int, ...]
    channels_after: tuple[int, ...]
    macs_before: int
    macs_after: int


def prune(model: nn.Module, example: Tensor, *, ratio: float, keep: tuple[nn.Module, ...]) -> Pruned:
    """Remove about `ratio` of the channels of `model`, in place; layers in `keep` keep their outputs."""
    before, macs = _channels(model), torch_pruning.utils.count_ops_and_params(model, example)[0]
    torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=list(keep),
        round_to=ROUND_TO,
    ).step()
    after = torch_pruning.utils.count_ops_and_params(model, example)[0]
    return Pruned(before, _channels(model), int(macs), int(after))


def _channels(model: nn.Module) -> tuple[int, ...]:
    """Output channels of every convolution and linear layer, in order."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return tuple(m.out_channels if isinstance(m, nn.Conv2d) else m.out_features for m in layers)
