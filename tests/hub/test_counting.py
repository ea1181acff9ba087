from __future__ import annotations

import random

import pytest

from edgewright_hub.ingest.counting import Spool, ack, count, counted


def _count_all(spool: Spool, numbers: list[int]) -> tuple[Spool, list[int]]:
    taken = []
    for seq in numbers:
        if not counted(spool, seq):
            taken.append(seq)
        spool = count(spool, seq)
    return spool, taken


@pytest.mark.parametrize("seed", range(50))
def test_every_number_is_counted_once_whatever_comes_twice_late_or_in_another_order(seed: int) -> None:
    rng = random.Random(seed)
    spool, taken, waiting, following = Spool(), [], [], 1
    while following <= 300 or waiting:
        while len(waiting) < 16 and following <= 300:  # a device has at most 16 unacknowledged
            waiting.append(following)
            following += 1
        delivered = [rng.choice(waiting) for _ in range(rng.randint(1, 30))]
        spool, new = _count_all(spool, delivered)
        taken += new
        if rng.random() < 0.3:
            waiting = [seq for seq in waiting if seq not in ack("a" * 16, spool)]
    assert sorted(taken) == list(range(1, 301))
    assert spool == Spool(300, 0, 0)


def test_sixteen_in_flight_backwards() -> None:
    spool, taken = _count_all(Spool(), list(range(16, 0, -1)))
    assert (len(taken), spool) == (16, Spool(16, 0, 0))


def test_a_restored_hub_moves_its_window_up_and_records_the_gap_as_lost() -> None:
    spool = Spool(high_water=100, mask=0b1000)  # 104 was counted too
    after = count(spool, 500)
    assert after.high_water == 436
    assert after.lost == 436 - 100 - 1
    assert counted(after, 500)
    assert not counted(after, 499)
    after, taken = _count_all(after, list(range(485, 520)))
    assert 500 not in taken
    assert len(taken) == 34


def test_a_restored_hub_that_is_a_little_behind_still_frees_what_it_counts() -> None:
    spool = count(Spool(high_water=100), 131)
    assert 131 in ack("a" * 16, spool)
    assert 130 not in ack("a" * 16, spool)


def test_a_jump_by_exactly_the_width_of_the_mask() -> None:
    assert count(Spool(), 64) == Spool(0, 1 << 63, 0)
    assert count(Spool(), 65) == Spool(1, 1 << 63, 1)
