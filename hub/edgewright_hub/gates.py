"""Gates: may the release go on? Promote, hold or roll back, on evidence that may be looked at after every window.

Guarantee: every process here is an e-process (a bet that cannot grow if the release is as good as it must be), so the
probability that a harmless release is ever rolled back by a rate is at most `alpha` for the whole rollout, and that a
worse one than `r1` (or `delta`) is promoted by a metric at most `beta`, however often and whenever `judge` is called.
This holds as far as counts are Poisson with the dispersion `phi` that was frozen at the start.

Three bases for a metric, the best that there is:

    control      rate ratio of treated over control, each device's own pre-period rate as its exposure, so that devices
                 that have always differed do not count against the release (difference in differences)
    pre-period   nobody is left as control: the treated devices before, at the safe end of a 98 % interval, and for harm
                 half as much again, because the hour of the day is another
    limit        the first version of a model: an absolute limit on the error rate

A ratio never decides when nothing fails. So errors are also promoted by a process against "control plus `delta`",
which zero events decide after about 3.2 / delta inferences.

Order: evidence is advanced in the order of arrival, each interval once; the ledger is what a gate remembers. It is
never reset when a stage is promoted. Cost: about 0.2 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import gammainccinv, gammaincinv

Floats = npt.NDArray[np.float64]
Metric = Literal["error", "slow", "label"]
Verdict = Literal["promote", "hold", "rollback"]
Basis = Literal["control", "pre-period", "limit", "none"]

METRICS: Final[tuple[Metric, ...]] = ("error", "slow", "label")
RHO: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)  # how much worse: the alternatives that are mixed
BLOCKING: Final = 4  # alpha is split over the three rates and the devices that fail
PRIOR_EVENTS: Final = 20.0  # a device's own pre-period rate counts fully when it is worth more events than this
CERTAINTY: Final = 0.01  # of each end of the interval of a pre-period rate
RHYTHM: Final = 1.5  # by which the hour of the day alone may raise a rate, where no control shares the hour
PRIOR_TRIALS: Final = (2_000.0, 20_000.0)  # least and most weight of the pre-period in the guess of the common rate


class Margin(msgspec.Struct, frozen=True, kw_only=True):
    r0: float  # ratio that is tolerated
    r1: float  # ratio that must be excluded before promotion
    delta: float | None = None  # or this difference in rates


class GatePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults are of research on simulated fleets: 0.2 % false rollbacks, no release with 1.5 times the errors."""

    alpha: float = 0.05
    beta: float = 0.05
    error: Margin = Margin(r0=1.1, r1=1.5, delta=0.001)
    slow: Margin | None = Margin(r0=1.1, r1=1.5)  # None: not judged
    label: Margin | None = Margin(r0=1.05, r1=1.25)
    failed_share: float = 0.1  # of the exposed devices; more of them: roll back
    reported_share: float = 0.9  # of the stage's devices that must have committed and reported
    soak_windows: int = 3  # of each of these devices
    error_limit: float = 0.02  # rate of errors that a first version must stay below

    def margin(self, metric: Metric) -> Margin | None:
        return {"error": self.error, "slow": self.slow, "label": self.label}[metric]


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
    basis: Basis = "none"

    @property
    def log_bad(self) -> float:
        return float(np.logaddexp.reduce(np.asarray(self.bad) / self.phi) - math.log(len(self.bad)))

    @property
    def log_ok(self) -> float:
        return self.ok / self.phi


class Ledger(msgspec.Struct, frozen=True):
    """What a gate remembers of a rollout: one process for each of METRICS."""

    processes: tuple[Process, ...] = (Process(),) * len(METRICS)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One interval of counts (all with the same devices), and how the exposed devices fare."""

    treated: Counts
    control: Counts
    pre: Counts  # before the rollout, frozen at its start
    ledger: Ledger
    exposed: int  # devices that were given the release, in all stages
    failed: int  # of those, with a failure of class `model`
    expected: int  # devices of this stage that are in the denominator
    committed: int
    reported: int  # of those expected, with enough windows and not silent now
    last: bool  # no wider stage follows
    labels_block: bool  # this stage's promotion waits for labels


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What a person reads of one metric. e-values are logarithms; None: the metric cannot be judged."""

    metric: Metric
    basis: Basis
    treated: float | None  # rate
    control: float | None  # the rate that these devices would have without the release
    n: int
    log_bad: float
    log_ok: float
    blocks: bool  # promotion waits for it


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    verdict: Verdict
    reason: str
    figures: tuple[Figure, ...]
    ledger: Ledger


class Gate(Protocol):
    def judge(self, evidence: Evidence) -> Judgement: ...


class SequentialGate:
    """The gate of this module's docstring."""

    def __init__(self, policy: GatePolicy) -> None:
        self.policy = policy
        self.need_bad: Final = math.log(BLOCKING / policy.alpha)
        self.need_ok: Final = math.log(1 / policy.beta)

    def judge(self, evidence: Evidence) -> Judgement:
        """Takes the interval into the ledger, then decides. Harm comes first, then missing devices, then promotion."""
        ledger = Ledger(tuple(self._advance(i, evidence) for i in range(len(METRICS))))
        figures = tuple(self._figure(i, process, evidence) for i, process in enumerate(ledger.processes))
        verdict, reason = self._decide(evidence, figures)
        return Judgement(verdict=verdict, reason=reason, figures=figures, ledger=ledger)

    def _decide(self, evidence: Evidence, figures: tuple[Figure, ...]) -> tuple[Verdict, str]:
        policy = self.policy
        if evidence.failed > policy.failed_share * evidence.exposed:
            return "rollback", (
                f"{evidence.failed} of {evidence.exposed} devices failed with the release "
                f"(more than {policy.failed_share:.0%})"
            )
        for figure in figures:
            if figure.basis != "none" and figure.log_bad >= self.need_bad:
                return "rollback", f"{_rates(figure)}: evidence {_e(figure.log_bad)}, {_e(self.need_bad)} is enough"
        if evidence.expected == 0:
            return "hold", "no device of this stage can be judged yet"
        for what, count in (("committed", evidence.committed), ("reported long enough", evidence.reported)):
            if count < policy.reported_share * evidence.expected:
                return "hold", f"{count} of {evidence.expected} devices {what} ({policy.reported_share:.0%} needed)"
        for figure in figures:
            if figure.blocks and figure.log_ok < self.need_ok:
                return "hold", (
                    f"{_rates(figure)}: evidence that it is no worse {_e(figure.log_ok)}, {_e(self.need_ok)} needed"
                )
        judged = "; ".join(_rates(f) for f in figures if f.basis != "none")
        return (
            "promote",
            f"{evidence.committed} of {evidence.expected} devices committed; {judged or 'nothing counted'}",
        )

    def _advance(self, index: int, evidence: Evidence) -> Process:
        process, metric = evidence.ledger.processes[index], METRICS[index]
        margin = self.policy.margin(metric)
        treated, control = (evidence.treated.trials[index], evidence.control.trials[index])
        if margin is None or treated.sum() == 0:
            return process
        k_t, k_c = float(evidence.treated.events[index].sum()), float(evidence.control.events[index].sum())
        n_t = float(treated.sum())
        pre_n, pre_k = evidence.pre.trials[index], evidence.pre.events[index]
        if control.sum() > 0:
            rate = pre_rates(pre_k, pre_n)
            e_t, e_c = float(treated @ rate), float(control @ rate)
            bad = [
                x + ratio_llr(k_c, k_t, e_c, e_t, margin.r0 * rho, margin.r0)
                for x, rho in zip(process.bad, RHO, strict=True)
            ]
            ok = process.ok + ratio_llr(k_c, k_t, e_c, e_t, 1.0, margin.r1)
            scaled = e_c / (e_t / n_t)
            return _absolute(process, k_t, n_t, k_c, scaled, pre_k, pre_n, bad=bad, ok=ok, basis="control")
        own_n, own_k = float(pre_n[treated > 0].sum()), float(pre_k[treated > 0].sum())
        if own_n > 0:
            high = float(gammainccinv(own_k + 1, CERTAINTY)) / own_n * margin.r0 * RHYTHM
            low = float(gammaincinv(own_k, CERTAINTY)) / own_n if own_k else 0.0
            bad = [x + k_t * math.log(rho) - (rho - 1) * high * n_t for x, rho in zip(process.bad, RHO, strict=True)]
            ok = process.ok - k_t * math.log(margin.r1) + (margin.r1 - 1) * low * n_t
            return _absolute(process, k_t, n_t, 0.0, 0.0, pre_k, pre_n, bad=bad, ok=ok, basis="pre-period")
        if metric != "error":
            return process
        limit = self.policy.error_limit
        bad = [x + k_t * math.log(rho) - (rho - 1) * limit * n_t for x, rho in zip(process.bad, RHO, strict=True)]
        ok = process.ok + k_t * math.log(0.1) + 0.9 * limit * n_t  # a tenth of the limit against the limit
        return _absolute(process, k_t, n_t, 0.0, 0.0, pre_k, pre_n, bad=bad, ok=ok, basis="limit")

    def _figure(self, index: int, process: Process, evidence: Evidence) -> Figure:
        metric = METRICS[index]
        margin = self.policy.margin(metric)
        log_ok = process.log_ok
        if margin is not None and margin.delta is not None:
            log_ok = max(log_ok, absolute_log_e(process, margin.delta))
        wanted = metric != "label" or evidence.labels_block
        possible = metric == "error" or bool(evidence.pre.trials[index].any())
        return Figure(
            metric=metric,
            basis=process.basis,
            treated=process.k_t / process.n_t if process.n_t else None,
            control=process.k_c / process.n_c if process.n_c else None,
            n=int(process.n_t),
            log_bad=process.log_bad,
            log_ok=log_ok,
            blocks=margin is not None and wanted and possible and not evidence.last,
        )


def ratio_llr(k_c: float, k_t: float, e_c: float, e_t: float, a: float, b: float) -> float:
    """log likelihood ratio of "treated devices have a times their rate" over "b times", given the sum of both counts.

    `e_c`, `e_t`: trials times the rate before, summed over the control and the treated devices of one interval.
    """
    return k_t * math.log(a / b) - (k_c + k_t) * math.log((e_c + a * e_t) / (e_c + b * e_t))


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


def _absolute(
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
        basis=basis,
    )


def _poisson(k: float, n: float, rate: float) -> float:
    return (k * math.log(rate) if k else 0.0) - rate * n


_NAMES: Final[dict[Metric, str]] = {"error": "errors", "slow": "slow runs", "label": "wrong labels"}


def _rates(figure: Figure) -> str:
    if figure.treated is None:
        return f"{_NAMES[figure.metric]} not seen yet"
    against = "" if figure.control is None else f" against {figure.control:.2%}"
    return f"{_NAMES[figure.metric]} {figure.treated:.2%}{against} (n = {figure.n:,})"


def _e(log_e: float) -> str:
    return f"{math.exp(min(log_e, 20.0)):.3g}" if log_e < 20 else f"e^{log_e:.0f}"
