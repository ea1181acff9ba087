"""How late labels come, from when versions began to be used and when their labels came. Pure.

Nobody says of a label how old it is. But labels follow inferences: the first days of a version lack labels that are
still to come, and have all of the inferences. So for each mean of `DELAYS`, and each of the `SHAPES` of gamma
distributions about it, from exponential to always the same, the labels of every day are foretold from the inferences of
the hours before, as if the same share of inferences were labelled at all times. The likeliest mean is the answer
(Poisson counts of days, with each version's sum fixed). Days, not hours: people label by day, and what repeats every
day tells nothing of delays.

Guarantee: None rather than a guess: where no version began within what is known, labels are few, or twice the delay
is nearly as likely, or one of which less than twice as long a time is known. Days on which labels come in heaps count
for less: likelihoods are divided by the dispersion of the counts.

Labels behind the time in which a version was used as much as usual are left out, for a device that begins another
version may have forgotten which inferences they are about.

Unit: hours. Cost: 20 ms for each version with 60 days.

Source: back-calculation, Becker, Watson and Carlin (1991): counts of what follows, and the time that it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.special import gammainc

from .processes import Floats

DELAYS: Final = np.concatenate(([0.01], np.geomspace(1.0, 30 * 24, 48)))
SHAPES: Final = (1.0, 4.0, 64.0)
FEWEST: Final = 50  # labels
NEARLY: Final = 1.92  # of log likelihood: the 95 % interval of one parameter
SHORT_H: Final = 12.0  # delays up to this need not be told from one another
DAY: Final = 24


def label_delay_h(versions: Sequence[tuple[Floats, Floats]]) -> float | None:
    """Mean delay in hours; None: it cannot be told. Of each version: inferences and labels, float64[hours], from the
    hour in which it was first used."""
    told, found = np.zeros((2, len(SHAPES) * DELAYS.size))
    free, labels, known_h = 0, 0.0, 0
    for inferences, came in versions:
        n, k = _in_use(inferences, came)
        if not k.any():
            continue
        expected = _foretold(n)
        expected *= k.sum() / expected.sum(axis=1, keepdims=True)
        sure = np.maximum(expected, 1e-3)
        told += (k * np.log(sure) - sure).sum(axis=1)
        found += ((k - expected) ** 2 / np.maximum(expected, 1.0)).sum(axis=1)
        free, labels, known_h = free + k.size - 1, labels + float(k.sum()), max(known_h, n.size)
    if labels < FEWEST or free < 1:
        return None
    best = int(np.argmax(told))
    nearly = NEARLY * max(1.0, float(found[best]) / free)
    delay = float(DELAYS[best % DELAYS.size])
    longest = float(DELAYS[told.reshape(len(SHAPES), -1).max(axis=0) >= told[best] - nearly][-1])
    return None if longest > min(2 * max(delay, SHORT_H / 2), known_h / 2) else delay


def _in_use(inferences: Floats, came: Floats) -> tuple[Floats, Floats]:
    """Inferences of each hour and labels of each day, until the version is used less than half as much as usual."""
    if not inferences.any():
        return inferences[:0], came[:0]
    usual = float(np.median(inferences[inferences > 0]))
    end = int(np.flatnonzero(inferences >= usual / 2)[-1]) + 1
    return inferences[:end], np.add.reduceat(came[:end], np.arange(0, end, DAY))


def _foretold(inferences: Floats) -> Floats:
    """float64[shapes × delays, days]: in proportion to the labels of each day."""
    hours = inferences.size
    ages = np.arange(hours + 1) - 0.5  # since the middle of an hour, at the begin of each
    known = [gammainc(shape, shape * np.maximum(ages, 0.0) / DELAYS[:, None]) for shape in SHAPES]
    come = np.diff(np.concatenate(known), axis=1)
    size = 1 << (2 * hours).bit_length()
    by_hour = np.fft.irfft(np.fft.rfft(come, size) * np.fft.rfft(inferences, size), size)[:, :hours]
    return np.add.reduceat(np.maximum(by_hour, 0.0), np.arange(0, hours, DAY), axis=1)
