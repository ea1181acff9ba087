"""Whether devices that failed with a release would have failed by themselves. Pure; arrays of columns.

A release that breaks devices breaks them soon. A device that has run it for days and then fails may have failed anyhow;
of one canary, which is held for days where the fleet is small, that is to be expected.

Cost for 10,000 devices: 0.5 ms, and 20 µs where none failed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.special import gammainc

from .members import Members

USUAL: Final = 0.1  # failures by itself of a device in a day: most fleets have less
UNLIKELY: Final = 0.01


def by_themselves(members: Members, window_s: float) -> bool:
    """Whether some failed, and with a harmless release as many may well have failed as early: the first, the first two,
    and so on.

    Each counts the time that it reported with the release, one that failed a window more; the n-th failed when all
    those that were given it had been at risk no longer than it was.
    """
    failed = members.has("failed")
    if not failed.any():
        return False
    ran = (members.windows + failed) * (window_s / 86_400)  # days
    given, ends = np.sort(ran[members.given]), np.sort(ran[failed])
    shorter = np.searchsorted(given, ends)
    at_risk = np.concatenate(([0.0], np.cumsum(given)))[shorter] + ends * (given.size - shorter)
    return bool((gammainc(1 + np.arange(ends.size), USUAL * at_risk) > UNLIKELY).all())
