"""What people answer to drift alarms: that they know, or that what a device shows now is its normal. Pure.

    acknowledge   every alarm of a device or cohort ends, and its detectors begin anew; what goes on moving is reported
                  again. What is ended of a cohort is ended of its devices too: the cohort's alarm is made of theirs and
                  would come back with the next window
    accept        the streams in alarm have a new normal, from their own windows since it began, and are not compared
                  with their cohort or with training any more
    take_back     the normal from before an acceptance

Cohorts are decided over again by who calls (`Watch.decide_cohorts`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .streams import KNOWN, SKEWED
from .verdicts import alarms
from .watch import Key, Watch

Kept = list[tuple[Key, bytes]]  # streams of devices as they were, as bytes


def acknowledge(watch: Watch, subject: str) -> set[Key]:
    """The alarms that ended. Raises RequestError for none."""
    ended = alarms(watch, subject)
    for key in ended:
        if key.scope == "device":
            group, at = watch.stream(key)
            group.streams.rest(np.array([at]))
            if group.streams.skew[at] == SKEWED:
                group.streams.skew[at] = KNOWN
    return ended


def accept(watch: Watch, subject: str) -> tuple[set[Key], Kept]:
    """The alarms that ended, and the streams that have a new normal, as they were before. Raises RequestError for
    none."""
    ended, before = alarms(watch, subject), []
    for key in sorted(key for key in ended if key.scope == "device"):
        group, at = watch.stream(key)
        before.append((key, group.streams.pack(np.array([at]))[0]))
        group.accept(at)
    return ended, before


def take_back(watch: Watch, before: Iterable[tuple[Key, bytes]]) -> set[Key]:
    """The streams that have their normal from before; none that ended and was forgotten since."""
    changed = set()
    for key, data in before:
        if not watch.known(key):
            continue
        group, at = watch.stream(key)
        ended = group.streams.ended[at]
        if group.streams.unpack(at, data):
            group.streams.ended[at] = ended
            group.streams.rest(np.array([at]))
            group.baselines.pool()
            changed.add(key)
    return changed
