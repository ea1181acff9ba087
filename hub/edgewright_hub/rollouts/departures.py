"""Devices that leave a rollout while it is under way, and those that come back to it. Pure; arrays of columns.

    retired   the device is no longer enrolled, so nothing more can be heard of it: it leaves whatever it runs
    left      its attributes changed, and the rollout is not for it any more: it leaves unless it runs the release
              already, and is judged with the others then

Who leaves is neither waited for nor counted among those of a stage, and is told to run what it had before; another
takes its place. What it reported stays judged, and so does that it failed or fell silent, if that was noticed before:
of a device that is retired first nobody can tell why it is silent. Who comes back waits for its turn as the others do.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from .members import MEMBERS, Bools, Happening, Members, happened

WHY: Final[dict[Happening, str]] = {
    "retire": "retired",
    "leave": "the rollout is not for it any more",
    "return": "it takes part again",
}


def departed(members: Members, retired: Bools | None, left: Bools | None) -> Members:
    """The members without those that are gone, and with those that are not any more. None: nobody is, or both: nothing
    is known."""
    if retired is None and left is None:
        return members
    nobody = np.zeros(len(members), np.bool_)
    retired, left = nobody if retired is None else retired, nobody if left is None else left
    whom: dict[Happening, Bools] = {"retire": retired, "leave": left & ~retired, "return": ~(retired | left)}
    for happening, who in whom.items():
        of_these = members.has(*(status for status, one in MEMBERS if one == happening))
        if (who & of_these).any():
            places = np.flatnonzero(who & of_these)
            members = happened(members, places, happening, [WHY[happening]] * places.size)
    return members
