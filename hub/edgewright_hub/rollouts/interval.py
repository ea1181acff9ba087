"""What was counted since the last judgement: what can be judged now, and what waits. Pure; arrays (metric × device).

A metric waits for its other side: treated devices for a control where one is hoped for, the control for treated ones;
and all wait until an interval is over. When to judge depends on who reported, never on what: that keeps the gate's
guarantee. Cost for 10,000 devices and six metrics: 0.3 ms where nothing waits, 2 ms where the control waits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .members import Bools, Members, widened
from .processes import Counts, Floats


def taken(
    members: Members, treated: Counts | None, control: Counts | None, present: Bools, *, due: bool
) -> tuple[Counts, Counts, Members]:
    """Treated and control counts to judge, and the members with what waits; `due`: the interval is over."""
    sides = _whole(members, treated, control)
    metrics = len(sides[0])
    members = replace(members, pre=widened(members.pre, metrics), since=widened(members.since, metrics))
    here, there = np.any(sides[0], 1), np.any(sides[2], 1)
    take = np.zeros(metrics, np.bool_)
    if due:
        lonely = here & ~there
        if lonely.any():
            hoped = members.has("waiting", "late") & present
            lonely = lonely & (members.pre[0][:, hoped] > 0).any(axis=1)
        take = here & ~lonely
    leave = (here | there) & ~take
    waits = np.zeros((4, 0, len(members)))
    if leave.any():
        waits = np.stack([np.where(leave[:, None], side, 0.0) for side in sides])
        sides = [np.where(take[:, None], side, 0.0) for side in sides]
    since = members.since + sides[2:] if (take & there).any() else members.since
    return Counts(sides[0], sides[1]), Counts(sides[2], sides[3]), replace(members, since=since, pending=waits)


def _whole(members: Members, treated: Counts | None, control: Counts | None) -> list[Floats]:
    """What was not judged yet: treated trials and events, control trials and events, each float64[metrics, devices]."""
    new: list[Floats | None] = []
    for one in (treated, control):
        new += [None, None] if one is None else [one.trials, one.events]
    before = members.pending
    metrics = max(members.pre.shape[1], before.shape[1], *(len(one) for one in new if one is not None))
    out = []
    for waits, counted in zip(before, new, strict=True):
        if counted is None or not waits.size:
            out.append(widened(waits if counted is None else counted, metrics))
        else:
            out.append(widened(waits, metrics) + widened(counted, metrics))
    return out
