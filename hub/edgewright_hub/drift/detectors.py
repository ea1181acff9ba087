"""Has a stream of windows moved for good? Shiryaev-Roberts e-detectors at four time scales. Pure arrays over streams.

Guarantee: of a null stream, whose z-scores are independent and not above normal, the sum R - t is a martingale; so the
chance that R reaches A within T windows is at most T / A, however often it is looked at. Scales are combined by a
weighted mean, which keeps that for any dependence between them: each scale s has T_s blocks in a month, and

    e = sum of weight_s R_s / T_s       has a mean of at most 1 at the month's end.

Order: p-value of a block → `score` → `whitened` → `advanced` → `log_e`. Shapes: `...` is any shape of streams.
Cost: 20 numbers a stream; about 1 µs a block in calls of thousands. Source: research in docs/drift.md.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from .measures import Floats

DELTAS: Final = (0.5, 1.0, 2.0, 3.0, 4.0)  # shifts of the z-score that a detector mixes over
HOUR_MS: Final = 3600_000
DAY_MS: Final = 24 * HOUR_MS
SCALES_MS: Final = (0, HOUR_MS, 6 * HOUR_MS, DAY_MS)  # 0: a block as soon as it holds enough rows
WEIGHTS: Final = (1 / 2, 1 / 6, 1 / 6, 1 / 6)  # share of the false-alarm budget; windows are where delay is short
MONTH_MS: Final = 30 * DAY_MS
NOTHING: Final = -1e9  # stands for log 0, which JSON cannot hold
_DELTA: Final = np.asarray(DELTAS)
_LOG_WEIGHTS: Final = np.log(WEIGHTS)


def fresh(*shape: int) -> Floats:
    """log R of detectors that have seen nothing, float64[*shape, len(DELTAS)]."""
    return np.full((*shape, len(DELTAS)), NOTHING)


def score(p: npt.ArrayLike) -> Floats:
    """Normal score of p-values: large where p is small."""
    return np.asarray(-ndtri(np.clip(np.asarray(p, np.float64), 1e-300, 1 - 1e-16)), np.float64)


def whitened(z: Floats, before: Floats, rho: npt.ArrayLike) -> Floats:
    """z-scores of blocks without what the block before explains of them, by the correlation `rho` of two in a row.

    Only what was high is taken off, and what remains is not blown up to a variance of 1: so the mean is at most 0 and
    the variance at most 1 whatever came before, and the detector's guarantee stays, also where `rho` is too large.
    """
    return np.asarray(z - np.asarray(rho, np.float64) * np.maximum(before, 0.0))


def advanced(log_r: Floats, z: npt.ArrayLike) -> Floats:
    """R <- (R + 1) exp(delta z - delta²/2), float64[..., len(DELTAS)]; `z`: float64[...]."""
    grown = np.logaddexp(log_r, 0.0) + _DELTA * np.asarray(z, np.float64)[..., None] - _DELTA**2 / 2
    return np.maximum(grown, NOTHING)


def level(log_r: Floats) -> Floats:
    """log of the mixture, the mean of R over DELTAS, float64[...]; compare it with log A."""
    return np.asarray(np.logaddexp.reduce(log_r, axis=-1) - np.log(len(DELTAS)))


def log_e(log_r: Floats, per_month: npt.ArrayLike) -> Floats:
    """log e of streams, float64[...], from `log_r` float64[..., scales, DELTAS] and the blocks of each scale that a
    month has, float64[..., scales]."""
    return np.asarray(np.logaddexp.reduce(level(log_r) - np.log(per_month) + _LOG_WEIGHTS, axis=-1))
