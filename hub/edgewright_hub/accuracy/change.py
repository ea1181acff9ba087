"""Which labels speak for now: those of the last days alone, where they contradict the labels before them. Pure.

What a model has learnt may cease to hold on one day, and a month of labels would hide it for a week or two. So the
share that was right beside what its confidence said is compared since and before three days of the past. Errors of
calibration are in both and cancel. Of what did not change, CHANGED_Z chooses the last days in one look of 700, which
then only loses labels; whether these contradict the model's confidence is asked afterwards (`expected`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from .expected import LEAST_LABELS, Slice, apart, tenths

DAYS: Final = (1, 3, 7)  # of UTC, today among them
CHANGED_Z: Final = 3.5


def newest(whole: Slice, recent: Mapping[int, Slice]) -> int | None:
    """The days of `recent` whose labels differ most from those before them; None where none do. `recent` are the same
    inferences as `whole`, with the labels of the last days of its own alone."""
    far = {days: abs(_changed(whole, since)) for days, since in recent.items()}
    days = max(far, key=far.__getitem__, default=None)
    return days if days is not None and far[days] > CHANGED_Z else None


def _changed(whole: Slice, since: Slice) -> float:
    """In standard deviations."""
    known = tenths(whole)
    k, k_before = since.labelled.sum(), (whole.labelled - since.labelled).sum()
    if known is None or min(k, k_before) < LEAST_LABELS:
        return 0.0
    c = known[1]
    off = (since.hits.sum() - since.labelled.sum(0) @ c) / k
    before = ((whole.hits - since.hits).sum() - (whole.labelled - since.labelled).sum(0) @ c) / k_before
    right = float(whole.hits.sum() / whole.labelled.sum())
    others = since.labelled.sum(1) / k - (whole.labelled - since.labelled).sum(1) / k_before  # shares of the devices
    variance = max(right * (1 - right), 0.01) * (1 / k + 1 / k_before) + apart(whole) * float(others @ others)
    return float((off - before) / math.sqrt(variance))
