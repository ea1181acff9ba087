"""When a device knows the day, so that what comes with the evening is no drift: small sites on lamps, hour by hour."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgewright_hub.drift import hours, skew
from edgewright_hub.drift.budget import Budget
from edgewright_hub.drift.groups import DriftPolicy, Group
from edgewright_hub.drift.moves import Channels
from edgewright_hub.drift.streams import _NUMBERS, _SINCE, OWN

HOUR_MS = 3600_000
MONDAY = 2931 * 7 * 24 + 4 * 24  # hour of the epoch, midnight UTC
CELLS = 12
CHANNELS = Channels(names=("a", "b"), kinds=("numeric",) * 2, widths=(CELLS,) * 2)
WEIGHTS = np.r_[1e-4, np.full(10, 0.09998), 1e-4]
ROWS = 240
DEVICES = 4

Hours = Callable[[int], bool]  # by the hour since Monday began


def always(_: int) -> bool:
    return True


def lamps(hour: int) -> bool:
    return hour % 24 >= 18 or hour % 24 < 6


def never(_: int) -> bool:
    return False


class Site:
    """Devices with a block each hour. Whoever is woken acknowledges at once; tickets wait."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        reference = np.maximum(np.rint(WEIGHTS * 20_000), 1)
        self.group = Group(DriftPolicy(), CHANNELS, [reference] * 2)
        self.need = Budget(1.0).device_need(DEVICES)
        self.pages: list[int] = []  # hours

    def live(
        self, begin: int, end: int, *, runs: Hours = always, lit: Hours = never, who: Sequence[int] = range(DEVICES)
    ) -> None:
        """From one hour since Monday began to another."""
        every = np.array([self.group.baselines.enter(f"pi-{i}", "lab") for i in who])
        for hour in filter(runs, range(begin, end)):
            weights = WEIGHTS * np.exp((2.0 if lit(hour) else 0.0) * np.linspace(-1, 1, CELLS))
            cells = self.rng.multinomial(ROWS, weights / weights.sum(), (every.size, 2))
            when = np.full(every.size, (MONDAY + hour) * HOUR_MS)
            self.group.take(every, cells, np.full(every.size, ROWS), when, np.full(every.size, HOUR_MS))
            s = self.group.streams
            s.alarm[every] |= (self.group.log_e(every) >= self.need) & s.tested[every]
            woken = every[s.alarm[every] & s.day[every]]
            self.pages += [hour] * woken.size
            s.rest(woken)

    def restart(self) -> None:
        """A hub that comes back with what it stored."""
        before = self.group
        kept = before.streams.pack(np.arange(len(before.streams.devices)))
        self.group = Group(before.policy, CHANNELS, list(before.baselines.training))
        for device, data in zip(before.streams.devices, kept, strict=True):
            assert self.group.streams.unpack(self.group.baselines.enter(device, "lab"), data)
        self.group.unpack_dispersion(before.pack_dispersion())
        self.group.baselines.pool()

    @property
    def know(self) -> list[bool]:
        return [bool(one) for one in self.group.streams.day[: len(self.group.streams.devices)]]


NOON = 4 * 24 + 12  # of a Friday


def test_a_fleet_installed_at_noon_takes_the_evening_for_normal() -> None:
    site = Site()
    site.live(NOON, NOON + 72, lit=lamps)
    assert site.pages == []
    shifted = Site()
    shifted.live(NOON, NOON + 72)
    shifted.live(NOON + 72, NOON + 78, lit=always)
    assert shifted.pages[:DEVICES] == [NOON + 72] * DEVICES, "what comes later is found at once"


@pytest.mark.parametrize("before", [24, 21 * 24])
@pytest.mark.parametrize("who", [range(DEVICES), range(1)])
def test_a_test_on_the_bench_the_day_before_is_no_day(who: Sequence[int], before: int) -> None:
    site = Site()
    site.live(NOON - before, NOON - before + 1, who=who)
    site.live(NOON, NOON + 48, lit=lamps)
    assert site.pages == []
    assert all(site.know)
    assert site.group.streams.young[:DEVICES].all(), "days in a drawer are none of the fourteen"


def test_a_weekend_without_power_teaches_nothing_of_the_day() -> None:
    site, monday = Site(), 7 * 24
    site.live(NOON, NOON + 3)
    site.restart()
    site.live(monday + 12, monday + 34, lit=lamps)
    site.restart()
    assert not any(site.know)
    site.live(monday + 34, monday + 38, lit=lamps)
    assert all(site.know)
    site.live(monday + 38, monday + 84, lit=lamps)
    assert site.pages == []


def test_a_window_that_comes_late_makes_no_day() -> None:
    site = Site()
    site.live(NOON, NOON + 3)
    site.live(NOON - 30, NOON - 29)
    site.live(NOON + 3, NOON + 60, lit=lamps)
    assert site.pages == []


def test_a_plant_that_rests_at_night_knows_its_day_when_its_hours_came_again() -> None:
    site = Site()
    shift = lambda hour: 8 <= hour % 24 < 16  # noqa: E731
    site.live(8, 2 * 24 + 12, runs=shift)
    assert not any(site.know)
    site.live(2 * 24 + 12, 3 * 24, runs=shift)
    assert all(site.know)
    site.live(3 * 24, 4 * 24, runs=shift, lit=always)
    assert site.pages[:DEVICES] == [3 * 24 + 8] * DEVICES


def test_one_device_does_not_end_the_first_day_of_a_fleet() -> None:
    site = Site()
    site.live(12, 24, who=[0], lit=lamps)
    site.live(24, 42, lit=lamps)
    assert site.group.first_day is not None
    assert site.know == [False] * DEVICES, "the first waits for the others"
    site.live(42, 96, lit=lamps)
    assert site.group.first_day is None
    assert site.know == [True] * DEVICES
    assert site.pages == []


def test_a_device_that_differs_when_it_comes_into_an_old_fleet_is_not_paged_for_its_first_day() -> None:
    """Its blocks began anew after three hours: the first whole day is all that its baseline has, but for these."""
    site, morning = Site(), 7 * 24 + 6
    site.live(12, morning, who=range(DEVICES - 1), lit=lamps)
    site.live(morning, morning + 3, lit=lamps)
    skew.begin_past(site.group, DEVICES - 1)
    site.live(morning + 3, 9 * 24, lit=lamps)
    assert site.know == [True] * DEVICES
    assert site.pages == []


def test_devices_that_run_for_an_hour_a_day_do_not_hold_up_the_others() -> None:
    site = Site()
    for hour in range(25):
        site.live(hour, hour + 1, who=range(DEVICES) if hour % 24 == 9 else [0], lit=lamps)
    assert site.know == [True, False, False, False]


def test_a_device_that_runs_at_any_hour_knows_what_it_will_know_after_fourteen_days() -> None:
    site = Site()
    own = [24 * day + (7 * day * day) % 23 for day in range(16)]
    runs = lambda hour: hour in own  # noqa: E731
    site.live(0, 14 * 24, runs=runs)
    assert not any(site.know)
    site.live(14 * 24, 15 * 24, runs=runs)
    assert all(site.know)
    assert not site.group.streams.young[:DEVICES].any()


def test_a_new_normal_knows_the_hours_that_it_was_made_of() -> None:
    site = Site()
    site.live(0, 30)
    site.live(30, 36, lit=always)
    s = site.group.streams
    site.live(36, 42, lit=always, who=[1, 2, 3])
    s.alarm[0] = True
    before = int(hours.count(s.hours[:1, OWN])[0])
    site.group.accept(0)
    assert (before, site.know[0]) == (24, False)
    assert hours.count(s.hours[:1, OWN])[0] < 24
    site.live(36, 66, lit=always)
    assert site.know[0]


def test_streams_of_an_earlier_release_are_read() -> None:
    site = Site()
    site.live(0, 12)
    s, one = site.group.streams, np.array([0])
    plain = zlib.decompress(s.pack(one)[0])
    sizes = [int(np.prod(shape, dtype=int)) for _, shape, _, _ in _NUMBERS]
    kept, all_numbers = 8 * sum(sizes[:-_SINCE]), 8 * sum(sizes)
    older = zlib.compress(plain[:kept] + plain[all_numbers:])
    later = Site()
    at = later.group.baselines.enter("pi-0", "lab")
    later.group.streams.day[at] = True
    assert later.group.streams.unpack(at, older)
    mine = later.group.streams
    assert np.array_equal(mine.counts[at], s.counts[0])
    assert (mine.own_blocks[at], mine.heard_ms[at], mine.day[at]) == (s.own_blocks[0], s.heard_ms[0], False)
    assert (mine.days[at], mine.hours[at].any()) == (1, False), "its day is to be seen from here on"
    assert not mine.unpack(at, zlib.compress(plain[:kept])), "of channels that are not its own"


@pytest.mark.parametrize(
    ("begin", "end", "hour"),
    [
        (0, 1, {0}),
        (0.5, 1.01, {0, 1}),
        (23.5, 24.2, {23, 0}),
        (5, 5, {5}),
        (47, 49.5, {23, 0, 1}),
        (3, 40, set(range(24))),
    ],
)
def test_a_window_touches_the_hours_of_the_day_that_it_lies_in(begin: float, end: float, hour: set[int]) -> None:
    bits = hours.touched(np.array([int(begin * HOUR_MS)]), np.array([int(end * HOUR_MS)]))
    assert {one for one in range(24) if bits[0] >> one & 1} == hour
    assert hours.count(bits).tolist() == [len(hour)]
