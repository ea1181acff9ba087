"""Devices that come after the end of a rollout: in their hours, under its caps, each when it is there, and once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts.package import Package
from edgewright_hub.rollouts import latecomers
from edgewright_hub.storage import control, telemetry
from edgewright_hub.web.views import rollouts
from sim.house import HOUR, House
from sim.packages import make_package

SIX = [f"pi-{i}" for i in range(6)]
HERE, AWAY = SIX[:3], SIX[3:]
NIGHT = ("02:00-04:00",)


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    root = tmp_path_factory.mktemp("packages")
    return {v: make_package(root / v, version=v, seed=i) for i, v in enumerate(("1.0.0", "2.0.0", "3.0.0"))}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    """Six devices run 1.0.0; it is five past two in the night."""
    house = House(tmp_path_factory.mktemp("late"), packages)
    for version in packages:
        house.publish_package(version)
    house.now = _ms("2025-10-10T12:00")
    house.enrol(*SIX)
    house.start("1.0.0", stages=("100%",))
    house.live(SIX, 20, until="done")
    house.now = _ms("2025-10-11T02:05")
    return house


@pytest.fixture
def house(tmp_path: Path, grown: House, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(latecomers, "_SOME", 2)  # fewer than are away, so that what is read of them comes in parts
    return grown.copy(tmp_path)


def _online(house: House, *devices: str, online: bool = True) -> None:
    with house.telemetry.begin() as connection:
        mine = telemetry.devices.update().where(telemetry.devices.c.device.in_(devices))
        connection.execute(mine.values(online=online))


def _held(house: House, device: str, held: bool) -> None:
    with house.control.begin() as connection:
        connection.execute(control.devices.update().where(control.devices.c.id == device).values(held=held))


def _brought_out(house: House, **more: Any) -> str:
    """A rollout of 2.0.0 that ends while half of the devices are away."""
    _online(house, *AWAY, online=False)
    name = house.start("2.0.0", stages=("100%",), **more)
    assert house.live(HERE, 60, until="done")["state"] == "done"
    return name


def _hours(house: House, device: str) -> tuple[int | None, int | None]:
    document = house.wanted(device)
    assert document is not None
    return document.models[0].not_before, document.models[0].not_after


def _revisions(house: House) -> list[int]:
    return [document.rev for document in map(house.wanted, SIX) if document]


def _later(house: House, name: str) -> list[tuple[str, int]]:
    return [(one["why"], one["n"]) for one in house.conductor.rollout(name)["excluded"]]


def _page(house: House) -> str:
    """What the page says of the newest rollout."""
    with house.control.connect() as c, house.telemetry.connect() as t:
        row = c.execute(sa.select(control.rollouts).order_by(control.rollouts.c.created_ms.desc())).first()
        said = {one.device: one for one in t.execute(sa.select(telemetry.devices))}
    return str(rollouts.told(row, said, {})["reason"])


def _new(house: House, *devices: str) -> list[str]:
    return [device for device in devices if house.version(device) == "2.0.0"]


def test_devices_that_were_away_get_the_release_in_their_hours_and_one_after_the_other(house: House) -> None:
    name = _brought_out(house, windows=NIGHT, concurrency=1, device_timeout_s=1800.0)
    assert (_new(house, *HERE), _new(house, *AWAY)) == (HERE, [])
    assert house.conductor.rollout(name)["reason"].endswith("; 3 devices were passed over, and come in their turn")
    house.now = _ms("2025-10-11T13:00")
    _online(house, *AWAY)
    before = _revisions(house)
    house.tick()
    assert _later(house, name) == [("waits for its maintenance window", 3)]
    house.restart()
    house.now = _ms("2025-10-12T02:10")
    house.tick()
    (first,) = _new(house, *AWAY)
    assert _hours(house, first) == (_ms("2025-10-12T02:10"), _ms("2025-10-12T02:40"))
    assert _later(house, name) == [("waits for its turn", 2)]
    assert "; 3 wait for it, see `edgewright rollout status r2-" in _page(house)
    house.restart()
    house.live(SIX, 2)
    assert _new(house, *AWAY) == [first], "a hub that starts again does not begin with the next"
    begun = []
    for minute in (40, 70, 100):
        house.now = _ms("2025-10-12T02:00") + minute * 60_000 + 1
        house.live(SIX, 2)
        begun.append(len(_new(house, *AWAY)))
    assert begun == [2, 3, 3]
    house.now = _ms("2025-10-12T05:00")
    house.live(SIX, 3)
    assert [_hours(house, device) for device in SIX] == [(None, None)] * 6, "they run it, and may from now on"
    assert [new - old for old, new in zip(before, _revisions(house), strict=True)] == [0, 0, 0, 2, 2, 2]
    assert _later(house, name) == []
    assert "wait for it" not in _page(house)


def test_a_device_that_is_silent_in_its_hours_is_told_nothing_until_it_speaks_in_them(house: House) -> None:
    name = _brought_out(house, windows=NIGHT)
    house.now = _ms("2025-10-12T03:00")
    _online(house, AWAY[0])
    house.tick()
    assert (_new(house, *AWAY), _later(house, name)) == ([AWAY[0]], [("silent", 2)])
    assert _hours(house, AWAY[0]) == (_ms("2025-10-12T02:00"), _ms("2025-10-12T04:00"))


def test_a_turn_that_was_missed_comes_again_in_the_next_hours_and_not_before(house: House) -> None:
    _brought_out(house, windows=NIGHT)
    late = AWAY[0]
    house.now = _ms("2025-10-12T03:00")
    _online(house, late)
    house.tick()
    house.now = _ms("2025-10-12T04:30")
    before = house.wanted(late)
    house.tick()
    assert house.wanted(late) == before, "its hours are over, and it is told of the next when they come"
    house.now = _ms("2025-10-13T02:00:01")
    house.tick()
    assert _hours(house, late) == (_ms("2025-10-13T02:00"), _ms("2025-10-13T04:00"))
    house.tick()
    after = house.wanted(late)
    assert before is not None
    assert after is not None
    assert after.rev == before.rev + 1


@pytest.mark.parametrize(
    ("said", "failure", "again"), [("blocked", "model", False), ("held", "link", False), ("held", "operator", True)]
)
def test_who_gave_the_release_up_is_not_asked_again_and_who_had_too_little_time_is(
    house: House, said: str, failure: str, again: bool
) -> None:
    name = _brought_out(house, windows=NIGHT)
    late = AWAY[0]
    house.now = _ms("2025-10-12T03:00")
    _online(house, late)
    house.tick()
    house.now += 1000
    house.event(late, "2.0.0", "fetch", said, failure=failure)
    told = house.wanted(late)
    house.now = _ms("2025-10-13T02:30")
    house.tick()
    assert (house.wanted(late) != told) is again
    assert (("gave it up; its log says why", 1) in _later(house, name)) is not again


def test_a_held_device_waits_for_its_hours_when_it_is_released(house: House) -> None:
    _held(house, "pi-5", True)
    name = house.start("2.0.0", stages=("100%",), windows=NIGHT)
    house.live(SIX[:5], 60, until="done")
    house.tick()
    assert (house.version("pi-5"), _later(house, name)) == ("1.0.0", [("held by an operator", 1)])
    house.now = _ms("2025-10-11T13:00")
    _held(house, "pi-5", False)
    house.tick()
    assert house.version("pi-5") == "1.0.0"
    house.now = _ms("2025-10-12T02:00:01")
    house.tick()
    assert (house.version("pi-5"), _hours(house, "pi-5")[1]) == ("2.0.0", _ms("2025-10-12T04:00"))


def test_a_newcomer_is_told_until_when_it_may_begin(house: House) -> None:
    _brought_out(house, windows=NIGHT)
    house.now = _ms("2025-10-12T01:00")
    house.enrol("new")
    house.tick()
    assert house.wanted("new") is None
    house.now += HOUR
    house.tick()
    assert _hours(house, "new") == (_ms("2025-10-12T02:00"), _ms("2025-10-12T04:00"))


def test_a_device_that_was_asked_and_fell_silent_is_asked_anew_in_its_turn(house: House) -> None:
    _held(house, "pi-5", True)
    name = house.start("2.0.0", stages=("100%",), windows=NIGHT, device_timeout_s=600.0)
    house.now += 5000
    house.tick()
    _online(house, *AWAY, online=False)
    assert house.version("pi-4") == "2.0.0"
    house.live(HERE, 60, until="done")
    assert (house.version("pi-4"), _hours(house, "pi-4")) == ("1.0.0", (None, None))
    assert house.conductor.rollout(name)["state"] == "done"


def test_devices_that_only_named_ones_are_brought_to_come_later_too(house: House) -> None:
    _online(house, *AWAY, online=False)
    house.start("2.0.0", stages=("100%",), windows=NIGHT, devices=("pi-0", "pi-5"))
    house.live(HERE, 60, until="done")
    _online(house, *AWAY)
    house.now = _ms("2025-10-12T02:30")
    house.tick()
    assert _new(house, *SIX) == ["pi-0", "pi-5"]


def test_a_revert_reaches_late_devices_and_those_that_still_wait(house: House) -> None:
    name = _brought_out(house, windows=NIGHT)
    house.now = _ms("2025-10-12T03:00")
    _online(house, AWAY[0])
    house.live([*HERE, AWAY[0]], 2)
    house.conductor.command(name, "revert", who="ann", now_ms=house.now)
    assert [house.version(device) for device in SIX] == ["1.0.0"] * 6
    _online(house, *AWAY)
    house.now = _ms("2025-10-13T02:30")
    house.live(SIX, 4)
    assert [house.version(device) for device in SIX] == ["1.0.0"] * 6, "nobody is given it afterwards"


def test_a_device_that_waits_gets_what_was_promoted_last(house: House) -> None:
    _brought_out(house, windows=NIGHT)
    house.start("3.0.0", stages=("100%",), windows=NIGHT)
    _online(house, AWAY[0])
    house.live([*HERE, AWAY[0]], 1)
    assert house.version(AWAY[0]) == "3.0.0", "a rollout under way has it"
    house.live([*HERE, AWAY[0]], 60, until="done")
    _online(house, *AWAY)
    house.now = _ms("2025-10-12T02:30")
    house.tick()
    assert {house.version(device) for device in SIX} == {"3.0.0"}


def test_without_hours_and_caps_everyone_is_told_at_the_end(house: House) -> None:
    _brought_out(house)
    assert (_new(house, *SIX), _hours(house, AWAY[0])) == (SIX, (None, None))
