"""e-processes of what a release does to a fleet: bets that cannot grow if it is as good as it must be. Pure.

`log_bad` bets that a rate is worse than tolerated, `log_ok` that it is better than what must be excluded. Each interval
of counts enters once, in the order of arrival; either may be looked at after every interval, which is what makes them
safe to watch. Counts are taken as Poisson with the dispersion `phi` frozen at the start of the rollout (`dispersion`).

Four bases for a metric, the best that there is:

    control      rate ratio of treated over control, each device's own pre-period rate as its exposure, so that devices
                 that have always differed do not count against the release (difference in differences). Harm is more
                 than `r0`, and more than the pre-period's own error explains, at the safe end of 99 %
    pre-period   nobody is left as control: the treated devices before, at the safe end of a 98 % interval, and for harm
                 half as much again, because the hour of the day is another
    limit        an absolute limit: of the error rate for the first version of a model, of the disagreement of a shadow
    none         nothing was counted

A control can break, and would then let anything through: one device with a sick sensor fails so often that a harmful
release looks good beside it. Two rules stand against that. A control device that *left* its own pre-period upwards, by
the same bet as for harm on that basis, is dropped (`left`), unless half of the control or more did: then the world has
changed, not a device, and a control is what that needs. And promotion must also hold against the treated devices' own
pre-period (`log_own`): a rate of `r1` times theirs, or theirs plus `delta`, whichever is more, with the same allowance
for the hour of the day, must be excluded too. This is asked only where the period before can tell (`TELLS`).

A ratio never decides when nothing fails. So `log_ok` is the better of two bets: the other one is against "control plus
`delta`", which zero events decide after about 3.1 / delta trials (`_difference`).

A release may be good at first and grow worse. What `log_ok` gained in the good hours would promote it, so promotion
also asks that it has not fallen far from its best (`log_lost`: a cumulative sum, restarted by every better interval).

Units: trials and events. Cost: `judge` of 10,000 devices, see `gates`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import gammainccinv, gammaincinv, ndtri

from edgewright_contracts.eprocess import CERTAINTY, RHO, RHYTHM, mixed, rate_llr, ratio_llr

from .past import pre_rates, unsure

Floats = npt.NDArray[np.float64]
Metric = str  # a row of Counts
Basis = Literal["control", "pre-period", "limit", "none"]

METRICS: Final = ("error", "slow", "label")  # the first rows of Counts; the others are `gates.GatePolicy.metrics`
TELLS: Final = 0.09  # evidence that an event expected before must be worth, when nothing has changed
PRIOR_TRIALS: Final = (2_000.0, 20_000.0)  # least and most weight of the pre-period in the guess of the common rate
_SAFE: Final = float(ndtri(1 - CERTAINTY))
_RHO: Final = np.asarray(RHO)
_STAKES: Final = np.geomspace(0.02, 6.0, 24)  # of `_difference`


class Margin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    r0: Annotated[float, msgspec.Meta(ge=1, le=100)]  # ratio that is tolerated
    r1: Annotated[float, msgspec.Meta(gt=1, le=1e9)]  # ratio that must be excluded before promotion
    delta: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None  # or this difference in rates
    beta: Annotated[float, msgspec.Meta(gt=0, le=0.5)] | None = None  # instead of the policy's


@dataclass(frozen=True, slots=True)
class Counts:
    """float64[metrics, devices]: runs and failed runs, runs and slow runs, labels and wrong labels, windows and first
    failures, windows and first silences, shadowed runs and disagreements; then trials and misses of named outcomes."""

    trials: Floats
    events: Floats

    def of(self, metrics: int) -> Counts:
        """With so many rows: empty ones for metrics that whoever counted did not know."""
        if len(self.trials) == metrics:
            return self
        rows = np.zeros((2, metrics, self.trials.shape[1]))
        known = min(metrics, len(self.trials))
        rows[0, :known], rows[1, :known] = self.trials[:known], self.events[:known]
        return Counts(rows[0], rows[1])


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One metric: sums of log likelihood ratios before division by phi, and totals for people to read."""

    phi: float = 1.0
    bad: tuple[float, ...] = (0.0,) * len(RHO)
    ok: float = 0.0
    difference: float = 0.0  # against "control plus delta"
    best: float = 0.0  # what the better of `ok` and `difference` ever was
    k_t: float = 0.0
    n_t: float = 0.0
    k_c: float = 0.0
    n_c: float = 0.0  # control trials, scaled to the treated devices' pre-period
    own: float | None = None  # against the treated devices' own pre-period; None: no such period that can tell
    basis: Basis = "none"

    @property
    def log_own(self) -> float | None:
        return None if self.own is None else self.own / self.phi

    @property
    def log_bad(self) -> float:
        return mixed(self.bad, self.phi)

    @property
    def log_ok(self) -> float:
        return max(self.ok, self.difference) / self.phi

    @property
    def log_lost(self) -> float:
        """How far `log_ok` has fallen from its best: evidence of late that the release has become worse."""
        return (self.best - max(self.ok, self.difference)) / self.phi


class Interval(msgspec.Struct, frozen=True):
    """One metric in one interval: sums over devices."""

    k_t: float = 0.0  # treated devices
    n_t: float = 0.0
    k_c: float = 0.0  # control
    e_t: float = 0.0  # trials times the devices' own rates before, of the treated devices
    e_c: float = 0.0  # and of the control; 0: there is none
    apart: float = 0.0  # standard deviation of log(e_t / e_c): what the pre-period leaves unsure (`past.unsure`)
    own_n: float = 0.0  # the pre-period of the treated devices that counted in this interval, where they have one
    own_k: float = 0.0
    own_now_n: float = 0.0  # of them, in this interval
    own_now_k: float = 0.0
    guess: float = 0.0  # rate of everyone before, the trials of which are bounded by PRIOR_TRIALS
    weight: float = 1.0  # trials that `guess` is worth


NOTHING: Final = Interval()


def interval(index: int, treated: Counts, control: Counts, pre: Counts, phi: float) -> Interval:
    """Sums of row `index`. Cost: some ten passes over its devices, few of them where nothing was treated."""
    mine = np.flatnonzero(treated.trials[index])
    if not mine.size:
        return NOTHING
    now, k_now = treated.trials[index][mine], treated.events[index][mine]
    others, pre_n, pre_k = control.trials[index], pre.trials[index], pre.events[index]
    total_n, total_k = float(pre_n.sum()), float(pre_k.sum())
    rate = pre_rates(pre_k, pre_n, phi) if total_k else None
    own = pre_n[mine] > 0
    weight = min(max(total_n, PRIOR_TRIALS[0]), PRIOR_TRIALS[1])
    n_t = float(now.sum())
    e_t = n_t if rate is None else float(now @ rate[mine])
    e_c = float(others.sum() if rate is None else others @ rate)
    apart = 0.0
    if rate is not None and e_c > 0:
        squares = unsure(pre_k, pre_n, phi) * rate**2
        apart = math.sqrt(float(now**2 @ squares[mine]) / e_t**2 + float(others**2 @ squares) / e_c**2)
    return Interval(
        k_t=float(k_now.sum()),
        n_t=n_t,
        k_c=float(control.events[index].sum()),
        e_t=e_t,
        e_c=e_c,
        apart=apart,
        own_n=float(pre_n[mine].sum()),
        own_k=float(pre_k[mine].sum()),
        own_now_n=float(now[own].sum()),
        own_now_k=float(k_now[own].sum()),
        guess=(total_k * weight / max(total_n, weight) + 0.5) / weight,
        weight=weight,
    )


def advance(process: Process, margin: Margin, limit: float | None, seen: Interval) -> Process:
    """The process with one more interval; unchanged by one without treated trials.

    `limit`: the rate that a first version must stay below, for a metric that has one.
    """
    if seen.n_t == 0:
        return process
    k, n = seen.k_t, seen.n_t
    own = _against_own(process.own, margin, seen)
    bad = np.asarray(process.bad)
    if seen.e_c > 0:
        scaled = seen.e_c / (seen.e_t / n)
        counts = seen.k_c, k, seen.e_c, seen.e_t
        usual = tolerated(margin, seen.apart)
        bad = bad + ratio_llr(*counts, usual * _RHO, usual)
        ok = process.ok + ratio_llr(*counts, 1.0, margin.r1)
        gained = _difference(process, margin, seen, 0.0, scaled)
        return _counted(process, seen, scaled, bad=bad, ok=ok, gained=gained, own=own, basis="control")
    if seen.own_n > 0:
        high = gammainccinv(seen.own_k + 1, CERTAINTY) / seen.own_n * margin.r0 * RHYTHM
        low = _low(seen)
        bad = bad + rate_llr(k, n, high, _RHO)
        ok = process.ok - k * math.log(margin.r1) + (margin.r1 - 1) * low * n
        gained = _difference(process, margin, seen, low, 0.0)
        return _counted(process, seen, 0.0, bad=bad, ok=ok, gained=gained, own=own, basis="pre-period")
    if limit is None:
        return process
    bad = bad + rate_llr(k, n, limit, _RHO)
    ok = process.ok + k * math.log(0.1) + 0.9 * limit * n  # a tenth of the limit against the limit
    return _counted(process, seen, 0.0, bad=bad, ok=ok, basis="limit")


def tolerated(margin: Margin, apart: float) -> float:
    """Ratio to the control from which on it is harm, where the pre-period says no more than that the two are so far
    `apart` (`Interval`)."""
    return max(margin.r0, math.exp(_SAFE * apart))


def against_limit(process: Process, limit: float, excluded: float, seen: Interval) -> Process:
    """One sample against a limit that was signed: harm is more than it, and `excluded` times it must be ruled out."""
    if seen.n_t == 0:
        return process
    bad = np.asarray(process.bad) + rate_llr(seen.k_t, seen.n_t, limit, _RHO)
    past = (process.k_t + 0.5 * limit * 100) / (process.n_t + 100)  # what was seen, begun with half the limit
    guess = min(max(past, limit / 10), limit)
    gained = seen.k_t * math.log(guess / (limit * excluded)) + (limit * excluded - guess) * seen.n_t
    return _counted(process, seen, 0.0, bad=bad, ok=process.ok + gained, basis="limit")


def _difference(process: Process, margin: Margin, seen: Interval, base: float, scaled: float) -> float:
    """Gain of log e against "treated rate >= base + control rate + delta", in an interval with its own control rate.

    exp(-s k_t + u k_c + s' (base + delta) n_t) with s' = 1 - exp(-s) and n_c (exp(u) - 1) = n_t s' has mean 1 on the
    edge of that hypothesis, whatever the control rate is and however it moves from one interval to the next. The stake
    s is the best one for the rate that was guessed before the interval.
    """
    if margin.delta is None:
        return 0.0
    past = process.k_t + process.k_c
    guess = (seen.guess * seen.weight + past) / (seen.weight + process.n_t + process.n_c)
    less = -np.expm1(-_STAKES)
    raised = np.log1p(seen.n_t * less / scaled) if scaled else np.zeros_like(less)
    sure = (base + margin.delta) * seen.n_t * less
    best = int(np.argmax(sure - _STAKES * guess * seen.n_t + raised * guess * scaled))
    return float(sure[best] - _STAKES[best] * seen.k_t + raised[best] * seen.k_c)


def _low(seen: Interval) -> float:
    return float(gammaincinv(seen.own_k, CERTAINTY)) / seen.own_n if seen.own_k else 0.0


def _against_own(own: float | None, margin: Margin, seen: Interval) -> float | None:
    """log e-value against "treated rate >= what their own pre-period still allows", with one more interval."""
    if seen.own_n == 0:
        return own
    rate, low = seen.own_k / seen.own_n, RHYTHM * _low(seen)
    limit = max(low * margin.r1, low + (margin.delta or 0.0))
    if limit <= rate:
        return own
    guess = max(rate, limit / 10)
    if (limit - guess) - rate * math.log(limit / guess) <= TELLS * rate:
        return own
    return (own or 0.0) + (limit - guess) * seen.own_now_n - seen.own_now_k * math.log(limit / guess)


def left(index: int, margin: Margin, need: float, *, since: Counts, pre: Counts, phi: float) -> npt.NDArray[np.intp]:
    """Numbers of the control devices that left their own pre-period; none when half of them or more did.

    `since`: what they counted as control, from the start on; `need`: log e of one device. Only the few devices whose
    rate rose at all are looked at closely.
    """
    n, k = since.trials[index], since.events[index]
    pre_n, pre_k = pre.trials[index], pre.events[index]
    tolerated = margin.r0 * RHYTHM
    rose = np.flatnonzero((k >= need * phi / math.log(RHO[-1])) & (pre_n > 0) & (k * pre_n > tolerated * pre_k * n))
    if not rose.size:
        return rose
    high = gammainccinv(pre_k[rose] + 1, CERTAINTY) / pre_n[rose] * tolerated
    bets = (k[rose] * np.log(_RHO)[:, None] - (_RHO[:, None] - 1) * high * n[rose]) / phi
    gone: npt.NDArray[np.intp] = rose[np.logaddexp.reduce(bets, axis=0) - math.log(len(RHO)) >= need]
    return gone if 2 * gone.size < np.count_nonzero(n) else gone[:0]


def _counted(
    process: Process, seen: Interval, scaled: float, *, bad: Floats, ok: float, basis: Basis,
    gained: float = 0.0, own: float | None = None,
) -> Process:  # fmt: skip
    return Process(
        phi=process.phi,
        bad=tuple(bad.tolist()),
        ok=float(ok),
        difference=process.difference + gained,
        best=max(process.best, float(ok), process.difference + gained),
        k_t=process.k_t + seen.k_t,
        n_t=process.n_t + seen.n_t,
        k_c=process.k_c + (seen.k_c if scaled else 0.0),
        n_c=process.n_c + scaled,
        own=own,
        basis=basis,
    )
