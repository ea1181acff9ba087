"""Drift of a cohort: the mean of the e-values of its devices' streams, which is an e-value whatever they share. Pure.

A cohort is a fleet, or one with a name. Only devices count that are compared with their own past (`watch`): who merely
differs from others has not moved. Devices of which nothing came for `SILENT_MS`, by the hub's clock, are left out until
they speak again: what they last said would weigh on the mean for ever. Which devices it is, e-BH says. A cohort is
skewed when more than half of its devices are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from . import measures
from .budget import LISTED
from .measures import Floats
from .streams import Bools, Ints

SILENT_MS: Final = 24 * 3600_000


class Cohort(NamedTuple):
    log_e: float
    alarm: bool
    skewed: bool
    devices: tuple[str, ...]  # that are reported
    since_ms: int


def cohort(
    devices: Sequence[str], log_e: Floats, alarm: Bools, skewed: Bools, since_ms: Ints, *, need: float
) -> Cohort:
    """Of one stream of a cohort, from those of its devices (one at least). `need`: log e of a page (`budget`)."""
    mean = float(np.logaddexp.reduce(log_e) - np.log(len(log_e)))
    many = 2 * int(skewed.sum()) > len(devices)
    told = np.zeros(len(devices), np.bool_)
    if mean >= need:
        told |= measures.ebh(log_e, LISTED) | alarm
        told[int(log_e.argmax())] = True
    if many:
        told |= skewed
    since = since_ms[told & (since_ms > 0)]
    names = tuple(sorted(devices[i] for i in np.flatnonzero(told).tolist()))
    return Cohort(mean, mean >= need, many, names, int(since.min()) if since.size else 0)
