"""What a person reads of one metric of a rollout: its rates, and the evidence about them. Pure.

Rates are shares of trials; devices that fail or fall silent are numbers of devices. e-values are logarithms in a figure
and plain numbers in a sentence.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from .processes import Basis, Metric

_DEVICES: Final = {"failure": "devices that failed", "missing": "devices that fell silent"}
_NAMES: Final = {
    "error": "errors",
    "slow": "slow runs",
    "label": "wrong labels",
    "shadow": "disagreements in the shadow",
    "confidence": "doubt",
}


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. None: it cannot be judged."""

    metric: Metric
    basis: Basis
    treated: float | None  # rate
    control: float | None  # the rate that these devices would have without the release
    n: int
    log_bad: float
    log_ok: float
    log_own: float | None = None  # against the treated devices' own pre-period
    blocks: bool  # promotion waits for it
    need_ok: float = 0.0  # log e that promotion waits for
    log_lost: float = 0.0  # by which log_ok fell from its best


def rates(figure: Figure) -> str:
    """With the release and without it, in words."""
    name = _DEVICES.get(figure.metric) or _NAMES.get(figure.metric, f"misses of {figure.metric}")
    if figure.treated is None:
        return f"{name} not seen yet"
    if figure.metric in _DEVICES:
        against = "" if figure.control is None else f", {figure.control * figure.n:.2g} expected"
        return f"{figure.treated * figure.n:.0f} {name}{against}"
    against = "" if figure.control is None else f" against {figure.control:.2%}"
    return f"{name} {figure.treated:.2%}{against} (n = {figure.n:,})"


def told(log_e: float) -> str:
    """An e-value, in words."""
    return f"{math.exp(min(log_e, 20.0)):.3g}" if log_e < 20 else f"e^{log_e:.0f}"
