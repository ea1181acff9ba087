"""How much more than Poisson's the counts of a fleet vary before a release: the `phi` that its gates divide by. Pure.

Guarantee: 1 for Poisson counts however few, within 5 % of the truth for bursts of single windows in 50 devices, and
more where bursts last or devices wander, because then sums vary more than their windows say (`SCALES`).

What moves all devices at once, as the hour of the day, is taken out first: it cancels between treated and control. What
is left is the variance of sums over their mean, as a ratio of sums, so that devices count by their events as they do in
a gate; each square is made up for what its own count took from the mean.

Arrays are float64[windows]; slots number time in windows. Cost: 0.06 s for 1,000 devices with 288 windows each.

Measured (CV 0.7 of bursts, 0.5 of devices, common shocks and rhythm; 40 fleets each): docs/adr/0017.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from .processes import Floats

Numbers = npt.NDArray[np.intp]

SCALES: Final = (1, 12, 72)  # windows that are summed: with windows of 5 minutes, an hour and six
SHARED: Final = 50.0  # events of the whole fleet in a span of time, from which its common rate there can be told
TOLD: Final = 20.0  # events from which anything can be


def dispersion(events: Floats, trials: Floats, device: Numbers, slot: Numbers, least: float = 1.0) -> float:
    """phi of windows of `device` (a number of each) in the time `slot`; 1 where too little happened to tell.

    `least`: 1 for counts, less for sums of what varies less than counts do.
    """
    if events.sum() < TOLD:
        return 1.0
    slot = slot - slot.min()
    seen, kept = np.bincount(device, trials), np.bincount(device, events)
    mean = trials * (kept / np.maximum(seen, 1.0))[device]
    span = next((w for w in SCALES if events.sum() >= SHARED * np.unique(slot // w).size), None)
    if span is not None:
        at = slot // span
        mean = mean * (np.bincount(at, events) / np.maximum(np.bincount(at, mean), 1e-300))[at]
    phi = least
    for scale in SCALES:
        width = int(slot.max()) // scale + 1
        cell = device * width + slot // scale
        part, names = cell, None
        if cell.max() > 4 * cell.size:  # clocks lie far apart: an array of all cells would be mostly empty, and huge
            names, part = np.unique(cell, return_inverse=True)
        sums = [np.bincount(part, x) for x in (events, mean, trials)]
        some = np.flatnonzero(sums[2])
        cell = some if names is None else names[some]
        k, m, n = (x[some] for x in sums)
        free = 1 - n / np.maximum(seen[cell // width], 1.0)
        if span is not None:
            at = cell % width * scale // max(span, scale)
            free -= m / np.maximum(np.bincount(at, m)[at], 1e-300)
        expected = m * np.maximum(free, 0.0)
        if (total := float(expected.sum())) < TOLD / 4:
            continue
        found = float(((k - m) ** 2).sum()) / total
        unsure = 0.0 if scale == 1 else 2 * np.sqrt(float((2 * expected**2).sum()) * found**2 + total * found) / total
        phi = max(phi, found - float(unsure))
    return phi
