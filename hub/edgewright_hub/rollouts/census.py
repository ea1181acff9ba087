"""Who of a stage counts when it is judged. Pure; arrays of columns.

Devices that run the release count whether they speak or not, so silence can never promote. Those that were asked and do
not run it yet count while they can be reached, are open and not held. Nobody else does: who failed is held against the
release by itself, who is late comes after the end. A stage that gives the release to nobody new, as happens in small
fleets, is judged on the devices of those before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .members import Bools, Members


class Census(NamedTuple):
    expected: int  # devices that count
    committed: int
    reported: int  # present, and with their soak windows
    soaking: int  # present, and without them; but not those that try again


def of_stage(members: Members, stage: int) -> Bools:
    """bool[devices]: those that the stage is judged on."""
    mine = members.stage == stage
    return mine if mine.any() else members.given


def of(members: Members, stage: int, present: Bools, able: Bools, soak_windows: int) -> Census:
    """bool[devices]: `present` speak, `able` can be given the release now."""
    running, coming = members.has("active", "committed"), members.has("asked", "resting")
    counted = of_stage(members, stage) & (running | (coming & able))
    soaked = counted & running & present & (members.windows >= soak_windows)
    soaking = counted & present & ~soaked & ~_trying(members)
    some = counted, counted & members.has("committed"), soaked, soaking
    return Census(*(int(np.count_nonzero(one)) for one in some))


def troubles(members: Members, stage: int) -> str:
    """What keeps devices of the stage that were asked and try again."""
    places = np.flatnonzero(of_stage(members, stage) & _trying(members))[:3]
    names = [members.devices[i] for i in places.tolist()]
    return "".join(f"; {name} tries again ({members.reasons.get(name, '')})" for name in names)


def _trying(members: Members) -> Bools:
    return members.has("resting") | (members.has("asked") & (members.attempts > 0))
