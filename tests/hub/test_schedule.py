"""Maintenance windows in local time, on ordinary days and on those on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from edgewright_contracts.errors import RequestError
from edgewright_hub.rollouts.schedule import Opening, next_opening, opens
from edgewright_hub.rollouts.specification import RolloutSpec

BERLIN = "Europe/Berlin"  # changes in 2026: 29 March at 01:00 UTC (02 -> 03), 25 October at 01:00 UTC (03 -> 02)


def _ms(text: str) -> int:
    """Of a UTC time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def _opening(windows: str, now: str, tz: str = BERLIN) -> tuple[str, str]:
    found = next_opening(windows.split(";"), tz, _ms(now))
    assert found is not None
    begin, end = (datetime.fromtimestamp(ms / 1000, UTC).strftime("%m-%dT%H:%M") for ms in found)
    return begin, end


def test_a_window_opens_at_the_hours_of_the_device_and_not_of_the_hub() -> None:
    windows = ("Mon-Fri 02:00-04:00",)
    friday = "2026-01-09T"
    assert [opens(windows, BERLIN, _ms(friday + at)) for at in ("00:59", "01:00", "02:59", "03:00")] == [
        False, True, True, False,
    ]  # fmt: skip
    assert opens(windows, "America/New_York", _ms("2026-01-09T07:30"))
    assert opens(windows, "", _ms("2026-01-09T02:30")), "a device of which nobody has said where it is: UTC"


def test_after_friday_comes_monday() -> None:
    assert _opening("Mon-Fri 02:00-04:00", "2026-01-09T03:00") == ("01-12T01:00", "01-12T03:00")
    assert _opening("Fri-Mon 02:00-04:00", "2026-01-09T03:00") == ("01-10T01:00", "01-10T03:00")


def test_a_window_past_midnight_is_of_the_day_on_which_it_begins() -> None:
    assert _opening("Sat 22:00-06:00", "2026-01-11T03:00") == ("01-10T21:00", "01-11T05:00")
    assert not opens(("Sat 22:00-06:00",), BERLIN, _ms("2026-01-10T03:00"))


def test_windows_that_touch_are_one_opening() -> None:
    assert _opening("Fri 22:00-24:00;Sat 00:00-02:00", "2026-01-09T21:30") == ("01-09T21:00", "01-10T01:00")


def test_a_window_around_the_skipped_hour_is_an_hour_shorter() -> None:
    assert _opening("02:00-04:00", "2026-03-28T12:00") == ("03-29T01:00", "03-29T02:00")
    assert _opening("01:30-02:30", "2026-03-28T12:00") == ("03-29T00:30", "03-29T01:00")


def test_a_window_in_the_skipped_hour_does_not_open_on_that_day() -> None:
    assert _opening("02:15-02:45", "2026-03-28T12:00") == ("03-30T00:15", "03-30T00:45")
    assert _opening("Sun 02:15-02:45", "2026-03-28T12:00") == ("04-05T00:15", "04-05T00:45")


def test_a_window_in_the_hour_that_comes_twice_opens_once_and_one_around_it_is_an_hour_longer() -> None:
    assert _opening("02:15-02:45", "2026-10-24T12:00") == ("10-25T00:15", "10-25T00:45")
    assert _opening("02:15-02:45", "2026-10-25T00:50") == ("10-26T01:15", "10-26T01:45")
    assert _opening("02:00-04:00", "2026-10-24T12:00") == ("10-25T00:00", "10-25T03:00")


def test_at_every_quarter_of_an_hour_what_is_open_agrees_with_the_next_opening() -> None:
    """And, but for the hours around a change, with what the local clock shows."""
    windows, zone = ("Mon-Fri 02:00-04:00", "Sat,Sun 22:30-05:15"), ZoneInfo(BERLIN)
    at = datetime(2026, 3, 26, tzinfo=UTC)
    for _ in range(5 * 96):
        now_ms = int(at.timestamp()) * 1000
        opening = next_opening(windows, BERLIN, now_ms)
        assert opening is not None
        assert now_ms < opening.end_ms
        assert opens(windows, BERLIN, now_ms) == (opening.begin_ms <= now_ms)
        shown = at.astimezone(zone)
        clock, day = (shown.hour, shown.minute), shown.weekday()
        weekly = day < 5 and (2, 0) <= clock < (4, 0)
        nightly = (day > 4 and clock >= (22, 30)) or (day in (6, 0) and clock < (5, 15))
        assert opens(windows, BERLIN, now_ms) == (weekly or nightly), shown
        at += timedelta(minutes=15)


def test_no_windows_are_always_open() -> None:
    assert opens((), BERLIN, 0)
    assert next_opening((), BERLIN, 0) is None
    assert next_opening(("00:00-24:00",), "", 0) is not None


def test_a_whole_day_every_day_does_not_close_within_two_weeks() -> None:
    found = next_opening(("00:00-24:00",), BERLIN, _ms("2026-03-28T12:00"))
    assert isinstance(found, Opening)
    assert found.begin_ms <= _ms("2026-03-28T12:00") < found.end_ms


@pytest.mark.parametrize("text", ["", "Mon", "Mon-Fri", "2:00-4:00", "02:00-02:00", "02:00-24:30", "Mo 02:00-04:00"])
def test_what_is_no_window_is_refused_before_anything_moves(text: str) -> None:
    with pytest.raises(RequestError, match=r"window: expected"):
        RolloutSpec(model="digits", version="2", windows=(text,))
