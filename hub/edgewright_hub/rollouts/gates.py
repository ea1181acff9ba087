"""Gates: may the release go on? Promote, hold or roll back, on evidence that may be looked at after every window.

Guarantee: every metric is judged by e-processes (`processes`), so the probability that a harmless release is ever
rolled back by a rate is at most `alpha` for the whole rollout, and that a worse one than `r1` (or `delta`) is promoted
by a metric at most `beta`, however often and whenever `judge` is called. This holds as far as counts are Poisson with
the dispersion `phi` that was frozen at the start.

What is judged, in rows of Counts (`GatePolicy.metrics`): failed, slow and wrongly labelled runs and the misses of named
outcomes, against harm and before promotion; devices that fail for the first time and devices that fall silent for the
first time after they took the release, against harm, with a hard cap on their share beside it; the disagreements of a
shadow, where a limit is signed. How sure a release is of itself is told and decides nothing: a model may be surer and
wrong, or less sure and right.

No control is trusted alone: a control device that left its own pre-period is dropped, and promotion must also hold
against the treated devices' own pre-period, where they have one that can tell (`processes`). Harm is judged without
the second rule, so that what moves a whole fleet holds a release and does not send it back.

Behind the last stage nobody is left to be spared, so its end asks for no evidence that the release is no worse. It asks
for time instead: every device of the stage that is present has reported its soak windows (`Evidence.soaking` is 0), and
until then harm still sends the release back.

Order: evidence is advanced in the order of arrival, each interval once; the ledger is what a gate remembers. It is
never reset when a stage is promoted. Cost: 0.3 ms, and 1 ms for 10,000 devices and six metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

import msgspec

from edgewright_contracts.codec import Label
from edgewright_contracts.errors import RequestError

from .effect import Comparison, Effect, compared, effect
from .figures import Figure, rates, told
from .likeness import likeness
from .processes import (
    METRICS,
    Counts,
    Interval,
    Margin,
    Metric,
    Process,
    advance,
    against_limit,
    interval,
    left,
)

Verdict = Literal["promote", "hold", "rollback"]

ONCE: Final = ("failure", "missing")  # a device's first, with the release and without
ADVISORY: Final = ("confidence",)  # told, and decides nothing
SUSPECT: Final = math.log(3)  # log e from which devices fail more with the release, where others fail too
FIRST_OUTCOME: Final = len(METRICS) + len(ONCE) + 1 + len(ADVISORY)  # its row, behind that of the shadow
SHADOW_EXCLUDED: Final = 1.25  # times its limit: a disagreement that must be ruled out before promotion

Chance = Annotated[float, msgspec.Meta(gt=0, le=0.5)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class GatePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults are of simulated fleets: docs/adr/0017."""

    alpha: Chance = 0.05  # split over the metrics that are judged
    beta: Chance = 0.05  # of each metric that does not say otherwise
    error: Margin = Margin(r0=1.1, r1=1.5, delta=0.001)
    slow: Margin | None = Margin(r0=1.1, r1=1.5, delta=0.01)  # None: not judged
    label: Margin | None = Margin(r0=1.05, r1=1.19, delta=0.01, beta=0.02)
    outcomes: dict[Label, Margin] = {}  # rates of misses
    device_ratio: Annotated[float, msgspec.Meta(ge=1, le=100)] = 2.0  # of first failures and first silences, tolerated
    failed_share: Share = 0.1  # of the exposed devices; more of them, if it is not so without it: roll back
    reported_share: Share = 0.9  # of the stage's devices that must have committed and reported
    soak_windows: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 3  # of each of these devices
    error_limit: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.02  # a first version must stay below this rate
    shadow_limit: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None  # of disagreement; None: not judged

    def __post_init__(self) -> None:
        if taken := set(self.outcomes) & {*METRICS, *ONCE, *ADVISORY, "shadow"}:
            raise RequestError(f"outcomes: {', '.join(sorted(taken))} is judged by that name already; take another")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Rows of Counts."""
        return (*METRICS, *ONCE, "shadow", *ADVISORY, *self.outcomes)

    def margin(self, metric: Metric) -> Margin | None:
        """None: not judged."""
        match metric:
            case "error":
                return self.error
            case "slow":
                return self.slow
            case "label":
                return self.label
            case _ if metric in ONCE:
                return Margin(r0=self.device_ratio, r1=2 * self.device_ratio)
            case "shadow":
                return None if self.shadow_limit is None else Margin(r0=1.0, r1=SHADOW_EXCLUDED)
            case "confidence":
                return Margin(r0=1.0, r1=1.25)  # of doubt: 1 - confidence
        return self.outcomes[metric]


class Ledger(msgspec.Struct, frozen=True):
    """What a gate remembers of a rollout: one process for each metric of its policy; missing ones are new."""

    processes: tuple[Process, ...] = ()
    comparisons: dict[Metric, Comparison] = {}  # of an experiment

    def of(self, metrics: int) -> tuple[Process, ...]:
        return self.processes[:metrics] + (Process(),) * (metrics - len(self.processes))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One interval of counts (all with the same devices), and how the exposed devices fare.

    Counts may have fewer rows than the policy has metrics: those that are not there count nothing.
    """

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
    labels_block: bool  # this stage's promotion waits for labels, and for outcomes
    compares: bool = False  # the effect of the release is wanted too
    missed: tuple[bool, ...] = ()  # by metrics: a control was waited for in vain
    by_themselves: bool = False  # as many may well have failed as early with a harmless release (`background`)


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    verdict: Verdict
    reason: str
    figures: tuple[Figure, ...]
    ledger: Ledger
    effects: tuple[Effect, ...] = ()  # for an experiment, and for people


class Gate(Protocol):
    def judge(self, evidence: Evidence) -> Judgement: ...


class SequentialGate:
    """The gate of this module's docstring."""

    def __init__(self, policy: GatePolicy) -> None:
        self.policy = policy
        self._margins: Final = {metric: policy.margin(metric) for metric in policy.metrics}
        judged = sum(margin is not None for metric, margin in self._margins.items() if metric not in ADVISORY)
        self.need_bad: Final = math.log(judged / policy.alpha)
        self.need_ok: Final = -math.log(policy.beta)

    def judge(self, evidence: Evidence) -> Judgement:
        """Takes the interval into the ledger, then decides. Harm comes first, then missing devices, then promotion."""
        processes = evidence.ledger.of(len(self._margins))
        comparisons = evidence.ledger.comparisons
        if evidence.treated.trials.any():
            rows = len(processes)
            control, since = self._sound(evidence, processes)
            sides = evidence.treated.of(rows), control, evidence.pre.of(rows)
            seen = [interval(i, *sides, process.phi) for i, process in enumerate(processes)]
            if evidence.compares:
                comparisons = self._compared(evidence, seen, control, since)
            missed = (*evidence.missed, *(False,) * rows)[:rows]
            processes = tuple(map(self._moved, self._margins, processes, seen, missed))
        ledger = Ledger(processes, comparisons)
        known = [bool(row.any()) for row in evidence.pre.trials]
        figures = tuple(
            self._figure(metric, margin, process, evidence, known=i < len(known) and known[i])
            for i, ((metric, margin), process) in enumerate(zip(self._margins.items(), ledger.processes, strict=True))
            if metric in METRICS or process.n_t > 0
        )
        failing = processes[self.policy.metrics.index("failure")]
        verdict, reason = self._decide(evidence, figures, common=failing.k_c > 0 and failing.log_bad < SUSPECT)
        return Judgement(verdict=verdict, reason=reason, figures=figures, ledger=ledger, effects=self._effects(ledger))

    def _decide(self, evidence: Evidence, figures: tuple[Figure, ...], *, common: bool) -> tuple[Verdict, str]:
        """`common`: devices fail without the release too, and little says that they fail more with it."""
        policy = self.policy
        usual = common or evidence.by_themselves
        if evidence.failed > policy.failed_share * evidence.exposed and not usual:
            return "rollback", (
                f"{evidence.failed} of {evidence.exposed} devices failed with the release "
                f"(more than {policy.failed_share:.0%})"
            )
        for figure in figures:
            if figure.basis != "none" and figure.log_bad >= self.need_bad and figure.metric not in ADVISORY:
                against = f"evidence {told(figure.log_bad)}, {told(self.need_bad)} is enough"
                return "rollback", f"{rates(figure)}: {against}"
        if evidence.expected == 0:
            failed = f"{evidence.failed} of {evidence.exposed} devices failed, as some do by themselves; "
            return "hold", (failed if evidence.failed else "") + "no device of this stage can be judged yet"
        for what, count in (("committed", evidence.committed), ("reported long enough", evidence.reported)):
            if count < policy.reported_share * evidence.expected:
                return "hold", f"{count} of {evidence.expected} devices {what} ({policy.reported_share:.0%} needed)"
        if evidence.soaking:
            return "hold", (
                f"{evidence.soaking} of {evidence.expected} devices of the last stage have not reported "
                f"{policy.soak_windows} times yet"
            )
        for figure in figures:
            if not figure.blocks:
                continue
            about, needed = f"{rates(figure)}: evidence that it is no worse", told(figure.need_ok)
            if figure.log_ok < figure.need_ok:
                return "hold", f"{about} {told(figure.log_ok)}, {needed} needed"
            if figure.log_lost >= figure.need_ok:
                return "hold", f"{about} shrinks, {told(figure.log_lost)} times by now"
            if figure.log_own is not None and figure.log_own < figure.need_ok:
                return "hold", f"{about} than the same devices were before {told(figure.log_own)}, {needed} needed"
        judged = "; ".join(rates(f) for f in figures if f.basis != "none" and f.metric not in ONCE)
        return (
            "promote",
            f"{evidence.committed} of {evidence.expected} devices committed; {judged or 'nothing counted'}",
        )

    def _compared(
        self, evidence: Evidence, seen: Sequence[Interval], control: Counts, since: Counts
    ) -> dict[Metric, Comparison]:
        before, after = evidence.ledger.comparisons, {}
        processes = evidence.ledger.of(len(seen))
        treated, pre = evidence.treated.of(len(seen)), evidence.pre.of(len(seen))
        for i, (metric, one, process) in enumerate(zip(self._margins, seen, processes, strict=True)):
            if metric not in ONCE and metric != "shadow":
                alike = likeness(i, treated, control, since, pre, process.phi)
                after[metric] = compared(before.get(metric, Comparison()), one, alike)
        return after

    def _effects(self, ledger: Ledger) -> tuple[Effect, ...]:
        phi = dict(zip(self._margins, (process.phi for process in ledger.processes), strict=True))
        found = (effect(metric, one, phi[metric]) for metric, one in ledger.comparisons.items())
        return tuple(one for one in found if one is not None)

    def _moved(self, metric: Metric, process: Process, seen: Interval, missed: bool) -> Process:
        """`missed`: a control was waited for in vain. Then only harm is judged: the hour in which others stand still is
        not like the day before."""
        margin = self._margins[metric]
        if margin is None:
            return process
        if metric == "shadow":
            return against_limit(process, self.policy.shadow_limit or 1.0, margin.r1, seen)
        after = advance(process, margin, self.policy.error_limit if metric == "error" else None, seen)
        if not missed:
            return after
        return msgspec.structs.replace(after, ok=process.ok, difference=process.difference, best=process.best)

    def _sound(self, evidence: Evidence, processes: tuple[Process, ...]) -> tuple[Counts, Counts]:
        """The control and what it counted so far, without devices that left their own pre-period."""
        rows = len(processes)
        control, since, pre = evidence.control.of(rows), evidence.since.of(rows), evidence.pre.of(rows)
        need = self.need_bad + math.log(max(1, control.trials.shape[1]))
        sound = control, since
        for i, ((metric, margin), process) in enumerate(zip(self._margins.items(), processes, strict=True)):
            if margin is None or metric in ONCE or metric == "shadow" or not control.trials[i].any():
                continue
            gone = left(i, margin, need, since=since, pre=pre, phi=process.phi)
            if gone.size:
                if sound[0] is control:
                    sound = _copied(control), _copied(since)
                for one in sound:
                    one.trials[i, gone] = one.events[i, gone] = 0.0
        return sound

    def _figure(
        self, metric: Metric, margin: Margin | None, process: Process, evidence: Evidence, *, known: bool
    ) -> Figure:
        late = metric == "label" or metric in self.policy.outcomes
        wanted = evidence.labels_block if late else metric in ("error", "slow") or process.n_t > 0
        possible = metric == "error" or metric == "shadow" or known
        counted = metric not in ONCE and metric not in ADVISORY
        beta = self.policy.beta if margin is None or margin.beta is None else margin.beta
        return Figure(
            metric=metric,
            basis=process.basis,
            treated=process.k_t / process.n_t if process.n_t else None,
            control=process.k_c / process.n_c if process.n_c else None,
            n=int(process.n_t),
            log_bad=process.log_bad,
            log_ok=process.log_ok,
            log_own=process.log_own,
            blocks=margin is not None and counted and wanted and possible and not evidence.last,
            need_ok=-math.log(beta),
            log_lost=process.log_lost,
        )


def _copied(counts: Counts) -> Counts:
    return Counts(counts.trials.copy(), counts.events.copy())
