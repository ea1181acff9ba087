"""Whether a package does well on this device: the windows of its probation. Pure.

Rules of a window in probation:
- errors, rejected inputs and low confidence, against the package before it on the same device: see `quality`;
- budgets of the manifest (p95 latency, memory): broken when over in 3 of 3 windows. Of memory the growth of the process
  since before the load counts, and nobody can tell the application's from the model's: a budget wants room for both;
- a window in which nothing was inferred says nothing, but for the inputs that it rejected;
- where no other package could answer, rejected inputs send none back: how the probation ended says how many they were.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from edgewright_contracts import binning
from edgewright_contracts.baseline import Baseline
from edgewright_contracts.event import FailureClass
from edgewright_contracts.manifest import Budgets
from edgewright_contracts.report import Window

from . import quality
from .quality import Seen
from .update import Event, Record

BREACHES: Final = 3


class Health(StrEnum):
    SILENT = "silent"
    HEALTHY = "healthy"
    STRAINED = "strained"  # over a budget, not yet 3 times
    BROKEN = "broken"


class Judgement(NamedTuple):
    health: Health
    reason: str
    breaches: int
    seen: Seen  # of the whole probation


class Conclusion(NamedTuple):
    event: Event
    reason: str
    failure: FailureClass | None


def judge(
    windows: list[Window],
    record: Record,
    budgets: Budgets,
    added_mb: float,
    baseline: Baseline | None,
    *,
    alone: bool = False,
) -> Judgement:
    """The windows that were sealed together for the package in probation (one per context), whose baseline this is;
    `alone`: there is none to go back to."""
    more = quality.seen(windows, baseline)
    now = record.seen.plus(more)
    if worse := quality.worse(now, record.before, baseline, alone=alone):
        return Judgement(Health.BROKEN, worse, record.breaches, now)
    if more.n == 0:
        return Judgement(Health.SILENT, "", record.breaches, now)
    over = over_budget(windows, budgets, added_mb)
    if not over:
        return Judgement(Health.HEALTHY, "", 0, now)
    breaches = record.breaches + 1
    return Judgement(Health.BROKEN if breaches >= BREACHES else Health.STRAINED, over, breaches, now)


def conclude(record: Record, took_s: float, online: bool) -> Conclusion | None:
    """How a probation ends that lasts `took_s` by now; None: not yet."""
    assert record.wanted is not None
    rule = record.wanted.probation
    late = took_s > rule.max_s
    if record.healthy >= rule.windows and (online or late):
        how = f"{record.healthy} healthy windows{_rejected(record.seen)}"
        return Conclusion(Event.DONE, how if online else f"offline: {how}, no contact with the hub", None)
    if late:
        seen = f"{record.healthy} of {rule.windows} healthy windows{_rejected(record.seen)}"
        reason = f"no verdict in {rule.max_s:g} s: {seen}"
        return Conclusion(Event.DELAYED, reason, "operator")
    return None


def _rejected(seen: Seen) -> str:
    inputs = seen.n + seen.rejected
    return f"; {seen.rejected} of {inputs} inputs were rejected" if seen.rejected > quality.LIMIT * inputs else ""


def over_budget(windows: list[Window], budgets: Budgets, added_mb: float) -> str:
    """What is over its budget, "" for nothing. `added_mb`: by how much the process has grown since it was loaded."""
    if budgets.p95_ms is not None:
        grid = sum((binning.unpack_grid(w.latency_run) for w in windows), binning.unpack_grid(b""))
        p95 = binning.grid_quantile_ns(grid, 0.95)
        if p95 is not None and p95 / 1e6 > budgets.p95_ms:
            return f"p95 latency {p95 / 1e6:.3g} ms, budget {budgets.p95_ms:g} ms"
    if budgets.rss_mb is not None and added_mb > budgets.rss_mb:
        return f"memory {added_mb:.0f} MB more than without it, budget {budgets.rss_mb:g} MB"
    return ""
