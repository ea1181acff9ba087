"""Gates: may the release go on? Promote, hold or roll back, on evidence that may be looked at after every window.

Guarantee: every metric is judged by e-processes (`processes`), so the probability that a harmless release is ever
rolled back by a rate is at most `alpha` for the whole rollout, and that a worse one than `r1` (or `delta`) is promoted
by a metric at most `beta`, however often and whenever `judge` is called. This holds as far as counts are Poisson with
the dispersion `phi` that was frozen at the start.

No control is trusted alone: a control device that left its own pre-period is dropped, and promotion must also hold
against the treated devices' own pre-period, where they have one that can tell (`processes`). Harm is judged without
the second rule, so that what moves a whole fleet holds a release and does not send it back.

Behind the last stage nobody is left to be spared, so its end asks for no evidence that the release is no worse. It asks
for time instead: every device of the stage that is present has reported its soak windows (`Evidence.soaking` is 0), and
until then harm still sends the release back.

Order: evidence is advanced in the order of arrival, each interval once; the ledger is what a gate remembers. It is
never reset when a stage is promoted. Cost: about 0.2 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal, Protocol

import msgspec
import numpy as np

from .processes import METRICS, Basis, Counts, Margin, Metric, Process, absolute_log_e, advance, left

Verdict = Literal["promote", "hold", "rollback"]

BLOCKING: Final = 4  # alpha is split over the three rates and the devices that fail


Chance = Annotated[float, msgspec.Meta(gt=0, le=0.5)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class GatePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults are of research on simulated fleets: 0.2 % false rollbacks, no release with 1.5 times the errors."""

    alpha: Chance = 0.05
    beta: Chance = 0.05
    error: Margin = Margin(r0=1.1, r1=1.5, delta=0.001)
    slow: Margin | None = Margin(r0=1.1, r1=1.5)  # None: not judged
    label: Margin | None = Margin(r0=1.05, r1=1.25)
    failed_share: Share = 0.1  # of the exposed devices; more of them: roll back
    reported_share: Share = 0.9  # of the stage's devices that must have committed and reported
    soak_windows: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 3  # of each of these devices
    error_limit: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.02  # a first version must stay below this rate

    def margin(self, metric: Metric) -> Margin | None:
        return {"error": self.error, "slow": self.slow, "label": self.label}[metric]


class Ledger(msgspec.Struct, frozen=True):
    """What a gate remembers of a rollout: one process for each of METRICS."""

    processes: tuple[Process, ...] = (Process(),) * len(METRICS)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One interval of counts (all with the same devices), and how the exposed devices fare."""

    treated: Counts
    control: Counts
    since: Counts  # of the control in all intervals up to this one
    pre: Counts  # before the rollout, frozen at its start
    ledger: Ledger
    exposed: int  # devices that were given the release, in all stages
    failed: int  # of those, with a failure of class `model`
    expected: int  # devices of this stage that are in the denominator
    committed: int
    reported: int  # of those expected, with enough windows and not silent now
    last: bool  # no wider stage follows
    soaking: int  # devices of the last stage that are present and have not reported long enough; before it, 0
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
    log_own: float | None = None  # against the treated devices' own pre-period
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
        evidence = self._sound(evidence)
        ledger = Ledger(tuple(self._advanced(i, evidence) for i in range(len(METRICS))))
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
        if evidence.soaking:
            return "hold", (
                f"{evidence.soaking} of {evidence.expected} devices of the last stage have not reported "
                f"{policy.soak_windows} times yet"
            )
        for figure in figures:
            if figure.blocks and figure.log_ok < self.need_ok:
                return "hold", (
                    f"{_rates(figure)}: evidence that it is no worse {_e(figure.log_ok)}, {_e(self.need_ok)} needed"
                )
            if figure.blocks and figure.log_own is not None and figure.log_own < self.need_ok:
                return "hold", (
                    f"{_rates(figure)}: evidence that it is no worse than the same devices were before "
                    f"{_e(figure.log_own)}, {_e(self.need_ok)} needed"
                )
        judged = "; ".join(_rates(f) for f in figures if f.basis != "none")
        return (
            "promote",
            f"{evidence.committed} of {evidence.expected} devices committed; {judged or 'nothing counted'}",
        )

    def _sound(self, evidence: Evidence) -> Evidence:
        """Without the counts of control devices that left their own pre-period."""
        trials, events = evidence.control.trials.copy(), evidence.control.events.copy()
        need = self.need_bad + math.log(max(1, trials.shape[1]))
        for i, (metric, process) in enumerate(zip(METRICS, evidence.ledger.processes, strict=True)):
            if (margin := self.policy.margin(metric)) is not None and evidence.control.trials[i].any():
                gone = left(i, margin, need, since=evidence.since, pre=evidence.pre, phi=process.phi)
                trials[i], events[i] = np.where(gone, 0.0, trials[i]), np.where(gone, 0.0, events[i])
        return replace(evidence, control=Counts(trials, events))

    def _advanced(self, index: int, evidence: Evidence) -> Process:
        process, margin = evidence.ledger.processes[index], self.policy.margin(METRICS[index])
        if margin is None:
            return process
        counts = {"treated": evidence.treated, "control": evidence.control, "pre": evidence.pre}
        return advance(process, index, margin, self.policy.error_limit, **counts)

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
            log_own=process.log_own,
            blocks=margin is not None and wanted and possible and not evidence.last,
        )


_NAMES: Final[dict[Metric, str]] = {"error": "errors", "slow": "slow runs", "label": "wrong labels"}


def _rates(figure: Figure) -> str:
    if figure.treated is None:
        return f"{_NAMES[figure.metric]} not seen yet"
    against = "" if figure.control is None else f" against {figure.control:.2%}"
    return f"{_NAMES[figure.metric]} {figure.treated:.2%}{against} (n = {figure.n:,})"


def _e(log_e: float) -> str:
    return f"{math.exp(min(log_e, 20.0)):.3g}" if log_e < 20 else f"e^{log_e:.0f}"
