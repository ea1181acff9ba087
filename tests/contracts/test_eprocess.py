"""The end of a Poisson interval is the textbook's; the bets themselves are held to the reference in tests/hub."""

from __future__ import annotations

import math

import pytest
from scipy.special import gammainccinv

from edgewright_contracts.eprocess import CERTAINTY, RHO, mixed, rate_llr, ratio_llr, upper


@pytest.mark.parametrize("k", [0, 0.5, 1, 2, 7, 40, 999, 12_345, 100_000, 10**7])
def test_the_end_of_an_interval_is_that_of_the_gamma_distribution(k: float) -> None:
    assert upper(k) == pytest.approx(float(gammainccinv(k + 1, CERTAINTY)), rel=1e-11)


def test_a_rate_that_is_exactly_known_is_a_control_without_end() -> None:
    n, rate, endless = 500, 0.02, 1e12
    for rho in RHO:
        against = ratio_llr(endless * rate, 15, endless, n, rho, 1.0)
        assert rate_llr(15, n, rate, rho) == pytest.approx(against, rel=1e-3, abs=0.02)


def test_the_mixture_is_the_mean_of_its_bets_and_phi_dampens_each() -> None:
    assert mixed([0.0] * 8) == pytest.approx(0)
    assert mixed([math.log(8), -1e9, -1e9, -1e9]) == pytest.approx(math.log(2))
    assert mixed([4.0, 4.0], phi=2.0) == pytest.approx(2)
