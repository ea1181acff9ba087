"""What the gates of a rollout can see, and how long a good release takes: known before anything moves. Pure.

Guarantee: none; these are expectations. A good release is promoted when the mean of every e-process that promotion
waits for has grown to what is needed (Wald). A regression is *visible* in a stage when its bet has, at the end of that
stage, grown to what rolls back with a chance of at least `CHANCE`, as if it were normal with the mean and the variance
of the sums of log likelihood ratios. A release that is worse is promoted later than a good one, so more is seen than is
said.

Processes go on across stages, as those of `gates` do, and counts have the dispersion `phi` by which the gates divide.
Unit of time: windows. Cost: about 10 ms.

Source: Wald, Sequential Analysis (1947).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
from scipy.special import ndtr

from edgewright_contracts.eprocess import RHO, RHYTHM

from .gates import ADVISORY, ONCE, GatePolicy, SequentialGate
from .label_past import DAYS, Came
from .past import TELLING, unsure
from .processes import TELLS, Counts, Margin, Metric, Process, tolerated

CHANCE: Final = 0.8
LONGEST: Final = 10_000.0  # windows; what takes longer does not end by itself
RATES: Final = 160  # regressions that are tried
RAREST: Final = 1e-6  # of these, where nothing ever happened
NONE: Final[Mapping[Metric, Came]] = MappingProxyType({})
PARTS: Final = 20  # times at which devices of a stage begin that do not begin at once
_STAKES: Final = np.geomspace(0.02, 6.0, 24)
_RHO: Final = np.asarray(RHO)

# Of a stage: windows from when its first device begins until its last one may, if so many are new and nobody began for
# so many windows before.
Spread = Callable[[int, float], float]


class Usual(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of these devices while nothing changes."""

    trials: float  # of one device in one window
    rate: float
    phi: float = 1.0
    delay: float = 0.0  # windows until a trial is told, in the mean: labels come late
    past: float = 1.0  # times as long as that of other metrics the period before is


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    exposed: int  # devices in all
    windows: float | None  # that a good release stays in it; None: nothing that is known will promote it
    spread: float  # from when its first device begins until its last one may
    waits_for: str  # the metric that takes longest, or "reports", or "caps"
    visible: dict[Metric, float]  # the smallest rate that is rolled back by its end
    failing: int  # so many devices that fail roll back, if they do not fail without the release too


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    stages: tuple[Stage, ...]
    windows: float | None  # until a good release is with every device; None: never by itself


def usual(
    pre: Counts, processes: Sequence[Process], windows: float, policy: GatePolicy,
    *, label_delay: float = 0.0, seldom: Mapping[Metric, Came] = NONE,
) -> dict[Metric, Usual]:  # fmt: skip
    """Of every metric that was counted in the period before, which held `windows` for each device that reported;
    `label_delay`: also in windows. What came on some days only is as late, in the mean, as half of the time between."""
    found = {}
    for i, metric in enumerate(policy.metrics[: len(pre.trials)]):
        trials, devices = float(pre.trials[i].sum()), int(np.count_nonzero(pre.trials[i]))
        if trials and _blocks(metric):
            phi = processes[i].phi if i < len(processes) else 1.0
            rate = float(pre.events[i].sum()) / trials
            delay, past = label_delay if metric == "label" else 0.0, 1.0
            if (came := seldom.get(metric)) is not None:
                delay, past = max(delay, DAYS / came.days / 2 * windows), float(DAYS)
            one = trials / devices / max(windows, 1.0) / past
            found[metric] = Usual(trials=one, rate=rate, phi=phi, delay=delay, past=past)
    return found


def outlook(
    policy: GatePolicy, of: Mapping[Metric, Usual], exposed: Sequence[int], fleet: int,
    *, pre_windows: float = 288.0, spread: Spread | None = None,
) -> Outlook:  # fmt: skip
    """`exposed`: devices in all of each stage, the last of them `fleet`; labels and outcomes gate the last but one."""
    gate = SequentialGate(policy)
    margins = {metric: margin for metric in of if _blocks(metric) and (margin := policy.margin(metric))}
    grown = {metric: _Growth(of[metric], margin, gate.need_bad) for metric, margin in margins.items()}
    needs = {metric: -math.log(policy.beta if m.beta is None else m.beta) for metric, m in margins.items()}
    stages: list[Stage] = []
    total: float | None = 0.0
    begun: list[tuple[float, float]] = []  # when, and how many devices
    now = waited = 0.0
    for number, size in enumerate(exposed):
        new = size - (exposed[number - 1] if number else 0)
        begins = spread(new, waited) if spread else 0.0
        begun += _beginning(now, new, begins)
        last, soak = number == len(exposed) - 1, float(max(policy.soak_windows, 1))
        late = number == len(exposed) - 2
        waits = [] if last else [m for m in margins if late or not (m == "label" or m in policy.outcomes)]
        spent, reason = 0.0, "caps" if begins > soak else "reports"
        while spent < LONGEST + begins:
            unsure = [m for m in waits if grown[m].log_ok < needs[m]]
            if spent >= begins + soak and not unsure:
                break
            if spent >= begins + soak:
                reason = unsure[0]
            span = max(1.0, spent // 20)
            for growth in grown.values():
                growth.step([one for one in begun if one[0] <= now], now, span, fleet, pre_windows)
            spent, now = spent + span, now + span
        waited = spent - begins
        done = None if spent >= LONGEST + begins else spent
        total = None if total is None or done is None else total + done
        stages.append(
            Stage(
                exposed=size,
                windows=done,
                spread=begins,
                waits_for=reason,
                visible={m: rate for m, growth in grown.items() if (rate := growth.visible()) is not None},
                failing=math.floor(policy.failed_share * size) + 1,
            )
        )
        if done is None:
            break
    return Outlook(stages=tuple(stages), windows=total)


class _Growth:
    """Of one metric: what its e-processes have grown to in the mean, and their variance for each regression."""

    def __init__(self, usual: Usual, margin: Margin, need_bad: float) -> None:
        self._usual, self._margin, self._need_bad = usual, margin, need_bad
        self._ratio = self._difference = self._own = 0.0
        self._tells = False
        least = 1.02 * usual.rate or RAREST
        self._worse = np.geomspace(least, max(1.0, 1.02 * least), RATES)
        self._mean = np.zeros((RATES, _RHO.size))
        self._variance = np.zeros((RATES, _RHO.size))

    @property
    def log_ok(self) -> float:
        best = max(self._ratio, self._difference) / self._usual.phi
        return min(best, self._own / self._usual.phi) if self._tells else best

    def step(
        self, begun: Sequence[tuple[float, float]], now: float, span: float, fleet: int, pre_windows: float
    ) -> None:
        usual, margin = self._usual, self._margin
        devices = sum(size for _, size in begun)
        n_t = span * usual.trials * sum(size * _told(now + span / 2 - since, usual.delay) for since, size in begun)
        n_c = span * usual.trials * (fleet - devices)
        if not n_t or not n_c:
            return
        t, c = usual.rate * n_t, usual.rate * n_c
        share = n_t / n_c
        self._ratio += -t * math.log(margin.r1) - (t + c) * math.log((1 + share) / (1 + margin.r1 * share))
        if margin.delta is not None:
            less = -np.expm1(-_STAKES)
            gains = margin.delta * n_t * less - _STAKES * t + np.log1p(share * less) * c
            self._difference += float(gains.max())
        self._against_own(n_t, t, devices * pre_windows * usual.past * usual.trials * usual.rate)
        treated = self._worse[:, None] * n_t
        r0 = tolerated(margin, self._apart(devices, fleet, pre_windows))
        fell = np.log((1 + r0 * _RHO * share) / (1 + r0 * share))
        rose = np.log(_RHO) - fell
        self._mean += treated * rose - c * fell
        self._variance += treated * rose**2 + c * fell**2

    def _apart(self, devices: float, fleet: int, pre_windows: float) -> float:
        n = np.full(min(fleet, TELLING), pre_windows * self._usual.past * self._usual.trials)
        of_one = float(unsure(n * self._usual.rate, n, self._usual.phi)[0]) if self._usual.rate else 0.0
        return math.sqrt(of_one * (1 / devices + 1 / (fleet - devices)))

    def _against_own(self, n: float, k: float, before: float) -> None:
        rate, margin = self._usual.rate, self._margin
        low = RHYTHM * rate * max(0.0, 1 - 2.33 / math.sqrt(before)) if before else 0.0
        limit = max(low * margin.r1, low + (margin.delta or 0.0))
        if limit <= rate:
            return
        guess = max(rate, limit / 10)
        if (limit - guess) - rate * math.log(limit / guess) > TELLS * rate:
            self._tells = True
            self._own += (limit - guess) * n - k * math.log(limit / guess)

    def visible(self) -> float | None:
        phi = self._usual.phi
        above = self._mean / phi - self._need_bad - math.log(_RHO.size)
        chance = np.asarray(ndtr(above / np.sqrt(np.maximum(self._variance / phi, 1e-300)))).max(axis=1)
        seen = np.flatnonzero(chance >= CHANCE)
        return float(self._worse[seen[0]]) if seen.size else None


def _beginning(now: float, devices: int, spread: float) -> list[tuple[float, float]]:
    """When they begin, and how many each time: all at once, or evenly."""
    times = min(devices, PARTS) if spread else 1
    return [(now + spread * one / max(1, times - 1), devices / times) for one in range(times)]


def _blocks(metric: Metric) -> bool:
    """Whether promotion waits for it, beside a control."""
    return metric not in ONCE and metric not in ADVISORY and metric != "shadow"


def _told(windows: float, delay: float) -> float:
    """Share of the trials of a window that are told, so many windows after its device began."""
    return 1.0 if not delay else 1 - math.exp(-max(windows, 0.0) / delay)
