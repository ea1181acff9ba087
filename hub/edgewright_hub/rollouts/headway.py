"""Whether a rollout that is running gets on, and why it needs a person when it does not. Pure; arrays of columns.

One that waits for approval needs a person after a day.

It gets on when a device of it comes to another status, when devices report with the release until they have soaked, and
when a metric that promotion waits for lacks less evidence than it ever did in this stage; an experiment also while
anything is compared. It stands still, and needs a person,

    after a window  where nobody of its stage is left to judge, nobody is on the way, and there is nobody whom the stage
                    could be given to if all spoke, were open and not held
    after a day     (and two windows) in which it did not get on, whatever the reason; but not while devices that the
                    stage is for wait for their hours or for bandwidth; and where evidence is lacking, not before it
                    stood still for as long as the stage took until then

It takes a day because machines that rest at night need nobody; and evidence that takes weeks falls back for days.
Cost for 10,000 devices: 0.1 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from . import census, exposure
from .figures import Figure
from .members import Bools, Members
from .processes import Metric
from .specification import RolloutSpec

DAY_S: Final = 86400.0


class Headway(msgspec.Struct, frozen=True, kw_only=True):
    at_ms: int = 0  # when it got on last
    soaked: int = 0  # soak windows of all devices then
    lacks: dict[Metric, float] = {}  # least log e that promotion waited for, by metrics
    stalled: str = ""  # why it stands still, and needs a person; "": it does not


def got_on(
    before: Headway, members: Members, was: Members, figures: Sequence[Figure], spec: RolloutSpec, now_ms: int
) -> Headway:
    """The headway after a step: `was` became `members`, and these figures were found."""
    running = members.has("active", "committed")
    soaked = int(np.minimum(members.windows, spec.gate.soak_windows)[running].sum())
    less = {f.metric: now for f in figures if f.blocks and (now := _lacks(f)) < before.lacks.get(f.metric, math.inf)}
    if less or soaked > before.soaked or not before.at_ms or not np.array_equal(members.status, was.status):
        return Headway(at_ms=now_ms, soaked=soaked, lacks={**before.lacks, **less})
    return before


def stalled(
    headway: Headway, members: Members, spec: RolloutSpec, stage: int, here: Bools, unable: Bools | None,
    got_on_s: float, still_s: float,
) -> str:  # fmt: skip
    """Why the stage needs a person, when it got on for so long and then stood still for so long; "": it needs none.

    `here`: as in `exposure`.
    """
    if still_s < spec.window_s:
        return ""
    named = f"stage {stage + 1} ({spec.ladder[stage]})"
    on_the_way = census.of_stage(members, stage) & members.has("asked", "resting", "active", "committed")
    if not on_the_way.any() and not exposure.to_come(members, spec, stage, unable).size:
        return f"nobody is left to judge or to wait for in {named}"
    patience_s = DAY_S + 2 * spec.window_s
    if any(headway.lacks.values()):
        patience_s = max(patience_s, got_on_s)
    if still_s < patience_s:
        return ""
    if exposure.room(members, spec) and exposure.first_time(members, spec, stage, here, here).size:
        return ""
    return f"{named} has not come nearer to its end for {patience_s / 3600:.0f} h"


def unapproved(persons: int, waits_s: float) -> str:
    """Why a rollout for which so many persons more must consent needs one of them; "": it does not yet."""
    if waits_s < DAY_S:
        return ""
    return f"for more than a day it has waited for {persons} person{'s' * (persons > 1)} to approve it"


def _lacks(figure: Figure) -> float:
    of_its_own = figure.need_ok if figure.log_own is None else figure.log_own
    return max(0.0, figure.need_ok - figure.log_ok, figure.need_ok - of_its_own, figure.log_lost - figure.need_ok)
