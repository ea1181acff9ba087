"""What is given up, in which order, and when it comes back."""

from __future__ import annotations

import itertools

import pytest

from edgewright_agent.limits.governor import (
    RELIEF,
    SETTLE_S,
    Held,
    Readings,
    Step,
    advance,
    profiled,
    relieved,
    told,
)
from edgewright_contracts.desired import Config, Limits

LIMITED = Config(
    bytes_per_day=1000,
    limits=Limits(rss_mb=100, cpu_permille=50, temperature_c=80, written_per_day=1000),
)
EASY = Readings(50, 10, 40, 0, 0)


def after(seconds, readings, held=None, config=LIMITED):
    """The state after so long with these readings, looked at every 10 s."""
    held, now = held or Held(), 0.0
    while now <= seconds:
        held = advance(held, readings, config, now)
        now += 10
    return held


@pytest.mark.parametrize(
    ("readings", "steps"),
    [
        (EASY, ""),
        (EASY._replace(rss_mb=101), "samples shadow install"),
        (EASY._replace(background_permille=51), "shadow install channels"),
        (EASY._replace(temperature_c=80.5), "samples shadow install channels"),
        (EASY._replace(link_bytes=599), ""),
        (EASY._replace(link_bytes=600), "samples"),
        (EASY._replace(link_bytes=800), "samples windows"),
        (EASY._replace(link_bytes=1000), "samples windows reports"),
        (EASY._replace(written_bytes=800), "samples windows"),
        (EASY._replace(written_bytes=5000), "samples windows install"),
        (EASY._replace(temperature_c=81, link_bytes=1000), "samples shadow install channels windows reports"),
    ],
)
def test_what_is_given_up_in_the_end(readings, steps):
    assert {s.value for s in after(600, readings).steps} == set(steps.split())


def test_counts_errors_labels_and_events_are_in_no_row_of_the_table():
    assert {s for row in RELIEF.values() for s in row} == set(Step)
    assert not {"counts", "errors", "outcomes", "events"} & set(Step)


def test_a_level_takes_one_step_at_a_time_and_comes_back_the_same_way():
    hot, warm, cool = (EASY._replace(temperature_c=c) for c in (81, 78, 74))
    held, depths = Held(), []
    for now in range(0, 400, 10):
        held = advance(held, hot if now < 150 else warm if now < 250 else cool, LIMITED, now)
        depths.append(held.depth["temperature"])
    assert depths[: int(SETTLE_S) // 10 + 1] == [1, 1, 1, 2]
    assert depths[14] == 4
    assert set(depths[15:25]) == {4}  # below the limit, but not enough to come back
    assert depths[25:36:3] == [3, 2, 1, 0]
    assert all(abs(a - b) <= 1 for a, b in itertools.pairwise(depths))


def test_without_a_reading_nothing_changes_and_without_a_limit_nothing_is_held():
    held = after(600, EASY._replace(temperature_c=90))
    blind = Readings(None, None, None, 0, 0)
    assert after(600, blind, held).depth["temperature"] == 4
    assert after(600, blind, held, Config()).steps == frozenset()
    assert after(600, Readings(9e9, 9e9, 9e9, 1 << 50, 1 << 50), config=Config()).steps == frozenset()


def test_a_budget_of_nothing_holds_everything_that_it_can_and_a_new_day_frees_it():
    nothing = Config(bytes_per_day=0)
    assert Step.REPORTS in after(0, EASY, config=nothing).steps
    spent = after(0, EASY._replace(link_bytes=1000))
    assert advance(spent, EASY, LIMITED, 10).steps == frozenset()


def test_the_metered_profile_stands_for_long_compressed_windows():
    found = profiled(Config(profile="metered"))
    assert (found.window_s, found.rollout_window_s, found.compress) == (900, 60, True)
    assert profiled(Config(profile="metered", window_s=3600)).window_s == 3600
    assert profiled(Config()) == Config()


def test_what_is_done_of_what_is_asked():
    asked = Config(monitor_every=3)
    assert relieved(asked, frozenset()) == asked
    assert relieved(asked, frozenset({Step.CHANNELS})).monitor_every == 30
    long = relieved(asked, frozenset({Step.WINDOWS}))
    assert (long.window_s, long.rollout_window_s, long.monitor_every) == (1200, 240, 3)
    assert relieved(Config(window_s=3000), frozenset({Step.WINDOWS})).window_s == 3600
    assert relieved(Config(window_s=7200), frozenset({Step.WINDOWS})).window_s == 7200


def test_an_operator_reads_what_is_short_by_how_much_and_what_it_costs():
    readings = EASY._replace(temperature_c=81.25)
    said = told(after(40, readings), readings, LIMITED)
    assert said == {"temperature": "temperature: 81.2 of 80 °C; held back: samples, shadow"}
