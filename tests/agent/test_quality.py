"""A package on probation is told from the one before it by what it does, and never by chance alone."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_agent.updating import quality
from edgewright_agent.updating.quality import PrePeriod, Seen
from edgewright_contracts import baseline, binning
from edgewright_contracts.channels import Binner, Channel, Source
from edgewright_contracts.report import Window

CHANNELS = (
    Channel(name="brightness", group="input", kind="numeric", source=Source("monitor"), edges=(0, 1)),
    Channel(name="output.confidence", group="output", kind="score", source=Source("probabilities", "max")),
)


def cells(confidences) -> np.ndarray:
    binner = Binner(CHANNELS)
    p = np.asarray(confidences, np.float32)[:, None]
    binner.add({"monitor": np.zeros_like(p), "probabilities": p})
    return binner.take()


def reference(low: int, of: int = 1000):
    return baseline.make(CHANNELS, cells([0.3] * low + [0.9] * (of - low)), of)


def window(n=100, errors=0, rejected=0, confidences=()) -> Window:
    return Window(
        boot_id="1" * 16, mono_start_ms=0, mono_end_ms=1, wall_start_ms=None, clock="unknown", next_due_s=1,
        digest="d" * 16, variant="onnx-fp32", edge_hash="e" * 16, phase="probation", n=n,
        errors={"ValueError": errors} if errors else {}, rejected={"range": rejected} if rejected else {},
        n_monitored=len(confidences), cells=binning.pack(cells(confidences)) if len(confidences) else b"",
    )  # fmt: skip


def test_an_answer_without_a_number_is_an_unsure_one_and_half_is_not_low():
    found = quality.seen([window(confidences=[0.1, 0.499, 0.5, 0.9, np.nan])], reference(1))
    assert (found.scored, found.low) == (5, 3)
    assert quality.seen([window()], reference(1)).scored == 0


def test_a_package_that_became_unsure_is_told():
    usual = reference(20)
    before = quality.remembered(PrePeriod(), Seen(5000, 0, 0, 5000, 100), usual)
    assert quality.worse(Seen(300, 0, 0, 300, 9), before, usual) == ""
    told = quality.worse(Seen(300, 0, 0, 300, 90), before, usual)
    assert told == "answers of low confidence: 90 of 300, against 100 of 5000 before"


def test_a_package_may_be_as_unsure_as_it_was_of_its_own_reference():
    before = quality.remembered(PrePeriod(), Seen(5000, 0, 0, 5000, 100), reference(20))
    assert quality.worse(Seen(300, 0, 0, 300, 36), before, reference(20))
    assert quality.worse(Seen(300, 0, 0, 300, 36), before, reference(120)) == ""


def test_without_a_confidence_before_or_now_none_is_judged():
    unsure = Seen(300, 0, 0, 300, 300)
    assert quality.worse(unsure, PrePeriod(5000), reference(20)) == ""
    assert quality.worse(unsure, PrePeriod(), reference(20)) == ""
    before = quality.remembered(PrePeriod(), Seen(5000, 0, 0, 5000, 100), reference(20))
    assert quality.worse(Seen(300), before, None) == ""


def test_a_few_inferences_before_do_not_excuse_a_package_that_always_fails():
    assert quality.worse(Seen(60, 60), PrePeriod(3), None).startswith("errors: 60 of 60")
    assert quality.worse(Seen(60, 36), PrePeriod(10, 6), None) == ""  # but it failed as often before


def test_a_device_whose_errors_come_in_bursts_is_allowed_more():
    even, bursts = PrePeriod(), PrePeriod()
    for i in range(40):
        even = quality.remembered(even, Seen(100, 1), None)
        bursts = quality.remembered(bursts, Seen(100, 20 if i % 20 == 0 else 0), None)
    assert (even.errors, even.n) == (bursts.errors, bursts.n)
    assert quality.dispersion(0, even) == 1
    assert quality.dispersion(0, bursts) > 15
    assert quality.worse(Seen(100, 20), even, None)
    assert quality.worse(Seen(100, 20), bursts, None) == ""


def test_a_period_fades_by_halves_and_keeps_its_rates_and_dispersion():
    period = PrePeriod()
    for i in range(2001):
        period = quality.remembered(period, Seen(50, i % 2 * 4), None)
        if i == 1990:
            long = period
    assert 50_000 <= period.n < 51_000
    assert period.errors / period.n == pytest.approx(long.errors / long.n, rel=0.01)
    assert quality.dispersion(0, period) == pytest.approx(quality.dispersion(0, long), rel=0.01)


def test_looking_after_every_window_blames_a_good_package_no_oftener_than_promised():
    """Rates of 1 %, of which the period before is one more sample: 200 probations of 100 windows."""
    rng, blamed = np.random.default_rng(4), 0
    for _ in range(200):
        before = PrePeriod(3000, int(rng.poisson(30)), int(rng.poisson(30)), 3000, int(rng.poisson(30)))
        sums = np.cumsum(rng.poisson(0.6 * 1.1, (100, 3)), axis=0)  # as much worse as the margin allows
        blamed += any(
            quality.worse(Seen(60 * i, *map(int, (e, r)), 60 * i, int(low)), before, None)
            for i, (e, r, low) in enumerate(sums, 1)
        )
    assert blamed <= quality.ALPHA * 200


def test_ten_times_the_errors_are_found_in_minutes_and_five_times_within_the_hour():
    rng, missed = np.random.default_rng(5), 0
    for times, minutes in ((10, 8), (5, 60)) * 50:
        before, now, found = PrePeriod(3000, int(rng.poisson(30))), Seen(), False
        for _ in range(minutes):
            now = now.plus(Seen(60, int(rng.poisson(0.6 * times))))
            found = found or bool(quality.worse(now, before, None))
        missed += not found
    assert missed <= 2
