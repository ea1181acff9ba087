"""How accurate a model is where nobody says what was true: from how sure it is, with an interval. Pure.

A calibrated confidence of 0.9 is right nine times in ten, so the mean confidence is the accuracy to expect, *if what
the model has learnt still holds*. Nobody can see from inputs and outputs that the same input now means something else
(concept drift); only labels can. Where they come, late and few, they move the estimate and tell whether it held.

The share of right answers in bin b of confidence, on the device d, is

    c_b + g_b + e_d      c: mean confidence there; g: error of calibration; e: how devices differ

with g and e normal of mean 0. What a package's word is worth, before any label, is `TRUST` labels in each bin, half of
the error shared by all bins; a device's error rate varies around the fleet's by `DEVICE_CV` (stats.md, section 5),
corrected by what its labels show (DerSimonian and Laird 1986). Labels of a bin are k of n; the accuracy given them is
the best linear prediction (kriging) of the weighted sum, with the exact covariance of labelled and asked devices.

The interval is for the share that was right of *these* inferences and for the accuracy behind them alike: its variance
is that of calibration and devices plus A(1 - A)/n. It is symmetric in log-odds. Cost: one 10 x 10 system, 0.2 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgewright_contracts.binning import Cells
from edgewright_contracts.channels import SCORE_BINS, SCORE_ONE
from edgewright_contracts.report import CONFIDENCE_BINS

Floats = npt.NDArray[np.float64]
Holds = Literal["no labels with confidence", "too few labels with confidence", "agrees", "disagrees"]

TRUST: Final = 150.0
SHARED: Final = 0.5  # of the variance of calibration
DEVICE_CV: Final = 0.3
DEVICES_KNOWN: Final = 5.0  # DEVICE_CV counts as much as the labels of so many devices
Z: Final = 1.959964  # 95 %
DISAGREES_Z: Final = 3.0
LEAST_SHARE: Final = 1e-12  # of wrong answers, and of right ones, that is told from none
LEAST_LABELS: Final = 30  # fewer say nothing about whether it holds
CONFIDENCE_WIDTH: Final = SCORE_BINS + 2  # of the channel in a window: bins, missing, sum
_PER_BIN: Final = SCORE_BINS // CONFIDENCE_BINS


@dataclass(frozen=True, slots=True)
class Slice:
    """What was counted of one digest, variant, cohort and context.

    `confidence`: int64[22], cells of the channel. `n`: int64[devices], inferences of each device, for their shares.
    `labelled`, `hits`: int64[devices, 10], labels of each by tenth of confidence, and those that were right.
    """

    confidence: Cells
    n: Cells
    labelled: Cells
    hits: Cells


@dataclass(frozen=True, slots=True)
class Expected:
    """`value` and its 95 % interval; `confidence` is what the model itself says, without labels. `sd` of what all
    slices of a model may share (calibration), `noise` of what they do not."""

    n: int
    value: float
    low: float
    high: float
    confidence: float
    labels: int
    holds: Holds
    sd: float
    noise: float
    unknown: float = 0.0  # share of answers without a confidence, right or wrong
    right: float | None = None  # share of the labels with confidence that were right


def expected(counted: Slice) -> Expected | None:
    """None when no confidence was counted."""
    found = tenths(counted)
    if found is None:
        return None
    w, c = found
    n, missing = float(counted.confidence[:SCORE_BINS].sum()), float(counted.confidence[SCORE_BINS])
    said = float(w @ c)
    k, h = counted.labelled.sum(0).astype(np.float64), counted.hits.sum(0).astype(np.float64)
    tau2 = _devices(counted, c, said)
    shares = _shares(counted.n)
    prior = _prior(c)
    off, less = _surprise(counted, c, prior, tau2)
    prior *= less
    variance = float(w @ prior @ w) + tau2 * float(shares @ shares)
    value = said
    if k.any():
        gain, seen = _gain(counted, w, prior, tau2, shares, _noise(counted, c, TRUST / less))
        value += float(gain @ (h[seen] / k[seen] - c[seen]))
        variance -= float(gain @ _cross(counted, w, prior, tau2, shares)[seen])
    least = max(0.5 / (n + 1), LEAST_SHARE)
    value = min(max(value, least), 1 - least)
    sd, noise = math.sqrt(max(variance, 0.0)), math.sqrt(value * (1 - value) / n)
    unknown = missing / (n + missing)
    low, high = _interval(value, math.hypot(sd, noise), unknown)
    right = float(h.sum() / k.sum()) if k.any() else None
    return Expected(int(n), value, low, high, said, int(k.sum()), _holds(k.sum(), off), sd, noise, unknown, right)


def tenths(counted: Slice) -> tuple[Floats, Floats] | None:
    """Share and mean confidence of each tenth; None when no confidence was counted."""
    bins = counted.confidence[:SCORE_BINS].astype(np.float64)
    if not bins.any():
        return None
    return _tenths(bins, _means(bins, float(counted.confidence[SCORE_BINS + 1]) / SCORE_ONE))


def apart(counted: Slice) -> float:
    """Variance between devices of what their accuracy is beside their confidence."""
    found = tenths(counted)
    return _devices(counted, found[1], float(found[0] @ found[1])) if found else 0.0


def combined(parts: Sequence[Expected]) -> Expected | None:
    """Of slices together, weighted by their inferences. Their errors of calibration may all go the same way."""
    if not parts:
        return None
    n = np.array([one.n for one in parts], np.float64)
    w = n / n.sum()
    value, said, sd, unknown = (
        float(w @ np.array([getattr(one, name) for one in parts])) for name in ("value", "confidence", "sd", "unknown")
    )
    noise = math.sqrt(float(sum((w[i] * one.noise) ** 2 for i, one in enumerate(parts))))
    low, high = _interval(value, math.hypot(sd, noise), unknown)
    holds = min((one.holds for one in parts), key=(*reversed(get_args(Holds)),).index)
    return Expected(int(n.sum()), value, low, high, said, sum(one.labels for one in parts), holds, sd, noise, unknown)


def _means(bins: Floats, total: float) -> Floats:
    """Mean confidence of each of the 20 bins: their middles, all moved by one share so that their sum is the exact."""
    width = 1 / SCORE_BINS
    middles = (np.arange(SCORE_BINS) + 0.5) * width
    move = (total - float(bins @ middles)) / float(bins.sum())
    return np.asarray(np.clip(middles + np.clip(move, -width / 2, width / 2), 0.0, 1.0))


def _tenths(bins: Floats, means: Floats) -> tuple[Floats, Floats]:
    """Share and mean confidence of each tenth; the middle of one where nothing was counted."""
    n = bins.reshape(CONFIDENCE_BINS, _PER_BIN)
    each = n.sum(1)
    middle = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS
    mean = np.where(each > 0, (n * means.reshape(n.shape)).sum(1) / np.maximum(each, 1), middle)
    return np.asarray(each / each.sum()), np.clip(mean, 0.005, 0.995)


def _prior(c: Floats) -> Floats:
    """Covariance of the errors of calibration."""
    sd = np.sqrt(c * (1 - c) / TRUST)
    shared: Floats = SHARED * np.outer(sd, sd)
    return shared + (1 - SHARED) * np.diag(sd**2)


def _shares(n: Cells) -> Floats:
    """Of each device; of nothing known, one device has all."""
    total = n.sum()
    return np.asarray(n / total if total else np.ones(max(1, n.size)) / max(1, n.size) ** 0.5)


def _devices(counted: Slice, c: Floats, said: float) -> float:
    """Variance between devices of what their accuracy is beside their confidence."""
    assumed = (DEVICE_CV * (1 - said)) ** 2
    k = counted.labelled.sum(1).astype(np.float64)
    seen = k > 0
    if seen.sum() < 2:
        return assumed
    k = k[seen]
    off = (counted.hits[seen].sum(1) - counted.labelled[seen] @ c) / k
    rate = min(max(float(counted.hits.sum() / counted.labelled.sum()), 0.01), 0.99)
    w = k / (rate * (1 - rate))
    q = float((w * (off - (w @ off) / w.sum()) ** 2).sum())
    apart = max(float(w.sum() - (w @ w) / w.sum()), float(w.min()))  # where one device has nearly all, rounding is all
    found = max(0.0, (q - (k.size - 1)) / apart)
    return float((DEVICES_KNOWN * assumed + (k.size - 1) * found) / (DEVICES_KNOWN + k.size - 1))


def _noise(counted: Slice, c: Floats, trust: float) -> Floats:
    """Variance of the share of right labels in each bin that has any; `trust` labels say what the confidence says."""
    k, h = counted.labelled.sum(0), counted.hits.sum(0)
    rate = (trust * c + h) / (trust + k)
    return np.asarray(rate * (1 - rate) / np.maximum(k, 1))


def _gain(
    counted: Slice, w: Floats, prior: Floats, tau2: float, shares: Floats, noise: Floats
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """What each labelled bin's surprise moves the estimate by."""
    seen = counted.labelled.sum(0) > 0
    labelled = counted.labelled.sum(1) / counted.labelled.sum()
    among = prior + tau2 * float(labelled @ labelled) + np.diag(noise)
    gain = np.linalg.solve(among[np.ix_(seen, seen)], _cross(counted, w, prior, tau2, shares)[seen])
    return gain, seen


def _cross(counted: Slice, w: Floats, prior: Floats, tau2: float, shares: Floats) -> Floats:
    """Covariance of the accuracy that is asked for and the labels of each bin."""
    labelled = counted.labelled.sum(1) / counted.labelled.sum()
    both = float(shares @ labelled) if shares.size == labelled.size else 0.0
    return np.asarray(prior @ w + tau2 * both)


def _surprise(counted: Slice, c: Floats, prior: Floats, tau2: float) -> tuple[float, float]:
    """How far labels are off what the confidence of the labelled inferences said, in standard deviations; and where
    that is too far, how much less than was thought the package's word is worth: as little as explains it."""
    k = counted.labelled.sum(0).astype(np.float64)
    total = k.sum()
    if total < LEAST_LABELS:
        return 0.0, 1.0
    w, each = k / total, counted.labelled.sum(1) / total
    said = float(w @ c)
    calibration, others = float(w @ prior @ w), tau2 * float(each @ each) + said * (1 - said) / total
    far = float(counted.hits.sum() / total - said)
    off = far / math.sqrt(calibration + others)
    return off, max(1.0, (far**2 - others) / calibration) if abs(off) > DISAGREES_Z else 1.0


def _holds(labels: float, off: float) -> Holds:
    """Labels without a confidence are counted, but not against it."""
    if labels < LEAST_LABELS:
        return "too few labels with confidence" if labels else "no labels with confidence"
    return "disagrees" if abs(off) > DISAGREES_Z else "agrees"


def _interval(value: float, sd: float, unknown: float) -> tuple[float, float]:
    """Symmetric in log-odds; what is unknown may all be wrong, or all right."""
    odds, half = math.log(value / (1 - value)), Z * sd / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(x, -700.0), 700.0))) for x in (odds - half, odds + half))
    return low * (1 - unknown), high * (1 - unknown) + unknown
