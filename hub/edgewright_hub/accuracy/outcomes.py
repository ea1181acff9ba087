"""Rates of named outcomes (`pick_ok`, or `correct`, the delayed label), with intervals that know that devices differ.
Pure."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from edgewright_contracts.binning import Cells

Z: Final = 1.959964  # 95 %


class Rate(NamedTuple):
    n: int
    hits: int
    value: float
    low: float
    high: float
    devices: int


def rate(n: Cells, hits: Cells) -> Rate:
    """`n`, `hits`: int64[devices]. Wilson's interval (1927) of n over the design effect: the variance between devices
    over what chance alone makes. Of one device that effect cannot be seen."""
    total, good, devices = int(n.sum()), int(hits.sum()), int(np.count_nonzero(n))
    if not total:
        return Rate(0, 0, math.nan, 0.0, 1.0, 0)
    p = good / total
    chance = total * p * (1 - p)
    effect = 1.0
    if devices > 1 and chance:
        effect = max(1.0, float(((hits - n * p) ** 2).sum()) * devices / (devices - 1) / chance)
    m = total / effect
    middle, half = p + Z**2 / (2 * m), Z * math.sqrt(p * (1 - p) / m + Z**2 / (4 * m**2))
    scale = 1 + Z**2 / m
    low, high = max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
    return Rate(total, good, p, low, high, devices)
