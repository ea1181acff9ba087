"""From a schedule to torch's optimiser and its rate over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import nn

from edgewright_contracts.errors import RequestError

from ..recipe import Schedule

MOMENTUM: Final = 0.9  # of sgd
_BOUNDS: Final = (  # field of a schedule, least value, whether that value itself will do
    ("epochs", 1, True),
    ("batch", 1, True),
    ("rate", 0, False),
    ("clip", 0, False),
    ("patience", 1, True),
    ("weight_decay", 0, True),
    ("smoothing", 0, True),
    ("frozen_epochs", 0, True),
)


def check(schedule: Schedule) -> None:
    """Raises RequestError for a schedule that cannot run."""
    for field, least, reached in _BOUNDS:
        value = getattr(schedule, field)
        if value is not None and not (value >= least if reached else value > least):
            raise RequestError(
                f"schedule: expected {field} {'of at least' if reached else 'above'} {least}, got {value}"
            )
    if not schedule.smoothing < 1:
        raise RequestError(f"schedule: expected smoothing below 1, got {schedule.smoothing}")


def optimiser_of(parameters: Iterable[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with Nesterov's momentum, at the schedule's rate and weight decay."""
    if schedule.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, schedule.rate, momentum=MOMENTUM, nesterov=True, weight_decay=schedule.weight_decay
        )
    kind = torch.optim.AdamW if schedule.optimiser == "adamw" else torch.optim.Adam
    return kind(parameters, schedule.rate, weight_decay=schedule.weight_decay)


def rates_of(optimiser: torch.optim.Optimizer, schedule: Schedule, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """One-cycle (Smith and Topin, 2017: up to `rate` in 30 % of the steps, then down to almost nothing), cosine to 0,
    or constant; stepped once for every batch."""
    rates = torch.optim.lr_scheduler
    if schedule.shape == "one-cycle":
        return rates.OneCycleLR(optimiser, max_lr=schedule.rate, total_steps=steps)
    if schedule.shape == "cosine":
        return rates.CosineAnnealingLR(optimiser, T_max=steps)
    return rates.ConstantLR(optimiser, factor=1.0, total_iters=0)
