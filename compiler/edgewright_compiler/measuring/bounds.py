"""How much worse the package may be than its reference: a one-sided upper bound on the loss, rows paired.

Guarantee: both models answered the same rows, and those rows (or their groups: the windows of one person, the images of
one camera) are independent draws from what the device will meet; then the bound lies above the true loss in
`confidence` of all such test sets, approximately. It is computed once, on rows that chose nothing. By what the metric
gives:

    0 or 1 a row    the score interval of Tango, Statistics in Medicine 17 (1998) 891-908, its one-sided upper limit
    any number      mean + t × standard error of the paired differences (Student 1908)
    one a set       paired bootstrap of the rows, `RESAMPLES` draws (Efron and Tibshirani 1993, chapter 13): the larger
                    of the percentile and the basic limit, widened by what a bootstrap of few leaves out (`widening`)

Where rows come in groups, n shrinks by the design effect, the variance of a mean of whole groups over that of as many
single rows (Rao and Scott, Biometrics 48 (1992) 577-585), and quantiles are Student's for the groups; the bootstrap
draws groups. Few groups make the bound wide, and that is true. What no width mends: harm that befalls few groups is in
none of a handful, so of fewer than `checks.FEW_GROUPS` the data are warned of (tests/compiler/test_measuring_bounds.py
simulates both). Of a single group nothing is known about others: a bound is then one for more rows of that group, and
no limit may be promised on it (`several_groups`).

No difference seen in n rows is not no difference: then every bound is at least z² / (n + z²) of the metric's range,
which is what Tango's limit gives there. Unit: points (see metrics.py). A positive loss: the package is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Final
from zlib import crc32

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from edgewright_contracts.errors import Refused, RequestError

from ..data.collection import origin
from ..rows import Array, Labelled
from .metrics import Floats, Metric, Outputs, Weighted

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
MOST: Final = 10**9  # rows that nobody collects: beyond, the answer is that no number of rows helps


@dataclass(frozen=True, slots=True)
class Bound:
    """`estimate` and `bound` in points; `discordant` rows are those that the two models score differently (None where
    a metric has no score per row). `at(m)` is the bound that m rows would give at the rates seen here, in groups of the
    same size; so many of them are worth one independent row: `effect`, the design effect (Kish, 1965)."""

    estimate: float
    bound: float
    n: int
    discordant: int | None
    confidence: float
    method: str
    at: Callable[[float], float] = field(repr=False, compare=False)
    effect: float = 1.0

    def expected(self, here: Labelled, there: Labelled) -> Bound:
        """What rows `there` would give, whose groups may be of another size than those `here`."""
        size, other = _size(here), _size(there)
        alike = 0.0 if size <= 1 else (self.effect - 1) / (size - 1)
        ratio = self.effect / (1 + (other - 1) * alike)
        n, at = len(there), self.at
        return replace(self, n=n, bound=at(n * ratio), at=lambda rows: at(rows * ratio), effect=self.effect / ratio)

    def needed(self, max_drop: float) -> int | None:
        """The fewest rows at which the rates seen here would bring the bound to `max_drop` points or under it; None
        when no number would, because the estimate itself is not under it."""
        if self.estimate >= max_drop or self.at(MOST) > max_drop:
            return None
        low, high = 1, MOST  # the bound at `low` is above, at `high` it is not
        if self.at(2) <= max_drop:
            return 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.at(middle) <= max_drop else (middle, high)
        return high


def loss_bound(
    metric: Metric,
    reference: Outputs,
    package: Outputs,
    labels: Array,
    *,
    seed: int,
    groups: Array | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Bound:
    """By how many points the package is worse than the reference on the same rows, at most.

    `groups` [n] are keys of rows that belong together; None, or one group only: every row stands for itself.
    `resamples` are those of a set metric; each costs it a pass over the rows.
    Raises RequestError: fewer than two rows, or outputs that the metric does not take.
    """
    if len(labels) < 2:
        raise RequestError(f"a bound on the loss needs at least 2 test rows, got {len(labels)}")
    points = metric.points(labels) * (1 if metric.higher else -1)
    member = members(groups, len(labels))
    ours, theirs = metric.score(package, labels), metric.score(reference, labels)
    if callable(ours) or callable(theirs):
        assert callable(ours)
        assert callable(theirs)
        return _by_set(metric.name, theirs, ours, len(labels), points, member, seed, confidence, resamples)
    both = np.concatenate([ours, theirs])
    loss = (theirs - ours) * points
    unit = Alone(len(loss), confidence) if member is None else Grouped(len(loss), confidence, loss, member)
    if metric.higher and np.isin(both, (0.0, 1.0)).all():
        lost, gained = int(((theirs == 1) & (ours == 0)).sum()), int(((theirs == 0) & (ours == 1)).sum())
        return _by_right(lost, gained, points, unit)
    return _by_row(loss, float(np.ptp(both)) * abs(points), unit)


class Alone:
    """Rows that each stand for themselves: how much m of them tell."""

    said = ""

    def __init__(self, n: int, confidence: float) -> None:
        self.n, self.confidence, self.effect = n, confidence, 1.0

    def worth(self, rows: float) -> float:
        """How many independent rows these are worth."""
        return rows

    def freedom(self, rows: float) -> float:
        return max(rows - 1, 1.0)

    def level(self, rows: float) -> float:
        """The confidence at which a normal quantile is the one to use."""
        return self.confidence


class Grouped(Alone):
    """Rows in groups, `member` [n] from 0; more rows are taken to bring more groups of the same size."""

    def __init__(self, n: int, confidence: float, loss: Floats, member: npt.NDArray[np.int64]) -> None:
        super().__init__(n, confidence)
        self.count = int(member.max()) + 1
        apart = loss - loss.mean()
        together = float((np.bincount(member, apart) ** 2).sum()) * self.count / (self.count - 1)
        # Where nothing differs, nothing tells how alike the rows of a group are: then each group counts as one row.
        self.effect = max(together / float((apart**2).sum()), 1.0) if apart.any() else n / self.count
        self.said = f", {self.count} groups"

    def worth(self, rows: float) -> float:
        return rows / self.effect

    def freedom(self, rows: float) -> float:
        return max(self.count * rows / self.n - 1, 1.0)

    def level(self, rows: float) -> float:
        return NormalDist().cdf(float(student.ppf(self.confidence, self.freedom(rows))))


def widening(units: float, confidence: float) -> float:
    """What to multiply a bootstrap's distance from the estimate by, `units` being drawn: sqrt(m / (m - 1)) × t / z.

    Draws vary as a variance divided by m, not m - 1, and their tails are the normal one's, not Student's: with five
    units that is a third too narrow (Hesterberg, The American Statistician 69 (2015) 371-386, section 4.3, who moves
    the quantile instead; a few units have no draws out there).
    """
    m = max(units, 2.0)
    quantile = float(student.ppf(confidence, m - 1)) / NormalDist().inv_cdf(confidence)
    return math.sqrt(m / (m - 1)) * quantile


def tango_upper(lost: float, gained: float, n: float, confidence: float = CONFIDENCE) -> float:
    """The one-sided upper limit of p(lost) - p(gained), a share, from counts of discordant pairs among n.

    The root above the estimate of (lost - gained - n d) / sqrt(n (2 q + d (1 - d))) = -z, where q is the maximum
    likelihood estimate of p(gained) given the difference d. Counts may be fractions of rows.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = max((lost - gained) / n, -1.0), 1.0
    for _ in range(200):
        d = (low + high) / 2
        if d in (low, high):
            break
        b = -lost - gained + (2 * n - lost + gained) * d
        q = (math.sqrt(max(b * b + 8 * n * gained * d * (1 - d), 0.0)) - b) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        inside = (lost - gained - n * d) ** 2 <= z * z * variance
        low, high = (d, high) if inside else (low, d)
    return high


def _by_right(lost: int, gained: int, points: float, unit: Alone) -> Bound:
    n = unit.n

    def at(rows: float) -> float:
        worth = unit.worth(rows)
        return points * tango_upper(lost * worth / n, gained * worth / n, worth, unit.level(rows))

    method = f"paired score interval (Tango 1998), one-sided{unit.said}"
    return Bound(points * (lost - gained) / n, at(n), n, lost + gained, unit.confidence, method, at, unit.effect)


def _by_row(loss: Floats, reach: float, unit: Alone) -> Bound:
    """`loss` [n] in points; `reach` is how far apart two scores of one row can be, as seen."""
    n, mean = unit.n, float(loss.mean())
    deviation = float(loss.std(ddof=1))

    def at(rows: float) -> float:
        if not loss.any():
            return reach * _unseen(unit.worth(rows), unit.confidence)
        quantile = float(student.ppf(unit.confidence, unit.freedom(rows)))
        return mean + quantile * deviation / math.sqrt(unit.worth(rows))

    method = f"paired differences (Student's t), one-sided{unit.said}"
    return Bound(mean, at(n), n, int(np.count_nonzero(loss)), unit.confidence, method, at, unit.effect)


def _by_set(
    name: str,
    reference: Weighted,
    package: Weighted,
    n: int,
    points: float,
    member: npt.NDArray[np.int64] | None,
    seed: int,
    confidence: float,
    resamples: int,
) -> Bound:
    rng = np.random.default_rng([seed, crc32(b"paired bootstrap")])
    drawable = n if member is None else int(member.max()) + 1

    def loss(counts: Floats) -> float:
        return points * (reference(counts) - package(counts))

    def draw() -> Floats:
        counts = np.bincount(rng.integers(0, drawable, drawable), minlength=drawable).astype(np.float64)
        return counts if member is None else counts[member]

    estimate = loss(np.ones(n))
    if not math.isfinite(estimate):
        raise RequestError(
            f"metric {name}: expected a finite figure on these {n} rows, got {estimate:g} for the loss: is it defined "
            "on them, and do they hold every class that it compares?"
        )
    drawn = np.array([loss(draw()) for _ in range(resamples)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < resamples / 2:
        raise RequestError(
            f"metric {name}: not finite on most resamples of {n} rows: has a class too few of them? Give more"
        )
    above = max(float(np.quantile(drawn, confidence)) - estimate, estimate - float(np.quantile(drawn, 1 - confidence)))
    varied = bool(np.ptp(drawn))

    def at(rows: float) -> float:
        units = drawable * rows / n
        floor = 0.0 if varied else abs(points) * _unseen(units, confidence)
        return estimate + max(above * math.sqrt(n / rows) * widening(units, confidence), floor)

    of = "" if member is None else f" of {drawable} groups"
    return Bound(
        estimate, at(n), n, None, confidence, f"paired bootstrap, {len(drawn)} resamples{of}", at, n / drawable
    )


def several_groups(rows: Labelled) -> None:
    """Raises Refused when all rows are of one group: its rows are alike, and no bound follows for what is not of it."""
    if rows.groups is None or len(np.unique(rows.groups)) > 1:
        return
    raise Refused(
        f"--max-drop cannot be promised: all {len(rows):,} rows of {rows.name} are of one group "
        f"({str(rows.groups[0])!r}, the first is {origin(rows, 0)}), and what others lose cannot be told from them: "
        "expected at least 2 groups, better 10; add test rows of others, leave the group key out if these rows are "
        "independent of one another, or compile without --max-drop"
    )


def _size(rows: Labelled) -> float:
    """Rows of a group, on average; 1 where every row stands for itself."""
    member = members(rows.groups, len(rows))
    return 1.0 if member is None else len(rows) / (int(member.max()) + 1)


def members(groups: Array | None, n: int) -> npt.NDArray[np.int64] | None:
    """The group of each row, from 0; None where groups tell nothing that rows do not."""
    if groups is None:
        return None
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    return None if len(names) in (1, n) else np.asarray(member, np.int64)


def _unseen(rows: float, confidence: float) -> float:
    """Tango's upper limit for a difference that none of these rows showed, a share."""
    z = NormalDist().inv_cdf(confidence)
    return z * z / (rows + z * z)
