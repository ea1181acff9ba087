"""How many false pages the operator will have, and what evidence a page therefore needs. Pure.

The operator says: at most N false pages a month for the whole fleet. A stream's e-value has a mean of at most 1 at the
end of a month without drift (`detectors`), so one of M streams pages falsely at most M / need times a month:

    devices   45 % of N: each of the M streams of devices pages at e >= M / (0.45 N)
    cohorts   45 % of N: the mean of the e-values of a cohort's devices, itself an e-value whatever they share, at
              e >= cohort streams / (0.45 N); its devices are listed by e-BH, which pages nobody by itself
    skew      10 % of N, once for each stream: p <= 0.1 N / M when its own baseline is first compared with training

More streams, scales or shorter windows need more evidence for each page, never more pages.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from edgewright_contracts.errors import RequestError

DEFAULT: Final = 1.0  # false pages a month
LISTED: Final = 0.1  # share of false ones among the devices that a cohort's page lists


class Budget(msgspec.Struct, frozen=True):
    false_pages_a_month: float = DEFAULT

    def __post_init__(self) -> None:
        if not 1e-3 <= self.false_pages_a_month <= 1e4:
            raise RequestError(
                f"expected a budget of 0.001 to 10000 false pages a month, got {self.false_pages_a_month:g}"
            )

    def device_need(self, streams: int) -> float:
        """log e from which a device's stream pages, of so many in all."""
        return float(np.log(max(1, streams) / (0.45 * self.false_pages_a_month)))

    def cohort_need(self, streams: int) -> float:
        """log e from which a cohort's stream pages."""
        return float(np.log(max(1, streams) / (0.45 * self.false_pages_a_month)))

    def skew_p(self, streams: int) -> float:
        """p-value from which a device that always was different pages."""
        return min(0.05, 0.1 * self.false_pages_a_month / max(1, streams))
