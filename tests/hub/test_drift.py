"""The window test keeps its false-alarm rate, finds shifts, and agrees with reference values made by other code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from edgewright_hub.drift import detectors, effects, measures

# The reference values took a tail as 1 - cdf, which costs them 1e-12: rational arithmetic gives 1.7430400463579e-4
# where they say 1.7430400517e-4.
ROUNDING = 1e-12
VECTORS = json.loads((Path(__file__).parent / "data" / "stats_vectors.json").read_text())


@pytest.mark.parametrize("case", VECTORS["window_p"])
def test_the_window_test_reproduces_the_reference_values(case: dict) -> None:
    np.testing.assert_allclose(measures.window_p(case["C"], case["R"]), case["p"], rtol=1e-9, atol=ROUNDING)
    inflated = case["p_overdispersed"]
    p = measures.window_p(case["C"], case["R"], inflated["c_f"], inflated["v_f"])
    np.testing.assert_allclose(p, inflated["p"], rtol=1e-9, atol=ROUNDING)


@pytest.mark.parametrize("case", VECTORS["simes"])
def test_simes_reproduces_the_reference_values(case: dict) -> None:
    assert measures.simes(case["p"]) == pytest.approx(case["simes"], rel=1e-9)


def test_the_detector_reproduces_the_reference_trace() -> None:
    case = VECTORS["drift"][0]
    assert tuple(case["delta"]) == detectors.DELTAS
    detector = detectors.Detector()
    for p, level, alarm in case["trace_p_meanR_alarm"]:
        detector = detectors.advance(detector, p)
        assert np.exp(detector.level) == pytest.approx(level, rel=1e-9)
        assert (detector.level >= np.log(case["A"])) == alarm


def _windows(n: int, channels: int, count: int, seed: int, weights: np.ndarray | None = None) -> np.ndarray:
    """int[count, channels, 13] of cells under | 10 quantile bins | over | missing."""
    null = np.concatenate(([1e-4], np.full(10, 0.09998), [1e-4, 0]))
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, null if weights is None else weights, size=(count, channels))


def _reference(channels: int, N: int = 20_000) -> np.ndarray:
    return np.tile(np.concatenate(([1], np.full(10, N // 10), [1, 0])), (channels, 1))


@pytest.mark.parametrize(("n", "channels"), [(50, 22), (200, 22), (200, 64), (1000, 22)])
def test_false_alarms_stay_at_or_below_the_nominal_rate(n: int, channels: int) -> None:
    """400 null windows, nominal 5 %: at most 1.5 times that, at every window size."""
    R = _reference(channels)
    fired = np.mean([measures.simes(measures.window_p(C, R)) < 0.05 for C in _windows(n, channels, 400, seed=n)])
    assert fired <= 0.075


def test_an_obvious_shift_is_found_in_every_window() -> None:
    shifted = np.array([1e-4, *np.linspace(0.02, 0.18, 10), 1e-4, 0])
    shifted /= shifted.sum()
    R = _reference(22)
    for C in _windows(200, 22, 50, seed=3):
        C[:4] = _windows(200, 4, 1, seed=int(C[0, 1]), weights=shifted)[0]
        p = measures.window_p(C, R)
        assert measures.simes(p) < 1e-4
        assert measures.bh(p)[:4].any()
        assert not measures.bh(p)[4:].all()


def test_missing_values_are_found_in_a_window_of_fifty() -> None:
    C, R = _windows(50, 22, 1, seed=5)[0], _reference(22)
    C[7, 12], C[7, 5] = 4, max(0, C[7, 5] - 4)
    assert np.argmin(measures.window_p(C, R)) == 7
    assert measures.simes(measures.window_p(C, R)) < 1e-3


def test_channels_of_different_widths_share_one_rectangle() -> None:
    C = measures.pad([[0, 5, 5, 0, 0], [3, 7], [0] * 12])
    R = measures.pad([[1, 500, 500, 1, 0], [300, 700], [10] * 12])
    alone = [float(measures.window_p(C[i : i + 1, :w], R[i : i + 1, :w])[0]) for i, w in enumerate((5, 2, 12))]
    np.testing.assert_allclose(measures.window_p(C, R), alone)
    assert measures.window_p(C, R)[2] == 1.0, "a channel that counted nothing says nothing"


def test_the_detector_rarely_alarms_on_null_streams_and_soon_on_shifted_ones() -> None:
    rng = np.random.default_rng(11)
    A = detectors.threshold(horizon=200, streams=1, alpha=0.1)

    def first_alarm(shift: float) -> int | None:
        detector = detectors.Detector()
        for i, z in enumerate(rng.standard_normal(200) + shift):
            detector = detectors.advance(detector, float(norm.sf(z)))
            if detector.level >= A:
                return i + 1
        return None

    assert sum(first_alarm(0.0) is not None for _ in range(100)) <= 10
    delays = [first_alarm(2.0) for _ in range(20)]
    assert all(d is not None and d <= 12 for d in delays)


def test_impossible_and_certain_p_values_keep_the_detector_finite() -> None:
    detector = detectors.Detector()
    for p in [0.0] * 500 + [1.0] * 500 + [0.0] * 3:
        detector = detectors.advance(detector, p)
        assert not np.isnan(detector.level)
    assert detector.level > np.log(1e4)


def test_effect_sizes_have_their_known_values() -> None:
    assert effects.js_distance([[10, 0]], [[0, 10]])[0] == pytest.approx(1.0)
    assert effects.js_distance([[5, 5]], [[500, 500]])[0] == pytest.approx(0.0)
    assert effects.js_distance([[0, 0]], [[5, 5]])[0] == 0.0
    # 0.2, the usual limit, is about what chance gives a window of 50: the limit has to know n
    assert effects.psi_crit(50, 20_000, 11) > 0.2 > 10 * effects.psi_crit(5000, 20_000, 11)


def test_e_bh_lists_many_moderate_devices_where_one_alone_would_not_count() -> None:
    assert not measures.ebh(np.log([30.0, 1, 1, 1])).any()
    assert measures.ebh(np.log([30.0, 30, 30, 1])).tolist() == [True, True, True, False]
