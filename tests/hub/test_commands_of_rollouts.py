"""What people do to rollouts, and hours of maintenance, through the conductor and the hub's HTTPS API."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import Refused
from edgewright_contracts.package import Package
from edgewright_hub.storage import control
from sim.house import House
from sim.packages import make_package

FOUR = [f"pi-{i}" for i in range(4)]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    root = tmp_path_factory.mktemp("packages")
    return {v: make_package(root / v, version=v, seed=i) for i, v in enumerate(("1.0.0", "2.0.0"))}


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    """Four devices, two of them in Berlin and two in Tokyo, that have nothing yet."""
    one = House(tmp_path, packages)
    one.publish_package("1.0.0")
    one.publish_package("2.0.0")
    one.enrol(*FOUR)
    devices = control.devices
    with one.control.begin() as connection:
        for at, device in enumerate(FOUR):
            zone = {"tz": "Europe/Berlin" if at < 2 else "Asia/Tokyo"}
            connection.execute(devices.update().where(devices.c.id == device).values(attributes=zone))
    return one


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def test_each_site_gets_the_release_in_its_own_hours_and_is_told_until_when(house: House) -> None:
    house.now = _ms("2025-10-10T23:59:50")  # 01:59:50 in Berlin, 08:59:50 in Tokyo
    house.start("1.0.0", stages=("100%",), windows=("02:00-04:00",))
    house.live(FOUR, 1)
    assert [house.version(d) for d in FOUR] == [""] * 4
    house.live(FOUR, 2)
    assert [house.version(d) for d in FOUR] == ["1.0.0", "1.0.0", "", ""]
    document = house.wanted("pi-0")
    assert document is not None
    hours = (document.models[0].not_before, document.models[0].not_after)
    assert hours == (_ms("2025-10-11T00:00"), _ms("2025-10-11T02:00"))
    assert house.live(FOUR, 10)["reason"] == "2 devices wait for their maintenance windows"
    house.now = _ms("2025-10-11T17:00:00")
    assert house.live(FOUR, 20, until="done")["standing"] == "promoted"
    assert {house.version(d) for d in FOUR} == {"1.0.0"}
    settled = house.wanted("pi-0")
    assert settled is not None
    assert (settled.models[0].not_before, settled.models[0].not_after) == (None, None)


def test_a_revert_waits_for_no_hours_and_says_who_asked_for_it_and_why(house: House) -> None:
    house.now = _ms("2025-10-11T00:30:00")
    name = house.start("1.0.0", stages=("100%",), devices=("pi-0", "pi-1"), windows=("02:00-04:00",))
    house.live(FOUR, 20, until="done")
    house.conductor.command(name, "revert", who="ann", now_ms=_ms("2025-10-11T12:00:00"), reason="too warm")
    assert house.version("pi-0") == "", "what goes back waits for no window"
    told = house.conductor.rollout(name)
    assert (told["standing"], told["reason"]) == ("reverting", "reverted by ann: too warm")
    with house.control.connect() as connection:
        noted = connection.execute(sa.select(control.audit.c.what, control.audit.c.detail)).all()
    assert noted[-1] == ("rollout revert", f"{name}: too warm")


def test_devices_that_rest_can_be_forced_and_that_is_noted(house: House) -> None:
    name = house.start("1.0.0", stages=("100%",), cooldown_s=3600.0)
    house.live(FOUR, 1)
    house.conductor.command(name, "abort", who="ann", now_ms=house.now)
    with pytest.raises(Refused, match=r"rest for another .* or --force it"):
        house.start("2.0.0")
    assert house.start("2.0.0", force=True)
    with house.control.connect() as connection:
        assert str(connection.execute(sa.select(control.audit.c.detail)).all()[-1][0]).endswith("rest from it")
