"""What lies in an order is also tested for a trend along it: more power where a channel moves as a whole, at the same
false-alarm rate, and nothing changes where cells have no order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, mannwhitneyu

from edgewright_hub.drift import measures
from edgewright_hub.drift.dispersion import Dispersion
from edgewright_hub.drift.moves import Channels

NULL = np.concatenate(([1e-4], np.full(10, 0.09998), [1e-4, 0]))
REFERENCE = np.concatenate(([1], np.full(10, 2000), [1, 0])).astype(float)
ORDERED = 12  # all but the cell of missing values


def _windows(rng: np.random.Generator, n: int, count: int, channels: int, weights: np.ndarray = NULL) -> np.ndarray:
    return rng.multinomial(n, weights, size=(count, channels)).astype(float)


def _p(windows: np.ndarray, ordered: int) -> np.ndarray:
    count, channels, cells = windows.shape
    flat, reference = windows.reshape(-1, cells), np.tile(REFERENCE, (count * channels, 1))
    return measures.window_p(flat, reference, ordered=ordered).reshape(count, channels)


@pytest.mark.parametrize(("n", "channels"), [(50, 22), (200, 64)])
def test_false_alarms_stay_at_or_below_the_nominal_rate(n: int, channels: int) -> None:
    p = _p(_windows(np.random.default_rng(n), n, 600, channels), ORDERED)
    assert np.mean(measures.simes_rows(p) <= 0.05) <= 0.075


def test_a_channel_that_moves_as_a_whole_is_found_in_smaller_windows() -> None:
    tilted = NULL * np.concatenate(([1], np.linspace(0.7, 1.3, 10), [1, 1]))
    windows = _windows(np.random.default_rng(0), 200, 300, 1, tilted / tilted.sum())
    with_trend, without = (np.mean(_p(windows, ordered) <= 0.01) for ordered in (ORDERED, 0))
    assert with_trend > without + 0.2


def test_without_order_nothing_changes() -> None:
    windows = _windows(np.random.default_rng(1), 100, 20, 3)
    mixed = measures.window_p(windows[0], np.tile(REFERENCE, (3, 1)), ordered=[ORDERED, 0, ORDERED])
    plain = measures.window_p(windows[0], np.tile(REFERENCE, (3, 1)))
    assert mixed[1] == plain[1]
    assert (mixed[[0, 2]] <= 1.5 * plain[[0, 2]]).all()


def test_the_trend_is_wilcoxons_test_of_cells() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 6, 300), np.minimum(rng.integers(0, 6, 2000) + (rng.random(2000) < 0.1), 5)
    C, R = (np.bincount(x, minlength=7).astype(float)[None] for x in (a, b))
    z2 = measures.trend(C, R, np.array([6]))[0]
    u = mannwhitneyu(a, b, use_continuity=False, method="asymptotic")
    assert chi2.sf(z2, 1) == pytest.approx(u.pvalue, rel=2e-3)


def test_missing_values_are_no_end_of_the_order() -> None:
    C, R = REFERENCE[None] / 100, REFERENCE[None].copy()
    C[0, -1] = 50
    assert measures.trend(C, R, np.array([ORDERED]))[0] == pytest.approx(0, abs=1e-9)
    assert measures.window_p(C, R, ordered=ORDERED)[0] < 1e-6


def test_nothing_on_one_side_and_one_value_for_all_are_no_trend() -> None:
    empty, one = np.zeros((1, 13)), np.zeros((1, 13))
    one[0, 3] = 40
    for C, R in ((empty, REFERENCE[None]), (one, empty), (one, 10 * one)):
        assert measures.trend(C, R, np.array([ORDERED]))[0] == 0


def test_numbers_scores_and_counts_have_an_order_and_classes_have_none() -> None:
    kinds = ("numeric", "categorical", "score", "count", "feed")
    assert Channels(names=kinds, kinds=kinds, widths=(13, 11, 21, 12, 2)).ordered == (12, 0, 20, 11, 0)


def test_devices_that_differ_a_little_in_level_inflate_the_trend_more_than_the_rest() -> None:
    """What 200 such devices showed against a common reference keeps the test of 200 others at its level."""
    rng = np.random.default_rng(3)
    tilt = np.linspace(-1, 1, 10)
    inner = 0.1 * (1 + 0.15 * rng.standard_normal((400, 4, 1)) * tilt).clip(0.01)
    tails = np.full((400, 4, 1), 1e-4)
    weights = np.concatenate((tails, inner, tails, 0 * tails), axis=2)
    blocks = rng.multinomial(400, weights / weights.sum(2, keepdims=True)).astype(float)
    cells = blocks.shape[2]
    found = measures.pearson(blocks.reshape(-1, cells), np.tile(REFERENCE, (1600, 1)), np.full(1600, ORDERED))
    spread = Dispersion.empty(1, 1, 4)
    learnt = np.repeat(np.arange(400) < 200, 4)
    spread.add(0, 0, found.of(learnt), np.ones(200, np.bool_), np.ones(200))
    p = spread.p_values(0, 0, found.of(~learnt), np.ones(200))
    assert np.mean(p <= 0.01) <= 0.02
    assert np.mean(measures.p_values(found) <= 0.01) > 0.1
