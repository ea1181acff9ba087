"""How surely two groups of devices are made alike by their pre-period: what an effect must allow for. Pure.

The exposures of treated and control devices (`past.pre_rates`) are estimates. Whatever they are wrong by stays the
same for the whole comparison, and a week of counts would find it with certainty; so `effect` widens its intervals by
it. Two parts, as variances of log(e_t / e_c):

    known    the pre-period's own counts are few: what empirical Bayes leaves of each device's rate (phi k + a) / (k +
             a)^2, for a prior worth `a` events; without the spread of rates (the second a) where it cannot be told
    spread   control devices differ by more than that from their exposures, because there was no pre-period, or it could
             not tell how unlike devices are, or they changed: the variance of their sums so far about what was
             expected of them, beyond phi times Poisson's and beyond the known. It is as sure as there are devices, so
             the quantile is Student's, with the degrees of freedom of a sum of a known and an estimated variance.

Both are per device; a group has the part x^2 / (sum x)^2 of each, where x is what is expected of a device: 1/n of n
equal ones. Treated devices are taken to differ as the control does, because chance said which are which.

Cost: some ten passes over the devices.

Source: Efron and Morris (1975) for the estimates; Satterthwaite (1946) for the degrees of freedom; Hayes and Moulton,
Cluster Randomised Trials (2017), for devices as units; Liang and Zeger (1986) for the variance of a group's sum.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from scipy.special import stdtrit

from .past import PRIOR_EVENTS, prior
from .processes import Counts, Floats

FEWEST: Final = 0.5  # degrees of freedom: of one device nothing is known about how devices differ
_MANY: Final = 1e9


class Likeness(msgspec.Struct, frozen=True):
    """Of one interval."""

    known: float = 0.0  # variance of log(e_t / e_c)
    share: float = 0.0  # of a variance of each device that is left in it
    spread: float = 0.0  # that variance, beyond the known
    freedom: float = _MANY  # degrees of `spread`

    def after(self, before: Likeness, weight: float) -> Likeness:
        """Of both, of which this one has so much of the weight; the spread is the newest."""
        known = weight * self.known + (1 - weight) * before.known
        share = weight * self.share + (1 - weight) * before.share
        return Likeness(known, share, self.spread, self.freedom)

    def apart(self, chance: float) -> float:
        """The two groups lie further apart than this in log ratio, without any effect, with this chance."""
        if self.freedom < FEWEST:
            return math.inf
        spread = self.spread * self.share
        variance = self.known + spread
        freedom = min(self.freedom * (variance / spread) ** 2, _MANY) if spread > 0 else _MANY
        return float(stdtrit(freedom, 1 - chance / 2)) * math.sqrt(variance)


def likeness(index: int, treated: Counts, control: Counts, since: Counts, pre: Counts, phi: float) -> Likeness | None:
    """Of row `index`, of which both sides counted; else None. `since`: of the control so far, with this interval."""
    rate, unsure = _exposures(pre.events[index], pre.trials[index], phi)
    x_t, x_c = treated.trials[index] * rate, control.trials[index] * rate
    if not x_t.any() or not x_c.any():
        return None
    known = sum(float((x * x) @ unsure) / float(x.sum()) ** 2 for x in (x_t, x_c))
    x, k = since.trials[index] * rate, since.events[index]
    alone = _alone(x)
    return Likeness(known, _alone(x_t) + _alone(x_c), _spread(k, x, unsure, alone, phi), 1 / alone - 1)


def _exposures(k: Floats, n: Floats, phi: float) -> tuple[Floats, Floats]:
    """Rates of the devices as `pre_rates` has them, and the variance of each that is known, over its square."""
    if not k.any():
        return np.ones_like(n), np.zeros_like(n)
    common, alike = prior(k, n, phi)
    a = PRIOR_EVENTS[1] if alike is None else alike
    return (k + a) / (n + a / common), (phi * k + (alike or 0.0)) / (k + a) ** 2


def _spread(k: Floats, x: Floats, unsure: Floats, alone: float, phi: float) -> float:
    events = float(k.sum())
    if not events or alone >= 1:
        return 0.0
    expected = x * (events / float(x.sum()))
    found = float(((k - expected) ** 2).sum()) / (1 - alone) - phi * events
    squares = expected * expected
    return max(0.0, (found - float(squares @ unsure)) / float(squares.sum()))


def _alone(x: Floats) -> float:
    """1 / n of n equal devices."""
    return float(x @ x) / float(x.sum()) ** 2
