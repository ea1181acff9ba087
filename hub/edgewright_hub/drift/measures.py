"""Is this window from the reference? One p-value for each channel, one for all, and which channels moved. Pure arrays.

Guarantee: under the null (rows of the window are independent draws from what made the reference) a window's combined
p-value lies below .05 in at most about 5 % of windows at every n from 50 to 5,000 (benchmarks/drift_calibration.py),
where PSI > 0.2 fires on every window of 50 and sees nothing at 1,000. Rows that are not independent, such as frames of
one scene, inflate the statistic; `c_f` and `v_f` say by how much (`dispersion` measures them).

Order: cells (all channels of a window, one row each) → `window_p` → `simes`; `bh` names the channels.
Channels have different numbers of cells; `pad` puts them into one rectangle, where spare cells stay 0 and count for
nothing. Rows are independent of each other, so the channels of many windows go into one call.
Cost: about 0.3 ms for 22 channels, 3 µs a channel in calls of thousands. Source: docs/drift.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, fdtrc, gammaincc, gammaln

Floats = npt.NDArray[np.float64]
WIDE: Final = 200.0  # standard deviation of a count from which its terms are too many to be added one by one


def pad(rows: Sequence[npt.ArrayLike]) -> Floats:
    """float64[channels, most cells]: rows of different lengths, filled with zeros."""
    arrays = [np.asarray(row, np.float64) for row in rows]
    out = np.zeros((len(arrays), max((a.size for a in arrays), default=0)))
    for into, row in zip(out, arrays, strict=True):
        into[: row.size] = row
    return out


class Pearson(NamedTuple):
    """The two-sample X² of each channel over its common cells, those that the reference expects once or more in the
    window: with its null mean (`free`) and exact null variance for independent rows; all float64[channels]."""

    x2: Floats
    free: Floats  # common cells - 1, at least 1
    variance: Floats
    tested: npt.NDArray[np.bool_]  # two common cells or more, and counts on both sides
    rare: Floats  # counts of the window in all other cells
    rare_reference: Floats
    n: Floats  # all counts
    N: Floats
    trend: Floats  # squared z-score of the mean rank, see `trend`; 0 where cells have no order
    ordered: npt.NDArray[np.bool_]

    def of(self, keep: npt.NDArray[np.bool_]) -> Pearson:
        """Of some channels only."""
        free, variance, tested = self.free[keep], self.variance[keep], self.tested[keep]
        rare = self.rare[keep], self.rare_reference[keep]
        trend = self.trend[keep], self.ordered[keep]
        return Pearson(self.x2[keep], free, variance, tested, *rare, self.n[keep], self.N[keep], *trend)

    def held_apart(self, channels: int) -> npt.NDArray[np.bool_]:
        """bool[blocks], of so many channels each: where there is something on both sides."""
        return np.asarray(((self.n > 0) & (self.N > 0)).reshape(-1, channels).any(1))


def pearson(C: npt.ArrayLike, R: npt.ArrayLike, ordered: npt.ArrayLike = 0) -> Pearson:
    """`C`, `R`: counts of window and reference, [channels, cells]; `ordered`: how many cells of each channel, the first
    ones, lie in an order."""
    C, R = np.asarray(C, np.float64), np.asarray(R, np.float64)
    n, N = C.sum(1, keepdims=True), R.sum(1, keepdims=True)
    n1, N1 = np.maximum(n, 1.0), np.maximum(N, 1.0)
    q = R / N1
    common = n * q >= 1
    rare, rare_reference = np.where(common, 0, C).sum(1), np.where(common, 0, R).sum(1)
    both = np.where(common, (C + R) / (n1 + N1), 1.0)
    x2 = np.where(common, (C - n * both) ** 2 / (n1 * both) + (R - N * both) ** 2 / (N1 * both), 0.0).sum(1)
    K = common.sum(1).astype(np.float64)
    free = np.maximum(K - 1, 1.0)
    inverse = np.where(common, 1 / np.where(common, q, 1.0), 0.0).sum(1)
    variance = np.maximum(2 * free + (inverse - K * K - 2 * K + 2) / n1[:, 0], 2 * free)
    tested = (K > 1) & (n > 0)[:, 0] & (N > 0)[:, 0]
    places = np.broadcast_to(np.asarray(ordered, np.int64), n[:, 0].shape)
    squared = trend(C, R, places)
    return Pearson(x2, free, variance, tested, rare, rare_reference, n[:, 0], N[:, 0], squared, places > 0)


def pearson_of_blocks(block: npt.NDArray[Any], reference: npt.NDArray[Any], ordered: Sequence[int]) -> Pearson:
    """Of all channels of blocks [m, channels, cells], one block after another; `ordered`: of each channel."""
    blocks, _, cells = block.shape
    return pearson(block.reshape(-1, cells), reference.reshape(-1, cells), np.tile(ordered, blocks))


def trend(C: Floats, R: Floats, ordered: npt.NDArray[np.int64]) -> Floats:
    """Whether the window lies higher or lower than the reference: the squared z-score of the difference of mean ranks
    (Wilcoxon's test with all values of a cell tied), float64[channels]; null: chi² with 1 degree of freedom. It finds
    what moves a channel as a whole in windows half as large as Pearson's X² needs, which looks at each cell alone.
    """
    known = np.arange(C.shape[1]) < ordered[:, None]
    C, R = np.where(known, C, 0), np.where(known, R, 0)
    n, N = C.sum(1, keepdims=True), R.sum(1, keepdims=True)
    share = (C + R) / np.maximum(n + N, 1)
    rank = np.cumsum(share, axis=1) - share / 2
    rank = rank - (share * rank).sum(1, keepdims=True)
    n1, N1 = np.maximum(n, 1), np.maximum(N, 1)
    difference = (rank * (C / n1 - R / N1)).sum(1)
    spread = (share * rank**2).sum(1) * (1 / n1 + 1 / N1)[:, 0]
    usable = (n[:, 0] > 0) & (N[:, 0] > 0) & (spread > 1e-12)
    return np.where(usable, difference**2 / np.where(usable, spread, 1.0), 0.0)


def window_p(
    C: npt.ArrayLike,
    R: npt.ArrayLike,
    c_f: npt.ArrayLike | None = None,
    v_f: npt.ArrayLike | None = None,
    thin: npt.ArrayLike = 1.0,
    *,
    ordered: npt.ArrayLike = 0,
) -> Floats:
    """p-value of each channel, float64[channels], of window counts `C` against reference counts `R` (same shape).

    Common cells go into a two-sample Pearson X² with a gamma p-value of its exact null mean and variance; all rarer
    cells are pooled into one one-sided beta-binomial p-value, which is what sees new classes and missing values in
    small windows. Where cells lie in an order, the trend along it has a third one (`trend`; `ordered`: of how many
    cells, all but that of missing values). The channel's p-value is the smallest times their number (Bonferroni).

    Of rows that are not independent, each a number or float64[channels]: `c_f`, the measured mean of X² over its mean
    for independent ones; `v_f`, the measured variance of X²; `thin`, by which the rare cells' counts are divided. A
    channel without counts on either side has p = 1.
    """
    return p_values(pearson(C, R, ordered), c_f, v_f, thin)


def p_values(
    found: Pearson,
    c_f: npt.ArrayLike | None = None,
    v_f: npt.ArrayLike | None = None,
    thin: npt.ArrayLike = 1.0,
    t_f: npt.ArrayLike = 1.0,
    t_v: npt.ArrayLike = 2.0,
    blocks: float | None = None,
) -> Floats:
    """What `window_p` gives, from the statistic; `t_f`, `t_v`: measured mean and variance of the squared trend;
    `blocks`: how many independent blocks the means were measured on, None if they are known exactly."""
    thin = np.broadcast_to(np.asarray(thin, np.float64), found.n.shape)
    rare, size = np.floor(found.rare / thin), np.maximum(np.floor(found.n / thin), 1.0)
    rare_p = _at_least(rare, size, found.rare_reference + 0.5, found.N - found.rare_reference + 0.5)
    mean, variance = found.free, found.variance
    if c_f is not None and v_f is not None:
        mean = found.free * np.asarray(c_f, np.float64)
        variance = np.broadcast_to(np.asarray(v_f, np.float64), found.n.shape)
    common_p = np.where(found.tested, above(found.x2, mean, variance, blocks), 1.0)
    t_f, t_v = np.asarray(t_f, np.float64), np.asarray(t_v, np.float64)
    trend_p = np.where(found.ordered, above(found.trend, t_f, t_v, blocks), 1.0)
    least = np.minimum(np.minimum(common_p, rare_p), trend_p)
    return np.where((found.n > 0) & (found.N > 0), np.minimum(1.0, np.where(found.ordered, 3, 2) * least), 1.0)


def above(x: Floats, mean: Floats, variance: Floats, blocks: float | None) -> Floats:
    """P(X >= x) of a gamma variable. Of one whose mean is itself that of `blocks` such variables the ratio to it has an
    F distribution, with a much longer tail while they are few."""
    shape = mean**2 / variance
    if blocks is None:
        return np.asarray(gammaincc(shape, x * mean / variance))
    return np.asarray(fdtrc(2 * shape, 2 * shape * blocks, x / mean))


def simes(p: npt.ArrayLike) -> float:
    """One p-value for "no channel moved": min p_(i) F / i; what Benjamini-Hochberg rejects at exactly this level."""
    p = np.asarray(p, np.float64)
    return float(simes_rows(p[None])[0]) if p.size else 1.0


def simes_rows(p: Floats) -> Floats:
    """The same for each row of p-values, float64[windows] of float64[windows, channels >= 1]."""
    ordered = np.sort(p, axis=1)
    channels = ordered.shape[1]
    return np.asarray(np.minimum(1.0, (ordered * channels / np.arange(1, channels + 1)).min(1)))


def bh(p: npt.ArrayLike, q: float = 0.05) -> npt.NDArray[np.bool_]:
    """Benjamini-Hochberg: which hypotheses are rejected at false discovery rate `q`, bool[F]."""
    p = np.asarray(p, np.float64)
    ordered = np.sort(p)
    passing = np.flatnonzero(ordered <= q * np.arange(1, p.size + 1) / max(1, p.size))
    if passing.size == 0:
        return np.zeros(p.size, np.bool_)
    return np.asarray(p <= ordered[passing[-1]])


def ebh(log_e: npt.ArrayLike, q: float = 0.05) -> npt.NDArray[np.bool_]:
    """e-BH: the same for e-values, given as logarithms, under any dependence between them, bool[F]."""
    return bh(np.exp(np.clip(-np.asarray(log_e, np.float64), -700, 700)), q)


def _at_least(c: Floats, n: Floats, a: Floats, b: Floats) -> Floats:
    """P(X >= c) of X ~ BetaBinomial(n, a, b), each float64[channels]; summed on the short side of the mean, by the
    ratio of one term to the next. Where X is `WIDE`, of the beta distribution with its mean and variance instead."""
    out, c = np.ones_like(c), np.minimum(c, n)
    mean, size = a / (a + b), n * (a + b + 1) / (a + b + n)  # size: n of a binomial with this mean and variance of X/n
    wide = n * np.sqrt(mean * (1 - mean) / size) > WIDE
    if (broad := np.flatnonzero((c > 0) & wide)).size:
        m, s = mean[broad], np.maximum(size[broad] - 1, 1e-9)
        out[broad] = betainc((1 - m) * s, m * s, 1 - (c[broad] - 0.5) / n[broad])
    some = np.flatnonzero((c > 0) & ~wide)
    if some.size == 0:
        return out
    c, n, a, b = c[some], n[some], a[some], b[some]
    below = c <= n * a / (a + b)
    k = np.where(below, c - 1, c)
    step = np.where(below, -1.0, 1.0)
    term = np.exp(
        gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        + gammaln(k + a) + gammaln(n - k + b) - gammaln(n + a + b)
        - gammaln(a) - gammaln(b) + gammaln(a + b)
    )  # fmt: skip
    total = term.copy()
    for _ in range(int(n.max()) + 1):
        above, under = np.maximum(n - k, 0), np.maximum(k, 0)  # at the ends a factor is 0, and stays so
        up = above * (k + a) / ((k + 1) * np.maximum(above - 1 + b, b))
        down = under * (n - k + b) / ((n - k + 1) * np.maximum(under - 1 + a, a))
        term = term * np.where(below, down, up)
        k = np.clip(k + step, 0, n)
        total = total + term
        if not (term > 1e-17 * total).any():
            break
    out[some] = np.where(below, 1 - total, total)
    return np.clip(out, 0.0, 1.0)
