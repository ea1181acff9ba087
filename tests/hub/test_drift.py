"""The window test keeps its false-alarm rate, finds shifts, and agrees with reference values made by other code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgewright_hub.drift import detectors, effects, measures
from edgewright_hub.drift.dispersion import Dispersion
from edgewright_hub.drift.feed import CHANNELS as FEED
from edgewright_hub.drift.groups import DriftPolicy, Group
from edgewright_hub.drift.references import References
from edgewright_hub.drift.watch import GroupKey, Watch

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
    log_r = detectors.fresh(1)
    for p, level, alarm in case["trace_p_meanR_alarm"]:
        log_r = detectors.advanced(log_r, detectors.score([p]))
        assert np.exp(detectors.level(log_r)[0]) == pytest.approx(level, rel=1e-9)
        assert (detectors.level(log_r)[0] >= np.log(case["A"])) == alarm


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


def test_rare_cells_of_any_number_are_judged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One term after the other would take hours, which one device could cost the whole fleet."""
    R = np.array([[500.0, 499, 1], [2e12, 1e12, 0]])
    huge = measures.window_p(np.array([[1e12, 0, 2**40], [3.0, 4, 2**40]]), R)
    assert (huge < 1e-3).all()
    C = np.array([[8e5, 8e5, 5e3], [8e5, 8e5, 3e4]])
    close = measures.window_p(C, np.tile([1000.0, 999, 1], (2, 1)))
    monkeypatch.setattr(measures, "WIDE", np.inf)
    assert close == pytest.approx(measures.window_p(C, np.tile([1000.0, 999, 1], (2, 1))), rel=0.02)


def test_channels_of_different_widths_share_one_rectangle() -> None:
    C = measures.pad([[0, 5, 5, 0, 0], [3, 7], [0] * 12])
    R = measures.pad([[1, 500, 500, 1, 0], [300, 700], [10] * 12])
    alone = [float(measures.window_p(C[i : i + 1, :w], R[i : i + 1, :w])[0]) for i, w in enumerate((5, 2, 12))]
    np.testing.assert_allclose(measures.window_p(C, R), alone)
    assert measures.window_p(C, R)[2] == 1.0, "a channel that counted nothing says nothing"


def _first_alarms(z: np.ndarray, log_a: float) -> np.ndarray:
    """Of streams float64[blocks, streams]; inf of those without an alarm."""
    log_r, first = detectors.fresh(z.shape[1]), np.full(z.shape[1], np.inf)
    for i, scores in enumerate(z):
        log_r = detectors.advanced(log_r, scores)
        first = np.where((detectors.level(log_r) >= log_a) & np.isinf(first), i + 1, first)
    return first


def test_the_detector_rarely_alarms_on_null_streams_and_soon_on_shifted_ones() -> None:
    z = np.random.default_rng(11).standard_normal((200, 500))
    assert np.isfinite(_first_alarms(z, np.log(2000))).mean() <= 0.1, "at most T / A"
    assert _first_alarms(z + 2, np.log(2000)).max() <= 12


def test_scales_share_the_months_chance_of_a_false_alarm() -> None:
    log_r = detectors.fresh(1, 4)
    per_month = np.array([8640.0, 720, 120, 30])
    log_r[0, :, :] = np.log(per_month)[:, None]  # as large as it is expected to be at the end of a null month
    assert detectors.log_e(log_r, per_month[None])[0] == pytest.approx(0.0)
    only = detectors.fresh(1, 4)
    only[0, 0] = log_r[0, 0]
    assert detectors.log_e(only, per_month[None])[0] == pytest.approx(np.log(0.5))


def test_scores_of_blocks_that_follow_each_other_are_whitened() -> None:
    rng, rho = np.random.default_rng(3), 0.6
    z = np.zeros((400, 200))
    for i in range(1, 400):
        z[i] = rho * z[i - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(200)
    white = detectors.whitened(z[1:], z[:-1], rho)
    high = z[:-1] > 0
    assert white[high].mean() == pytest.approx(0, abs=0.02)
    assert white[high].std() == pytest.approx(np.sqrt(1 - rho**2), abs=0.02)
    assert white[~high].mean() < 0, "what was low does not lift the next block"
    need, T_over_A = np.log(4000), 0.1
    assert (
        np.isfinite(_first_alarms(z, need)).mean() > 2 * T_over_A > 2 * np.isfinite(_first_alarms(white, need)).mean()
    )


def test_impossible_and_certain_p_values_keep_the_detector_finite() -> None:
    log_r = detectors.fresh(1)
    for p in [0.0] * 500 + [1.0] * 500 + [0.0] * 3:
        log_r = detectors.advanced(log_r, detectors.score([p]))
        assert np.isfinite(log_r).all()
    assert detectors.level(log_r)[0] > np.log(1e4)


def test_effect_sizes_have_their_known_values() -> None:
    assert effects.js_distance([[10, 0]], [[0, 10]])[0] == pytest.approx(1.0)
    assert effects.js_distance([[5, 5]], [[500, 500]])[0] == pytest.approx(0.0)
    assert effects.js_distance([[0, 0]], [[5, 5]])[0] == 0.0
    # 0.2, the usual limit, is about what chance gives a window of 50: the limit has to know n
    assert effects.psi_crit(50, 20_000, 11) > 0.2 > 10 * effects.psi_crit(5000, 20_000, 11)


def test_e_bh_lists_many_moderate_devices_where_one_alone_would_not_count() -> None:
    assert not measures.ebh(np.log([30.0, 1, 1, 1])).any()
    assert measures.ebh(np.log([30.0, 30, 30, 1])).tolist() == [True, True, True, False]


def test_a_distance_that_chance_explains_is_no_distance() -> None:
    R = _reference(1)
    small, large = ([effects.js_beyond_chance(C, R)[0] for C in _windows(n, 1, 200, seed=n)] for n in (200, 20_000))
    assert effects.js_distance(_windows(200, 1, 1, seed=1)[0], R)[0] > 0.05
    assert np.mean(np.array(small) >= 0.05) < 0.25, "of the plain distances nearly all are"
    assert max(large) < 0.05


def test_the_dispersion_of_scenes_is_measured_and_makes_their_windows_calibrated() -> None:
    R, rng = _reference(4), np.random.default_rng(2)
    null = np.concatenate(([1e-4], np.full(10, 0.09998), [1e-4, 0]))
    scenes = 10 * rng.multinomial(40, null, size=(400, 4))  # 40 scenes of ten equal frames
    spread = Dispersion.empty(1, 1, 4)
    found = measures.pearson(scenes.reshape(-1, 13), np.tile(R, (400, 1)))
    assert (measures.simes_rows(measures.p_values(found).reshape(400, 4)) < 0.01).mean() > 0.9
    spread.add(0, 0, found, np.ones(400, bool), np.ones(400))
    assert spread.c_f(0, 0) == pytest.approx(np.full(4, 10 * 1.05), rel=0.15)
    p = measures.simes_rows(spread.p_values(0, 0, found, np.ones(400)))
    assert (p < 0.05).mean() <= 0.075


def test_a_dispersion_of_few_blocks_takes_no_first_strange_block_for_proof() -> None:
    rng, trials = np.random.default_rng(5), 100_000
    blocks, one = 3 * rng.chisquare(1, (12, trials)), 3 * rng.chisquare(1, trials)
    mean = blocks.mean(0)
    known = measures.above(one, mean, 2 * mean**2, None)
    measured = measures.above(one, mean, 2 * mean**2, 12)
    assert (measured < 1e-3).mean() == pytest.approx(1e-3, rel=0.3)
    assert (known < 1e-3).mean() > 3e-3
    exact = measures.above(one, mean, 2 * mean**2, 1e7)
    np.testing.assert_allclose(exact, known, rtol=1e-3)


def test_a_new_stream_has_its_share_of_the_budget_before_it_is_tested() -> None:
    watch = Watch(DriftPolicy(), References(Path()))
    assert (watch.watched(), watch.watched_cohorts()) == (1, 1)
    group = watch.groups[GroupKey("d", "v", "", "input")] = Group(DriftPolicy(), FEED)
    watch.belong({"a": ("lab", "door"), "b": ("lab",)})
    for device in ("a", "b"):
        group.baselines.enter(device, "lab")
    assert (watch.watched(), watch.watched_cohorts()) == (2, 2)
    group.streams.ended[0] = True
    assert watch.watched() == 1


def test_what_dispersion_knows_survives_as_bytes() -> None:
    spread, again = Dispersion.empty(2, 3, 4), Dispersion.empty(2, 3, 4)
    spread.add(1, 2, measures.pearson(_windows(200, 4, 1, 1)[0], _reference(4)), np.ones(1, bool), np.ones(1))
    again.unpack(spread.pack())
    np.testing.assert_array_equal(again.c_f(1, 2), spread.c_f(1, 2))
    again.unpack(b"of another release")
    np.testing.assert_array_equal(again.c_f(1, 2), spread.c_f(1, 2))
