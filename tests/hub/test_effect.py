"""Intervals of an effect hold the truth at every look, shrink, and end a comparison that was made."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_hub.rollouts.effect import Comparison, Effect, compared, effect
from edgewright_hub.rollouts.processes import Interval


def _watched(
    treated: float, control: float, *, seed: int, n_t: float = 300, n_c: float = 300, days: int = 1, phi: float = 1.0
) -> tuple[list[Effect], Effect]:
    """Looked at after every twentieth interval of five minutes; rates of both sides move with the hour."""
    rng = np.random.default_rng(seed)
    looks, comparison = [], Comparison()
    for window in range(288 * days):
        hour = 1 + 0.3 * np.sin(window / 46 + seed)
        k_t, k_c = (phi * rng.poisson(n * p * hour / phi) for n, p in ((n_t, treated), (n_c, control)))
        seen = Interval(k_t=k_t, n_t=n_t, k_c=k_c, e_t=n_t * 0.02, e_c=n_c * 0.02)
        comparison = compared(comparison, seen)
        if window % 20 == 19:
            found = effect("error", comparison, phi)
            assert found is not None
            looks.append(found)
    return looks, looks[-1]


@pytest.mark.parametrize(("treated", "control", "phi"), [(0.02, 0.02, 1.0), (0.03, 0.02, 1.0), (0.02, 0.02, 2.0)])
def test_an_interval_leaves_out_the_truth_in_few_runs_however_often_it_is_looked_at(
    treated: float, control: float, phi: float
) -> None:
    outside = 0
    for seed in range(30):
        looks, _ = _watched(treated, control, seed=seed, phi=phi)
        ratio, difference = treated / control, treated - control
        outside += any(
            not one.ratio_low <= ratio <= (one.ratio_high or 1e9)
            or not one.difference_low <= difference <= one.difference_high
            for one in looks
        )
    assert outside <= 4, "at most a twentieth each, for ratio and difference"


def test_a_release_that_errs_half_as_often_again_is_called_worse_and_one_that_errs_less_better() -> None:
    worse, better = _watched(0.03, 0.02, seed=1)[1], _watched(0.02, 0.03, seed=1)[1]
    assert worse.worse
    assert not worse.better
    assert better.better
    assert worse.ratio == pytest.approx(1.5, abs=0.1)
    assert worse.ratio_low > 1.3
    assert 0.006 < worse.difference_low < 0.01 < worse.difference_high < 0.014


def test_what_always_differed_is_no_effect() -> None:
    """The treated devices have had twice the errors before, as well as now."""
    comparison = Comparison()
    for _ in range(100):
        comparison = compared(comparison, Interval(k_t=12, n_t=300, k_c=6, e_t=12, e_c=6))
    found = effect("error", comparison, 1.0)
    assert found is not None
    assert found.ratio == pytest.approx(1.0)
    assert found.difference == pytest.approx(0.0)
    assert found.ratio_low < 1 < (found.ratio_high or 0)


def test_without_an_event_the_difference_is_bounded_and_the_ratio_is_not() -> None:
    comparison = Comparison()
    for _ in range(100):
        comparison = compared(comparison, Interval(n_t=600, e_t=6, e_c=6))
    found = effect("error", comparison, 1.0)
    assert found is not None
    assert (found.ratio, found.ratio_low, found.ratio_high) == (None, 0.0, None)
    assert -2e-4 < found.difference_low < 0 < found.difference_high < 2e-4


def test_there_is_no_effect_before_both_sides_counted() -> None:
    assert effect("error", compared(Comparison(), Interval(n_t=600, e_t=6)), 1.0) is None
    assert effect("error", compared(Comparison(), Interval(k_c=6, e_c=6)), 1.0) is None


def test_the_intervals_of_a_small_canary_hold_too() -> None:
    _, found = _watched(0.02, 0.02, seed=3, n_t=60, n_c=60_000)
    assert found.ratio_low < 1 < (found.ratio_high or 0) < 1.6
    assert found.difference_high < 0.01
