"""e-processes of a release's rates: bets that cannot grow if the release is as good as it must be. Pure.

`log_bad` bets that a rate is worse than tolerated, `log_ok` that it is better than what must be excluded. Each interval
of counts enters once, in the order of arrival; either may be looked at after every interval, which is what makes them
safe to watch. Counts are taken as Poisson with the dispersion `phi` frozen at the start of the rollout.

Three bases for a metric, the best that there is:

    control      rate ratio of treated over control, each device's own pre-period rate as its exposure, so that devices
                 that have always differed do not count against the release (difference in differences)
    pre-period   nobody is left as control: the treated devices before, at the safe end of a 98 % interval, and for harm
                 half as much again, because the hour of the day is another
    limit        the first version of a model: an absolute limit on the error rate

A control can break, and would then let anything through: one device with a sick sensor fails so often that a harmful
release looks good beside it. Two rules stand against that. A control device that *left* its own pre-period upwards, by
the same bet as for harm on that basis, is dropped (`left`), unless half of the control or more did: then the world has
changed, not a device, and a control is what that needs. And promotion must also hold against the treated devices' own
pre-period (`log_own`): a rate of `r1` times theirs, or theirs plus `delta`, whichever is more, with the same allowance
for the hour of the day, must be excluded too. This is asked only where the period before can tell (`TELLS`).

A ratio never decides when nothing fails. So errors are also measured against "control plus `delta`", which zero events
decide after about 3.2 / delta inferences (`absolute_log_e`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import gammainccinv

from edgewright_contracts.eprocess import CERTAINTY, RHO, RHYTHM, lower, mixed, rate_llr, ratio_llr, upper

Floats = npt.NDArray[np.float64]
Metric = Literal["error", "slow", "label"]
Basis = Literal["control", "pre-period", "limit", "none"]

METRICS: Final[tuple[Metric, ...]] = ("error", "slow", "label")
PRIOR_EVENTS: Final = 20.0  # a device's own pre-period rate counts fully when it is worth more events than this
TELLS: Final = 0.09  # evidence that an event expected before must be worth, when nothing has changed
PRIOR_TRIALS: Final = (2_000.0, 20_000.0)  # least and most weight of the pre-period in the guess of the common rate


class Margin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    r0: Annotated[float, msgspec.Meta(ge=1, le=100)]  # ratio that is tolerated
    r1: Annotated[float, msgspec.Meta(gt=1, le=1e9)]  # ratio that must be excluded before promotion
    delta: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None  # or this difference in rates


@dataclass(frozen=True, slots=True)
class Counts:
    """float64[metrics, devices]: runs and failed runs, runs and slow runs, labels and wrong labels."""

    trials: Floats
    events: Floats


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One metric: sums of log likelihood ratios before division by phi, and the totals of the absolute process."""

    phi: float = 1.0
    bad: tuple[float, ...] = (0.0,) * len(RHO)
    ok: float = 0.0
    chosen: float = 0.0  # log likelihood under the rates that were guessed before each interval
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
        return self.ok / self.phi


def advance(
    process: Process, index: int, margin: Margin, error_limit: float, *, treated: Counts, control: Counts, pre: Counts
) -> Process:
    """The process of METRICS[index] with one more interval; unchanged by one without trials."""
    now, others = treated.trials[index], control.trials[index]
    if now.sum() == 0:
        return process
    k_t, k_c = float(treated.events[index].sum()), float(control.events[index].sum())
    n_t = float(now.sum())
    pre_n, pre_k = pre.trials[index], pre.events[index]
    process = _against_own(process, margin, now, treated.events[index], pre_n, pre_k)
    if others.sum() > 0:
        rate = pre_rates(pre_k, pre_n)
        e_t, e_c = float(now @ rate), float(others @ rate)
        bad = [
            x + ratio_llr(k_c, k_t, e_c, e_t, margin.r0 * rho, margin.r0)
            for x, rho in zip(process.bad, RHO, strict=True)
        ]
        ok = process.ok + ratio_llr(k_c, k_t, e_c, e_t, 1.0, margin.r1)
        scaled = e_c / (e_t / n_t)
        return _added(process, k_t, n_t, k_c, scaled, pre_k, pre_n, bad=bad, ok=ok, basis="control")
    own_n, own_k = float(pre_n[now > 0].sum()), float(pre_k[now > 0].sum())
    if own_n > 0:
        high, low = upper(own_k) / own_n * margin.r0 * RHYTHM, lower(own_k) / own_n
        bad = [x + rate_llr(k_t, n_t, high, rho) for x, rho in zip(process.bad, RHO, strict=True)]
        ok = process.ok - k_t * math.log(margin.r1) + (margin.r1 - 1) * low * n_t
        return _added(process, k_t, n_t, 0.0, 0.0, pre_k, pre_n, bad=bad, ok=ok, basis="pre-period")
    if METRICS[index] != "error":
        return process
    bad = [x + rate_llr(k_t, n_t, error_limit, rho) for x, rho in zip(process.bad, RHO, strict=True)]
    ok = process.ok + k_t * math.log(0.1) + 0.9 * error_limit * n_t  # a tenth of the limit against the limit
    return _added(process, k_t, n_t, 0.0, 0.0, pre_k, pre_n, bad=bad, ok=ok, basis="limit")


def _against_own(process: Process, margin: Margin, n: Floats, k: Floats, pre_n: Floats, pre_k: Floats) -> Process:
    """log e-value against "treated rate >= what their own pre-period still allows", with one more interval."""
    mine = (n > 0) & (pre_n > 0)
    before_n, before_k = float(pre_n[mine].sum()), float(pre_k[mine].sum())
    if before_n == 0:
        return process
    rate = before_k / before_n
    low = RHYTHM * lower(before_k) / before_n
    limit = max(low * margin.r1, low + (margin.delta or 0.0))
    if limit <= rate:
        return process
    guess = max(rate, limit / 10)
    if (limit - guess) - rate * math.log(limit / guess) <= TELLS * rate:
        return process
    k_t, n_t = float(k[mine].sum()), float(n[mine].sum())
    gained = (limit - guess) * n_t - k_t * math.log(limit / guess)
    return msgspec.structs.replace(process, own=(process.own or 0.0) + gained)


def left(index: int, margin: Margin, need: float, *, since: Counts, pre: Counts, phi: float) -> npt.NDArray[np.bool_]:
    """Which control devices left their own pre-period, bool[devices]; none when half of them or more did.

    `since`: what they counted as control, from the start on; `need`: log e of one device.
    """
    n, k = since.trials[index], since.events[index]
    pre_n, pre_k = pre.trials[index], pre.events[index]
    known = (n > 0) & (pre_n > 0)
    high = gammainccinv(pre_k + 1, CERTAINTY) / np.maximum(pre_n, 1.0) * margin.r0 * RHYTHM
    rho = np.asarray(RHO)[:, None]
    bets = (k * np.log(rho) - (rho - 1) * high * n) / phi
    gone = known & (np.logaddexp.reduce(bets, axis=0) - math.log(len(RHO)) >= need)
    return np.asarray(gone if 2 * gone.sum() < (n > 0).sum() else np.zeros_like(gone))


def pre_rates(events: Floats, trials: Floats) -> Floats:
    """Each device's rate before, drawn towards the fleet's where it is known from few events, float64[devices]."""
    common = (float(events.sum()) + 0.5) / (float(trials.sum()) + 1.0)
    return np.asarray((events + PRIOR_EVENTS) / (trials + PRIOR_EVENTS / common))


def dispersion(events: Floats, trials: Floats, device: npt.NDArray[np.intp]) -> float:
    """phi >= 1: Pearson's variance over mean of window counts around each device's own rate, before the rollout.

    Arrays are float64[windows]; `device` numbers the device of each window.
    """
    known = np.bincount(device, weights=trials) > 0
    per_events, per_trials = np.bincount(device, weights=events), np.bincount(device, weights=trials)
    mean = trials * (per_events / np.maximum(per_trials, 1))[device]
    used = mean > 0
    freedom = int(used.sum()) - int((known & (per_events > 0)).sum())
    if freedom < 10:
        return 1.0
    return max(1.0, float(((events - mean)[used] ** 2 / mean[used]).sum()) / freedom)


def absolute_log_e(process: Process, delta: float) -> float:
    """log e-value against "treated rate >= control rate + delta".

    Universal inference: the likelihood under rates guessed beforehand, over the best that the hypothesis can do with
    all that was seen. Valid for any control rate, which need not be known.
    """
    k_t, n_t, k_c, n_c = process.k_t, process.n_t, process.k_c, process.n_c
    if n_t == 0:
        return 0.0
    treated, control = k_t / n_t, (k_c / n_c if n_c else 0.0)
    if treated < control + delta:
        s = n_t + n_c
        b = s * delta - k_t - k_c
        control = (-b + math.sqrt(b * b + 4 * s * k_c * delta)) / (2 * s)
        treated = control + delta
    best = _poisson(k_t, n_t, treated) + _poisson(k_c, n_c, control)
    return (process.chosen - best) / process.phi


def _added(
    process: Process, k_t: float, n_t: float, k_c: float, n_c: float, pre_k: Floats, pre_n: Floats,
    *, bad: list[float], ok: float, basis: Basis,
) -> Process:  # fmt: skip
    total_n, total_k = float(pre_n.sum()), float(pre_k.sum())
    weight = min(PRIOR_TRIALS[1], max(PRIOR_TRIALS[0], total_n))
    prior = total_k * weight / max(total_n, weight) + 0.5
    guess = (prior + process.k_t + process.k_c) / (weight + process.n_t + process.n_c)
    return Process(
        phi=process.phi,
        bad=tuple(bad),
        ok=ok,
        chosen=process.chosen + _poisson(k_t, n_t, guess) + _poisson(k_c, n_c, guess),
        k_t=process.k_t + k_t,
        n_t=process.n_t + n_t,
        k_c=process.k_c + k_c,
        n_c=process.n_c + n_c,
        own=process.own,
        basis=basis,
    )


def _poisson(k: float, n: float, rate: float) -> float:
    return (k * math.log(rate) if k else 0.0) - rate * n
