"""Who dominates whom, in the comparison with other tools (benchmarks/peers)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from peers.comparison import (
    BARE,
    BETTER,
    ON_BARE,
    ON_STUDENT,
    OURS,
    WORSE,
    Measured,
    by_chance,
    compared,
    counts,
    reported,
)
from scipy.stats import binomtest

N = 1000
SLOW = tuple(float(us) for us in range(100, 140))
FAST = tuple(us - 20 for us in SLOW)
MIXED = tuple(us + (1 if i % 2 else -1) for i, us in enumerate(SLOW))


def one(wrong: range = range(0), *, size: int = 100, p50_us: tuple[float, ...] = SLOW) -> Measured:
    right = np.ones(N)
    right[list(wrong)] = 0
    return Measured(right, size, p50_us)


@pytest.mark.parametrize(
    ("ours", "peer", "signs", "verdict"),
    [
        (one(), one(), (0, 0, 0), "neither"),
        (one(size=90), one(), (0, 1, 0), BETTER),
        (one(p50_us=FAST), one(), (0, 0, 1), BETTER),
        (one(p50_us=MIXED), one(), (0, 0, 0), "neither"),
        (one(), one(range(40)), (1, 0, 0), BETTER),
        (one(range(40)), one(), (-1, 0, 0), WORSE),
        (one(range(40), size=90), one(), (-1, 1, 0), "neither"),
        (one(range(2)), one(size=101), (0, 1, 0), BETTER),  # two rows of a thousand may be chance
        (one(size=101), one(p50_us=FAST), (0, -1, -1), WORSE),
    ],
)
def test_one_dominates_that_is_as_good_in_all_and_better_in_one(
    ours: Measured, peer: Measured, signs: tuple[int, int, int], verdict: str
) -> None:
    found = compared(ours, peer)
    assert ((found.accuracy, found.bytes, found.p50), found.verdict) == (signs, verdict)


def test_as_many_rows_won_as_lost_are_equal_however_many() -> None:
    found = compared(one(range(200)), one(range(200, 400)))
    assert found.accuracy == 0
    assert found.low == pytest.approx(-found.high)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 5), (1, 9), (40, 20), (0, 12)])
def test_the_sign_test_is_the_binomial_one(a: int, b: int) -> None:
    assert by_chance(a, b) == pytest.approx(binomtest(a, a + b).pvalue if a + b else 1.0)


def rows(**others: Measured) -> dict[str, dict[str, Any]]:
    peer = others.get("peer", one(size=400, p50_us=SLOW))
    nets = {OURS: one(size=100, p50_us=FAST), BARE: one(size=80, p50_us=FAST)}
    on_student = others.get("on_student", one(size=120, p50_us=SLOW))
    on_bare = others.get("on_bare", one(size=110, p50_us=SLOW))
    return reported({**nets, "peer": peer, "peer" + ON_STUDENT: on_student, "peer" + ON_BARE: on_bare}, ["peer"])


def test_a_peer_without_a_monitor_that_dominates_ours_with_one_does_less_and_is_no_defeat() -> None:
    found = counts({"r": rows(on_bare=one(size=90, p50_us=FAST))}, ["peer"])
    assert (found["dominated"], found["dominated_by_less"], found["dominates_on_teacher"]) == (0, 1, 1)


def test_a_peer_that_dominates_on_equal_terms_is_a_defeat() -> None:
    assert counts({"r": rows(on_bare=one(size=70, p50_us=FAST))}, ["peer"])["dominated"] == 1
    assert counts({"r": rows(on_student=one(size=90, p50_us=FAST))}, ["peer"])["dominated"] == 1
    assert counts({"r": rows(), "s": rows()}, ["peer"]) == {
        "dominated": 0,
        "dominated_by_less": 0,
        "dominates_on_teacher": 2,
        "within_a_point_on_teacher": 2,
        "peers": 1,
        "total": 2,
    }


def test_less_accurate_than_the_teachers_file_is_told_from_within_the_promised_point() -> None:
    better = one(size=400, p50_us=SLOW)
    worse = {OURS: one(range(6), p50_us=FAST), BARE: one(range(6), p50_us=FAST)}
    others = {name: one(range(6), size=120) for name in ("peer" + ON_STUDENT, "peer" + ON_BARE)}
    found = counts({"r": reported({**worse, "peer": better, **others}, ["peer"])}, ["peer"])
    assert (found["dominates_on_teacher"], found["within_a_point_on_teacher"]) == (0, 0)
