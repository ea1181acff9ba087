"""How far a channel moved, whatever n is: effect sizes, and what chance alone makes of them. Pure arrays.

Distances of small windows are large by chance: at n = 200 and 12 cells two samples of one distribution lie a
Jensen-Shannon distance of .10 apart. So every size here stands beside what chance explains, and paging looks at the
rest. `C`, `R`: counts of window and reference, [channels, cells], as in `measures`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

from .measures import Floats


def js_distance(C: npt.ArrayLike, R: npt.ArrayLike) -> Floats:
    """Jensen-Shannon distance (base 2, in [0, 1]) of each channel; 0 where either side is empty."""
    return np.sqrt(_divergence(np.asarray(C, np.float64), np.asarray(R, np.float64)))


def js_beyond_chance(C: npt.ArrayLike, R: npt.ArrayLike, c_f: npt.ArrayLike = 1.0) -> Floats:
    """The distance of which chance explains nothing: of the divergence its null mean is taken off, (K - 1)(1/n + 1/N)
    c_f / (8 ln 2). `c_f`: as for `window_p`."""
    C, R = np.asarray(C, np.float64), np.asarray(R, np.float64)
    n, N = np.maximum(C.sum(1), 1), np.maximum(R.sum(1), 1)
    K = ((C + R) > 0).sum(1)
    chance = np.maximum(K - 1, 0) * (1 / n + 1 / N) * c_f / (8 * np.log(2))
    return np.asarray(np.sqrt(np.maximum(_divergence(C, R) - chance, 0)))


def psi(C: npt.ArrayLike, R: npt.ArrayLike) -> Floats:
    """Population stability index of each channel, half a count added to each cell that either side fills."""
    C, R = np.asarray(C, np.float64), np.asarray(R, np.float64)
    used = (C > 0) | (R > 0)
    c, r = np.where(used, C + 0.5, 0), np.where(used, R + 0.5, 0)
    a, b = c / np.maximum(c.sum(1, keepdims=True), 1), r / np.maximum(r.sum(1, keepdims=True), 1)
    terms: Floats = np.where(used, (a - b) * np.log(np.where(used, a, 1) / np.where(used, b, 1)), 0)
    return np.asarray(terms.sum(1))


def psi_crit(n: float, N: float, cells: int, channels: int = 1, q: float = 0.05) -> float:
    """What PSI exceeds by chance in a share `q` of windows (any of `channels`): PSI / (1/n + 1/N) ~ chi2(cells - 1)."""
    return float(chdtri(max(1, cells - 1), q / channels) * (1 / n + 1 / N))


def _divergence(C: Floats, R: Floats) -> Floats:
    a, b = C / np.maximum(C.sum(1, keepdims=True), 1), R / np.maximum(R.sum(1, keepdims=True), 1)
    m = (a + b) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(a > 0, a * np.log2(a / m), 0) + np.where(b > 0, b * np.log2(b / m), 0)
    both = (C.sum(1) > 0) & (R.sum(1) > 0)
    return np.where(both, np.maximum(terms.sum(1) / 2, 0), 0.0)
