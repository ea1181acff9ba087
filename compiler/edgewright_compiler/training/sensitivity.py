"""What each layer can bear: the score after a share of its channels alone is gone, without training again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from edgewright_contracts.errors import RequestError

from .channels import Cut, apply, survey
from .train import Progress


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One group of layers whose channels hang together. `drop` is in the unit of the score, larger is worse."""

    layers: tuple[str, ...]
    channels: int
    kept: int
    score: float
    drop: float


def sensitivity(
    net: nn.Module,
    example: Tensor,
    score: Callable[[nn.Module], float],
    *,
    share: float = 0.5,
    round_to: int = 8,
    progress: Progress = lambda _share: None,
) -> tuple[Sensitivity, ...]:
    """The most sensitive first; `net` stays as it is. Of each group `share` remains, in multiples of `round_to` and at
    least one of them; groups too small to lose any are left out. Cost: one `score` for each group, and one more."""
    if not 0 < share < 1:
        raise RequestError(f"sensitivity: expected a share between 0 and 1, got {share}")
    groups, _ = survey(net, example)
    whole, table = score(net), []
    for i, group in enumerate(groups):
        progress(i / len(groups))
        kept = max(round_to, int(share * group.channels) // round_to * round_to)
        if kept >= group.channels:
            continue
        trial = copy.deepcopy(net)
        apply(trial, example, (Cut(group.root, tuple(sorted(group.order[: group.channels - kept]))),))
        found = score(trial)
        table.append(Sensitivity(group.layers, group.channels, kept, found, whole - found))
    progress(1.0)
    return tuple(sorted(table, key=lambda one: (-one.drop, one.layers)))
