"""Quality: whether a package on probation does worse than the one before it did on this device. Needs no hub. Pure.

Three rates: errors of all inferences, rejected of all inputs, and answers less sure than `LOW` of all whose confidence
was counted. Each is judged by the hub's bet against a pre-period (`contracts/eprocess.py`, `hub/processes.py`): worse
than what the pre-period still allows, times a margin, times what the hour of the day may do. The bet may be looked at
after every window. What it needs is the sums since the beginning of the probation (`Seen`), which are persisted with
the record and never begun again within a probation: neither a reboot nor patience makes a false alarm more likely.

Guarantee: a package that is no worse than margin and hour allow is sent back by any of the rates with probability
<= ALPHA over the whole probation, as far as counts are Poisson with the dispersion of the pre-period's own windows.

- Confidence is a package's own scale: one that was less sure of its own reference rows by a factor may be so here.
- A period of a few inferences allows almost any rate: never more than `WORST` is believed, unless it was seen.
- On a first install nobody knows what is usual here: errors and rejections stay below `LIMIT`, the hub's limit of a
  first version, and confidence is not judged.
- Rejections are the callers' doing as likely as the package's. Where no other package could answer in its place, they
  send none back: it would leave the callers with nothing, and teach them nothing.

Seen (`scripts/measure_probation.py`: 300 probations of 100 windows of 60 inferences, rates of 1 %, a day before): a
good package was sent back in 0.0 %, and in 0.3 % with rough counts (the hour of the day +-30 %, bursts of 70 %). Ten
times the errors were found after 2 windows, five times after 6 (9 rough), three times in 98 % (73 %) after 31 (27),
twice in 2 % (19 %): what is finer is for the hub, which sees the fleet.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from edgewright_contracts import binning
from edgewright_contracts.baseline import Baseline
from edgewright_contracts.channels import SCORE_BINS, Channel
from edgewright_contracts.eprocess import CERTAINTY, RHO, RHYTHM, mixed, rate_llr, upper
from edgewright_contracts.report import Window

ALPHA: Final = 0.05  # of a probation, over all rates
LOW: Final = 0.5  # a confidence below it is low
LIMIT: Final = 0.02
WORST: Final = 0.5
HISTORY_N: Final = 100_000  # inferences that a pre-period remembers before it halves
LEAST_WINDOWS: Final = 11  # of a pre-period, to know its dispersion by


class Rate(NamedTuple):
    name: str
    margin: float  # ratio that is tolerated
    limit: float | None  # of a first install
    callers: bool = False  # may be their doing


RATES: Final = (
    Rate("errors", 1.1, LIMIT),
    Rate("rejected inputs", 1.1, LIMIT, callers=True),
    Rate("answers of low confidence", 1.5, None),
)
# A rate fails by its bet, or because the true rate lies above the interval of the pre-period: both are within ALPHA.
ENOUGH: Final = -math.log(ALPHA / len(RATES) - CERTAINTY)


class Seen(msgspec.Struct, frozen=True):
    """Sums of windows. Numbers of a pre-period halve when it fades."""

    n: int = 0
    errors: int = 0
    rejected: int = 0
    scored: int = 0  # confidences that were counted
    low: int = 0

    @property
    def bad(self) -> tuple[int, int, int]:
        """By RATES."""
        return (self.errors, self.rejected, self.low)

    @property
    def trials(self) -> tuple[int, int, int]:
        return (self.n, self.n + self.rejected, self.scored)

    def plus(self, more: Seen) -> Seen:
        return Seen(
            self.n + more.n,
            self.errors + more.errors,
            self.rejected + more.rejected,
            self.scored + more.scored,
            self.low + more.low,
        )


class PrePeriod(Seen, frozen=True):
    """What the package before did on this device: the yardstick of probation."""

    usual: float = 0.0  # share of low confidence in that package's own reference
    windows: tuple[float, float, float] = (0.0, 0.0, 0.0)  # with trials, by RATES
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)  # sums of bad² / trials


def seen(windows: list[Window], baseline: Baseline | None) -> Seen:
    """The sums of windows of one package that were sealed together (one per context)."""
    at = confidence(baseline.channels) if baseline else None
    scored = low = 0
    for window in windows:
        if at is not None and window.cells:
            cells = binning.unpack(window.cells)[at : at + SCORE_BINS + 1]
            scored += int(cells.sum())
            low += _low(cells)
    return Seen(
        sum(w.n for w in windows),
        sum(w.error_count for w in windows),
        sum(sum(w.rejected.values()) for w in windows),
        scored,
        low,
    )


def remembered(period: PrePeriod, more: Seen, baseline: Baseline | None) -> PrePeriod:
    """`period` with one more interval of the same package, whose baseline this is; old intervals fade."""
    bad, trials = more.bad, more.trials
    counts = msgspec.structs.asdict(period.plus(more))
    windows = [w + (t > 0) for w, t in zip(period.windows, trials, strict=True)]
    squares = [s + b * b / max(t, 1) for s, b, t in zip(period.squares, bad, trials, strict=True)]
    if counts["n"] > HISTORY_N:
        counts = {name: count // 2 for name, count in counts.items()}
        windows, squares = [w / 2 for w in windows], [s / 2 for s in squares]
    return PrePeriod(**counts, usual=usual(baseline), windows=_three(windows), squares=_three(squares))


def worse(now: Seen, before: PrePeriod, baseline: Baseline | None, *, alone: bool = False) -> str:
    """What is worse now than before, "" for nothing; `baseline` is that of the package on probation, and it is `alone`
    where there is none to go back to."""
    for i, rate in enumerate(RATES):
        k, n = now.bad[i], now.trials[i]
        allowed = None if alone and rate.callers else tolerated(i, before, baseline)
        if allowed is None or k <= allowed * n:
            continue  # no bet has won anything
        log_e = mixed([rate_llr(k, n, allowed, rho) for rho in RHO], dispersion(i, before))
        if log_e >= ENOUGH:
            was = f"{before.bad[i]} of {before.trials[i]} before" if before.trials[i] else f"a limit of {LIMIT:.0%}"
            return f"{rate.name}: {k} of {n}, against {was}"
    return ""


def tolerated(i: int, before: PrePeriod, baseline: Baseline | None) -> float | None:
    """The rate of RATES[i] that is still no worse; None: it cannot be judged."""
    rate, k, n = RATES[i], before.bad[i], before.trials[i]
    if n == 0:
        return rate.limit
    allowed = upper(k) / n * rate.margin * RHYTHM
    if rate.limit is None and before.usual > 0:
        allowed *= max(1.0, usual(baseline) / before.usual)
    return min(allowed, max(WORST, 2 * k / n))


def dispersion(i: int, before: PrePeriod) -> float:
    """phi >= 1 of RATES[i]: Pearson's variance over mean of the windows of the pre-period."""
    k, n, windows = before.bad[i], before.trials[i], before.windows[i]
    if windows < LEAST_WINDOWS or k == 0:
        return 1.0
    return max(1.0, (before.squares[i] * n / k - k) / (windows - 1))


def confidence(channels: tuple[Channel, ...]) -> int | None:
    """Where the cells of the first channel of a confidence begin: a score by that name, or the largest of a row."""
    for channel, at in zip(channels, binning.offsets([c.width for c in channels]), strict=False):
        named = channel.name.rpartition(".")[2] == "confidence"
        if channel.kind == "score" and (named or channel.source.reduce == "max"):
            return int(at)
    return None


def usual(baseline: Baseline | None) -> float:
    """Share of low confidence in a package's reference, 0 where it has none; one row more than was seen."""
    at = confidence(baseline.channels) if baseline else None
    if at is None or baseline is None:
        return 0.0
    cells = baseline.cells()[at : at + SCORE_BINS + 1]
    return (_low(cells) + 1) / (int(cells.sum()) + 1)


def _low(cells: binning.Cells) -> int:
    """What is no number is not sure either."""
    return int(cells[: int(LOW * SCORE_BINS)].sum() + cells[SCORE_BINS])


def _three(values: list[float]) -> tuple[float, float, float]:
    a, b, c = values
    return a, b, c
