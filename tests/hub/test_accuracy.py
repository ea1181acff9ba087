"""Expected accuracy covers the truth while what was learnt holds, labels sharpen it, and tell when it does not."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_contracts.channels import SCORE_BINS, SCORE_ONE
from edgewright_hub.accuracy.change import newest
from edgewright_hub.accuracy.expected import TRUST, Slice, combined, expected
from edgewright_hub.accuracy.outcomes import rate

BINS = 10


class World:
    """A model whose calibration errs as much as a package's may, on devices that differ."""

    def __init__(self, seed: int, *, devices: int = 30, skill: float = 8.0, error: float = 1.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.devices, self.skill = devices, skill
        middle = (np.arange(BINS) + 0.5) / BINS
        sd = error * np.sqrt(middle * (1 - middle) / TRUST)
        self.gap = sd * (self.rng.standard_normal() + self.rng.standard_normal(BINS)) / np.sqrt(2)

    def live(
        self, n: int, *, label: float = 0.0, labelled_devices: int | None = None, harm: float = 0.0
    ) -> tuple[Slice, float]:
        """What is counted, and the share that was right. `harm`: share of answers that the world made wrong."""
        rng, d = self.rng, self.devices
        confidence = rng.beta(self.skill, 1.2, (d, n))
        wrong = 1 - float(confidence.mean())
        differs = 0.3 * wrong * rng.standard_normal((d, 1))
        tenth = np.minimum((confidence * BINS).astype(int), BINS - 1)
        right = rng.random((d, n)) < np.clip(confidence + self.gap[tenth] + differs, 0, 1)
        right &= rng.random((d, n)) >= harm
        labelled = rng.random((d, n)) < label
        if labelled_devices is not None:
            labelled[labelled_devices:] = False
        cell = np.minimum((confidence * SCORE_BINS).astype(int), SCORE_BINS - 1)
        bins = np.bincount(cell.ravel(), minlength=SCORE_BINS)
        cells = np.concatenate((bins, [0, round(float(confidence.sum()) * SCORE_ONE)])).astype(np.int64)
        flat = np.arange(d)[:, None] * BINS + tenth
        k = np.bincount(flat[labelled], minlength=d * BINS).reshape(d, BINS)
        h = np.bincount(flat[labelled & right], minlength=d * BINS).reshape(d, BINS)
        return Slice(cells, np.full(d, n), k, h), float(right.mean())


CASES = {
    "no label": {},
    "2 % labelled": {"label": 0.02},
    "20 % labelled": {"label": 0.2},
    "labels of 3 devices of 30": {"label": 0.2, "labelled_devices": 3},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [{"skill": 40.0}, {"skill": 2.0, "error": 0.0}, {"devices": 2}])
def test_the_interval_covers_the_truth_while_what_was_learnt_holds(case: str, world: dict) -> None:
    covered, widths = [], []
    for seed in range(100):
        counted, truth = World(seed, **world).live(200, **CASES[case])
        found = expected(counted)
        assert found is not None
        covered.append(found.low <= truth <= found.high)
        widths.append(found.high - found.low)
    assert np.mean(covered) >= 0.9
    assert np.mean(widths) < 0.25


def test_labels_sharpen_the_estimate_and_a_few_devices_do_so_less() -> None:
    width: dict[str, float] = {}
    off: dict[str, float] = {}
    for case, given in CASES.items():
        pairs = [World(seed).live(300, **given) for seed in range(60)]
        found = [(expected(counted), truth) for counted, truth in pairs]
        width[case] = float(np.mean([e.high - e.low for e, _ in found if e]))
        off[case] = float(np.mean([abs(e.value - truth) for e, truth in found if e]))
    assert width["20 % labelled"] < width["2 % labelled"] < width["no label"]
    assert width["20 % labelled"] < width["labels of 3 devices of 30"] < width["no label"]
    assert off["20 % labelled"] < off["no label"] / 2


def test_labels_tell_when_what_it_has_learnt_no_longer_holds_and_move_the_estimate() -> None:
    for seed in range(20):
        counted, truth = World(seed).live(300, label=0.1, harm=0.2)
        found = expected(counted)
        assert found is not None
        assert found.holds == "disagrees"
        assert found.low <= truth <= found.high
        unlabelled = expected(Slice(counted.confidence, counted.n, counted.labelled * 0, counted.hits * 0))
        assert unlabelled is not None
        assert unlabelled.holds == "no labels with confidence"
        assert unlabelled.low > truth, "without labels nobody can see it: the estimate is wrong then, as is written"
    held = [expected(World(seed).live(300, label=0.1)[0]) for seed in range(100)]
    assert sum(one is not None and one.holds == "disagrees" for one in held) <= 3


@pytest.mark.parametrize(("harm", "days"), [(0.2, 7), (0.4, 3)])
def test_after_a_collapse_the_labels_since_count_and_not_the_month_before(harm: float, days: int) -> None:
    told = []
    for seed in range(20):
        world = World(seed)
        before, _ = world.live(60 * (30 - days), label=0.02)
        since, _ = world.live(60 * days, label=0.02, harm=harm)
        now, truth = world.live(60, label=0.0, harm=harm)
        whole = Slice(now.confidence, now.n, before.labelled + since.labelled, before.hits + since.hits)
        recent = Slice(now.confidence, now.n, since.labelled, since.hits)
        found = expected(recent)
        assert found is not None
        told.append((newest(whole, {days: recent}) == days, found.holds == "disagrees", found.low < truth < found.high))
    chosen, disagrees, covered = np.mean(told, axis=0)
    assert min(chosen, disagrees) >= 0.95
    assert covered >= 0.85


def test_labels_of_what_did_not_change_are_seldom_left_out() -> None:
    chosen = 0
    for seed in range(200):
        world = World(seed)
        (before, _), (since, _) = world.live(60 * 23, label=0.02), world.live(60 * 7, label=0.02)
        whole = Slice(since.confidence, since.n, before.labelled + since.labelled, before.hits + since.hits)
        chosen += newest(whole, {7: since}) is not None
    assert chosen <= 2


def test_the_sum_makes_the_mean_confidence_exact() -> None:
    counted, _ = World(1).live(300)
    found = expected(counted)
    assert found is not None
    exact = counted.confidence[-1] / SCORE_ONE / counted.confidence[:SCORE_BINS].sum()
    assert found.confidence == pytest.approx(exact, abs=1e-9)


def test_answers_without_a_confidence_may_be_right_or_wrong() -> None:
    counted, _ = World(1).live(300)
    cells = counted.confidence.copy()
    cells[SCORE_BINS] = cells[:SCORE_BINS].sum()
    found, before = expected(Slice(cells, counted.n, counted.labelled, counted.hits)), expected(counted)
    assert found is not None
    assert before is not None
    assert (found.unknown, found.low, found.high) == (0.5, before.low / 2, before.high / 2 + 0.5)
    nothing = Slice(np.zeros(22, np.int64), counted.n, counted.labelled, counted.hits)
    assert expected(nothing) is None


def test_slices_together_are_no_surer_of_calibration_than_each() -> None:
    slices = [expected(World(seed).live(300)[0]) for seed in range(4)]
    parts = [one for one in slices if one]
    whole = combined(parts)
    assert whole is not None
    assert whole.n == sum(one.n for one in parts)
    assert whole.sd == pytest.approx(np.mean([one.sd for one in parts]))
    assert min(one.low for one in parts) <= whole.low <= whole.value <= whole.high
    assert combined([]) is None


def test_the_rate_of_an_outcome_is_wider_when_devices_differ() -> None:
    n = np.full(20, 100)
    alike = rate(n, np.full(20, 90))
    apart = rate(n, np.array([80, 100] * 10))
    assert (alike.value, alike.devices) == (0.9, 20)
    assert alike.low == pytest.approx(0.886, abs=0.002)
    assert apart.high - apart.low > 2.5 * (alike.high - alike.low)
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(300):
        p = rng.beta(9 / 0.4, 1 / 0.4, 20)
        found = rate(n, rng.binomial(100, p))
        inside += found.low <= 0.9 <= found.high
    assert inside >= 270
    assert (rate(n * 0, n * 0).low, rate(n * 0, n * 0).high) == (0.0, 1.0)


@pytest.mark.parametrize("hits", [0.0, 1e-9, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2**40, 2**53])
def test_numbers_that_nobody_can_have_counted_give_an_answer_too(n: int, hits: float) -> None:
    confidence = np.array([0] * 19 + [n, 0, n * SCORE_ONE], np.int64) if n < 2**50 else np.full(22, n // 20)
    labelled = np.array([[n] * BINS, [1] * BINS, [0] * BINS], np.int64)
    one = expected(Slice(confidence, np.array([n, 1, 1]), labelled, (labelled * hits).astype(np.int64)))
    both = combined([one, one]) if one else None
    assert one is not None
    assert both is not None
    for found in (one, both):
        assert 0 <= found.low <= found.value <= found.high <= 1
