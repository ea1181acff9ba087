"""Intervals of an effect hold the truth at every look, shrink, and end a comparison that was made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest

from edgewright_hub.rollouts.effect import Comparison, Effect, compared, effect
from edgewright_hub.rollouts.likeness import Likeness, likeness
from edgewright_hub.rollouts.processes import Counts, Floats, Interval, interval


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
        comparison = compared(comparison, seen, Likeness())
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
        comparison = compared(comparison, Interval(k_t=12, n_t=300, k_c=6, e_t=12, e_c=6), Likeness())
    found = effect("error", comparison, 1.0)
    assert found is not None
    assert found.ratio == pytest.approx(1.0)
    assert found.difference == pytest.approx(0.0)
    assert found.ratio_low < 1 < (found.ratio_high or 0)


def test_without_an_event_the_difference_is_bounded_and_the_ratio_is_not() -> None:
    comparison = Comparison()
    for _ in range(100):
        comparison = compared(comparison, Interval(n_t=600, e_t=6, e_c=6), Likeness())
    found = effect("error", comparison, 1.0)
    assert found is not None
    assert (found.ratio, found.ratio_low, found.ratio_high) == (None, 0.0, None)
    assert -2e-4 < found.difference_low < 0 < found.difference_high < 2e-4


def test_there_is_no_effect_before_both_sides_counted() -> None:
    assert effect("error", compared(Comparison(), Interval(n_t=600, e_t=6), Likeness()), 1.0) is None
    assert effect("error", compared(Comparison(), Interval(k_c=6, e_c=6), Likeness()), 1.0) is None


def test_the_intervals_of_a_small_canary_hold_too() -> None:
    _, found = _watched(0.02, 0.02, seed=3, n_t=60, n_c=60_000)
    assert found.ratio_low < 1 < (found.ratio_high or 0) < 1.6
    assert found.difference_high < 0.01


@dataclass(frozen=True)
class Fleet:
    """Half of it is treated; devices differ (CV `cv`), and were counted for `hours` before."""

    devices: int
    hours: float = 24.0
    phi: float = 1.0
    cv: float = 0.3

    def experiment(self, seed: int, factor: float = 1.0) -> Iterator[Effect]:
        """Two weeks, looked at every day: 60 runs an hour, 5 % of which fail, `factor` times that if treated."""
        rng = np.random.default_rng([self.devices, seed])
        rate = 0.05 * rng.gamma(self.cv**-2, self.cv**2, self.devices)
        treated = rng.permutation(self.devices) < self.devices // 2
        pre = self._counted(60 * self.hours, rate, rng)
        phi = self.phi if self.hours else 1.0  # of the period before
        comparison, since = Comparison(), np.zeros((2, self.devices))
        for _ in range(14):
            now = self._counted(60 * 24, rate * np.where(treated, factor, 1.0), rng)
            mine, others = (Counts(now.trials * side, now.events * side) for side in (treated, ~treated))
            since += np.concatenate((others.trials, others.events))
            alike = likeness(0, mine, others, Counts(since[:1], since[1:]), pre, phi)
            comparison = compared(comparison, interval(0, mine, others, pre, phi), alike)
            found = effect("error", comparison, phi)
            assert found is not None
            yield found

    def _counted(self, runs: float, rate: Floats, rng: np.random.Generator) -> Counts:
        return Counts(np.full((1, self.devices), runs), self.phi * rng.poisson(runs * rate[None] / self.phi))


@pytest.mark.parametrize(
    "fleet",
    [Fleet(8), Fleet(20), Fleet(8, hours=2), Fleet(8, hours=0), Fleet(20, hours=0), Fleet(20, phi=3.0), Fleet(1000)],
    ids=str,
)
def test_an_experiment_without_an_effect_finds_none_however_unlike_its_devices_are(fleet: Fleet) -> None:
    """Exposures that are taken as exact find one in a fifth to three quarters of them."""
    found = [any(one.better or one.worse for one in fleet.experiment(seed)) for seed in range(12)]
    assert sum(found) <= 1


@pytest.mark.parametrize(("fleet", "factor"), [(Fleet(8), 1.6), (Fleet(20), 1.3), (Fleet(100), 1.15)], ids=str)
def test_an_effect_that_is_larger_than_what_devices_differ_by_is_found(fleet: Fleet, factor: float) -> None:
    ends = [list(fleet.experiment(seed, factor))[-1] for seed in range(5)]
    assert [one.worse for one in ends].count(True) >= 4
    assert all(one.ratio_low <= factor <= (one.ratio_high or 0) for one in ends)
    assert all(one.apart is not None and one.apart < factor - 1 for one in ends)


def test_beside_a_single_device_no_effect_is_told_from_the_device() -> None:
    (*_, found) = Fleet(2).experiment(seed=1, factor=3.0)
    assert (found.ratio_low, found.ratio_high, found.apart) == (0.0, None, None)
    assert not found.worse


def test_what_was_kept_without_the_devices_tells_no_effect_before_the_next_interval() -> None:
    before = compared(Comparison(), Interval(k_t=12, n_t=300, k_c=6, e_t=12, e_c=6), Likeness())
    of_old = msgspec.structs.replace(before, weight=0.0)
    assert effect("error", of_old, 1.0) is None
    assert effect("error", compared(of_old, Interval(k_t=1, n_t=9, e_t=1, e_c=1), Likeness()), 1.0) is not None
