"""Rollouts while the world around them changes: clocks are put back, devices are retired or leave whom it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewright_contracts.package import Package
from edgewright_hub.rollouts.hearing import News
from edgewright_hub.rollouts.specification import RolloutSpec
from sim.house import HOUR, House
from sim.rollouts import NEW, Script, everyone, names, started, step

EIGHT = [f"pi-{i}" for i in range(8)]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    house = House(tmp_path_factory.mktemp("grown"), packages)
    house.publish_package("1.0.0")
    house.publish_package("2.0.0")
    house.enrol(*EIGHT)
    house.start("1.0.0", stages=("100%",))
    house.live(EIGHT, 20, until="done")
    house.live(EIGHT, 20)
    return house


@pytest.fixture
def house(tmp_path: Path, grown: House) -> House:
    """Eight devices that have run 1.0.0 for a while."""
    return grown.copy(tmp_path)


def _harmful(version: str) -> float:
    return 0.9 if version == "2.0.0" else 0.05


def _running(house: House, version: str = "2.0.0") -> list[str]:
    return [device for device in EIGHT if house.version(device) == version]


@pytest.mark.parametrize("restarted", [False, True])
def test_harm_is_seen_at_once_after_the_clock_of_the_hub_was_put_back(house: House, restarted: bool) -> None:
    house.start("2.0.0", stages=(4, "100%"))
    house.live(EIGHT, 3)
    house.now -= HOUR
    if restarted:
        house.restart()
    seen = house.live(EIGHT, 5, wrong=_harmful, until="rolling-back")
    assert (seen["state"], seen["outcome"]) == ("rolling-back", "rolled back")
    assert _running(house) == []


def test_one_tick_a_day_ahead_does_not_blind_the_hub_for_a_day(house: House) -> None:
    house.start("2.0.0", stages=(4, "100%"), bandwidth_bytes_s=1e6)
    house.live(EIGHT, 6)
    house.now += 24 * HOUR
    house.live(EIGHT, 1)
    house.now -= 24 * HOUR
    house.restart()
    seen = house.live(EIGHT, 5, wrong=_harmful, until="rolling-back")
    assert (seen["state"], _running(house)) == ("rolling-back", [])
    assert house.live(EIGHT, 3)["state"] == "rolled-back", "since when it goes back is no time ahead either"


def test_a_good_release_goes_on_at_its_rate_after_the_clock_was_put_back(house: House) -> None:
    house.start("2.0.0", stages=(4, "100%"), bandwidth_bytes_s=1e6)
    house.live(EIGHT, 2)
    house.now -= HOUR
    assert house.live(EIGHT, 60, until="done")["outcome"] == "promoted"
    assert _running(house) == EIGHT


def test_devices_that_were_asked_ahead_of_the_clock_are_late_and_asked_again_in_their_usual_time() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=("100%",), device_timeout_s=60)
    state, _ = step(started(spec, 2), spec, everyone(started(spec, 2)), Script([]), HOUR)
    first, second = state.members.devices
    state, _ = step(state, spec, everyone(state, News(first, "retry", "no link")), Script([]), 24 * HOUR)
    state, _ = step(state, spec, everyone(state), Script([]), 0)
    assert state.members.asked_ms.max() == 0
    assert state.members.due_ms.max() <= 6 * HOUR
    state, _ = step(state, spec, everyone(state), Script([]), 61_000)
    assert names(state, "late") == [second]
