"""What says of a window that it is not from the reference: ours, and those that people use.

Each rule gives `alarm`, bool[windows], as it is used, and `scores`, float64[windows, channels or 1], of which the
largest decides when false alarms are matched.

ours              `window_p` of each channel with its trend, Simes over channels, p <= .05
without_trend     the same as if no cells lay in an order: what the trend is good for
psi               population stability index over the cells > .2 in any channel
ks                Kolmogorov-Smirnov distance over the cells (missing values left out, as the test does): p <= .05 by
                  Simes over channels
evidently         the verdict of `DataDriftPreset` of Evidently 0.7.23: half of the columns or more have drifted
evidently_column  any column has

Evidently chooses by the reference: above 1,000 rows a number has drifted when the Wasserstein distance of its values is
.1 of their standard deviation in the reference or more, a category when the Jensen-Shannon distance is .1 or more;
missing values are left out. `evidently.py` checks this against the tool itself.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import kolmogorov

from edgewright_hub.drift import measures

from .counting import Floats, Reference, Windows

NOMINAL: Final = 0.05
PSI_ALARM: Final = 0.2
LEAST_SHARE: Final = 1e-4  # of an empty cell, in a PSI
COLUMN, DATASET = 0.1, 0.5  # Evidently's thresholds


class Verdicts(NamedTuple):
    alarm: npt.NDArray[np.bool_]
    scores: Floats


def verdicts(reference: Reference, windows: Windows) -> dict[str, Verdicts]:
    """By rule."""
    whole, column = evidently(reference, windows)
    return {
        "ours": ours(reference, windows, reference.ordered),
        "without_trend": ours(reference, windows, np.zeros_like(reference.ordered)),
        "psi": psi(reference, windows),
        "ks": ks(reference, windows),
        "evidently": whole,
        "evidently_column": column,
    }


def ours(reference: Reference, windows: Windows, ordered: npt.NDArray[np.int64]) -> Verdicts:
    count, channels, cells = windows.cells.shape
    rows = np.tile(reference.cells, (count, 1))
    p = measures.window_p(windows.cells.reshape(-1, cells), rows, ordered=np.tile(ordered, count))
    combined = measures.simes_rows(p.reshape(count, channels))
    return Verdicts(combined <= NOMINAL, -np.log(np.maximum(combined, 1e-300))[:, None])


def psi(reference: Reference, windows: Windows) -> Verdicts:
    used = reference.cells + windows.cells.sum(0) > 0
    r = np.where(used, np.maximum(_shares(reference.cells), LEAST_SHARE), 1)
    w = np.where(used, np.maximum(_shares(windows.cells), LEAST_SHARE), 1)
    index = ((w - r) * np.log(w / r)).sum(2)
    return Verdicts((index > PSI_ALARM).any(1), index)


def ks(reference: Reference, windows: Windows) -> Verdicts:
    places, ordered = np.arange(reference.cells.shape[1]), reference.ordered[:, None]
    known = (ordered == 0) | (places < ordered)
    r, w = reference.cells * known, windows.cells * known
    distance = np.abs(np.cumsum(_shares(w), 2) - np.cumsum(_shares(r), 1)).max(2)
    n, N = w.sum(2), r.sum(1)
    p = kolmogorov(distance * np.sqrt(n * N / np.maximum(n + N, 1)))
    return Verdicts(measures.simes_rows(p) <= NOMINAL, distance)


def evidently(reference: Reference, windows: Windows) -> tuple[Verdicts, Verdicts]:
    """Of all columns together, and of any. The first one's score is the share of columns that have drifted; where
    equally many have, the largest distance decides."""
    distance = evidently_distances(reference, windows)
    drifted = distance >= COLUMN
    share = drifted.mean(1)
    whole = Verdicts(share >= DATASET, (share + 1e-6 * np.minimum(distance.max(1), 1e3))[:, None])
    return whole, Verdicts(drifted.any(1), distance)


def evidently_distances(reference: Reference, windows: Windows) -> Floats:
    """float64[windows, columns]: Wasserstein distance in standard deviations, or Jensen-Shannon distance."""
    found = []
    for channel, of, x in zip(reference.channels, reference.values, windows.values, strict=True):
        if channel.kind == "categorical":
            found.append(_jensen_shannon(of, x))
        else:
            known = of[np.isfinite(of)].astype(np.float64)
            found.append(wasserstein(known, x) / max(float(known.std()), 1e-3))
    return np.stack(found, axis=1)


def wasserstein(reference: Floats, x: npt.NDArray[np.floating]) -> Floats:
    """float64[windows]: area between the quantile functions of `reference` and of each row of `x`, without what is
    missing there. Exact; a sort and a search for each value."""
    s = np.sort(reference)
    N = len(s)
    sums = np.concatenate(([0.0], np.cumsum(s)))

    def below(u: Floats) -> Floats:
        """Integral of the reference's quantile function up to u."""
        k = np.minimum((u * N).astype(np.intp), N - 1)
        return np.asarray((sums[k] + (u * N - k) * s[k]) / N)

    x = np.sort(x, axis=1)  # missing ones to the end
    known = np.isfinite(x)
    n = known.sum(1)
    found = np.zeros(len(x))
    for size in np.unique(n[n > 0]):
        rows = x[n == size, :size]
        ends = np.arange(size + 1) / size
        # Of each value's share of the window: up to where the reference is smaller.
        split = np.clip(np.searchsorted(s.astype(x.dtype), rows, "right") / N, ends[:-1], ends[1:])
        area = (rows * (2 * split - ends[:-1] - ends[1:])).sum(1) - 2 * below(split).sum(1)
        found[n == size] = area + 2 * below(ends).sum() - below(ends[[0, -1]]).sum()
    return found


def _jensen_shannon(reference: npt.NDArray[np.float32], x: npt.NDArray[np.float32]) -> Floats:
    """Distance with natural logarithms, float64[windows]."""
    keys = np.unique(np.concatenate((reference, x.ravel())))
    a = np.stack([(x == key).mean(1) for key in keys], axis=1)
    b = np.array([(reference == key).mean() for key in keys])
    m = (a + b) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(a > 0, a * np.log(a / m), 0) + np.where(b > 0, b * np.log(b / m), 0)
    return np.asarray(np.sqrt(np.maximum(terms.sum(1) / 2, 0)))


def _shares(cells: Floats) -> Floats:
    return np.asarray(cells / np.maximum(cells.sum(-1, keepdims=True), 1))
