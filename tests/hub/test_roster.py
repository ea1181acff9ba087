"""Who is in the fleet: attributes, cohorts, holds, and what rollouts and newcomers make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_contracts.package import Package
from edgewright_hub.fleet.attributes import Attributes, changed, shown
from edgewright_hub.fleet.roster import Roster, meant
from edgewright_hub.fleet.selectors import Device, parse
from edgewright_hub.storage import control, telemetry
from sim.house import House

FOUR = ["pi-0", "pi-1", "pi-2", "pi-3"]


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    """Four devices, of which two are in Berlin."""
    one = House(tmp_path, packages)
    one.publish_package("1.0.0")
    one.publish_package("2.0.0")
    one.enrol(*FOUR)
    for device in FOUR[:2]:
        put(one, device, attributes={"site": "berlin"})
    return one


def put(house: House, device: str, **values: object) -> None:
    with house.control.begin() as connection:
        connection.execute(control.devices.update().where(control.devices.c.id == device).values(**values))


def fleet(house: House, roster: Roster) -> dict[str, Device]:
    with house.control.connect() as connection:
        return roster.read(connection)


def test_what_is_said_of_a_device_is_kept_by_key_and_taken_back_by_an_empty_word() -> None:
    said = changed(Attributes(), {"site": "berlin", "hw": "pi5", "tz": "Europe/Berlin", "tag.line": "3"})
    assert shown(said) == {"site": "berlin", "hw": "pi5", "tz": "Europe/Berlin", "tag.line": "3"}
    assert shown(changed(said, {"site": "", "tag.line": "", "tag.dock": "a b"})) == {
        "hw": "pi5",
        "tz": "Europe/Berlin",
        "tag.dock": "a b",
    }


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ({"tz": "Europe/Bonn"}, "tz: expected a time zone of the IANA database, as Europe/Berlin, got 'Europe/Bonn'"),
        ({"tz": "Europe"}, "tz: expected a time zone"),
        ({"tz": "../etc/passwd"}, "tz: expected a time zone"),
        ({"colour": "red"}, "attribute: expected one of site, hw, profile, tz, tag.NAME, got 'colour'"),
        ({"tag.Line": "3"}, "attribute: expected one of"),
        ({"site": "a,b"}, "site: expected at most 64 characters without"),
        ({"site": " a"}, "site: expected"),
        ({"site": "a" * 65}, "site: expected"),
        ({f"tag.{i}": "1" for i in range(33)}, "tag: expected at most 32 of one device, got 33"),
    ],
)
def test_a_word_that_no_selector_could_name_is_refused(pairs: dict[str, str], expected: str) -> None:
    with pytest.raises(ContractError) as refused:
        changed(Attributes(), pairs)
    assert expected in str(refused.value)


def test_a_roster_follows_what_changes_and_makes_nothing_else_anew(house: House) -> None:
    roster = Roster(house.telemetry)
    before = fleet(house, roster)
    assert meant(parse("site=berlin"), before.values()) == ["pi-0", "pi-1"]
    with house.telemetry.begin() as connection:
        birth = {"hardware": {"arch": "aarch64", "model": "Raspberry Pi 5 Model B"}}
        mine = telemetry.devices.c.device == "pi-3"
        connection.execute(telemetry.devices.update().where(mine).values(birth=birth, birth_ms=5))
    put(house, "pi-2", held=True)
    after = fleet(house, roster)
    assert meant(parse("hw=Raspberry Pi 5*;held"), after.values()) == ["pi-2", "pi-3"]
    assert [after[d] is before[d] for d in FOUR] == [True, True, False, False]
    with house.control.begin() as connection:
        connection.execute(control.cohorts.insert().values(name="north", selector="site=berlin", at_ms=0, who="op"))
    assert [one.cohorts for one in fleet(house, roster).values()] == [("north",), ("north",), (), ()]
    put(house, "pi-0", attributes={"site": "rome"})
    put(house, "pi-1", state="retired")
    assert meant(parse("cohort=north"), fleet(house, roster).values()) == []


def test_a_rollout_by_selector_touches_what_it_means_and_newcomers_that_it_means_get_it(house: House) -> None:
    house.start("1.0.0", selector="site=berlin", stages=("100%",))
    assert house.live(FOUR, 30, until="done")["outcome"] == "promoted"
    assert [house.version(d) for d in FOUR] == ["1.0.0", "1.0.0", "", ""]
    house.enrol("pi-8", "pi-9")
    put(house, "pi-9", attributes={"site": "berlin"})
    house.tick()
    assert (house.version("pi-8"), house.version("pi-9")) == ("", "1.0.0")


def test_stages_that_are_selectors_are_reached_in_their_order(house: House) -> None:
    house.start("1.0.0", stages=("site=berlin", "100%"))
    house.tick()
    assert [house.version(d) for d in FOUR] == ["1.0.0", "1.0.0", "", ""]
    assert house.live(FOUR, 60, until="done")["outcome"] == "promoted"
    assert {house.version(d) for d in FOUR} == {"1.0.0"}


@pytest.mark.parametrize(
    ("selector", "error", "said"),
    [
        ("site=rome", Refused, "the selector site=rome means no enrolled device"),
        ("colour=red", RequestError, "colour"),
        ("cohort=east", RequestError, "no cohort is called 'east'. Known cohorts: none"),
    ],
)
def test_a_rollout_by_a_selector_that_means_nobody_is_refused(
    house: House, selector: str, error: type[Exception], said: str
) -> None:
    for more in ({"selector": selector}, {"stages": (selector, "100%")}):
        with pytest.raises(error) as refused:
            house.start("1.0.0", **more)
        assert said in str(refused.value)
    with house.control.connect() as connection:
        assert connection.execute(sa.select(control.rollouts)).all() == []


def test_a_held_device_is_given_nothing_until_it_is_released(house: House) -> None:
    put(house, "pi-0", held=True)
    house.start("1.0.0", stages=("100%",))
    house.live(FOUR, 1)
    assert [house.version(d) for d in FOUR] == ["", "1.0.0", "1.0.0", "1.0.0"]
    assert house.live(FOUR, 30)["state"] == "done"
    put(house, "pi-1", held=True)
    house.tick()
    late, running = house.wanted("pi-0"), house.wanted("pi-1")
    assert late is not None
    assert running is not None
    assert (late.held, running.held) == (True, True), "and so neither begins what it is told to run"
    for device in ("pi-0", "pi-1"):
        put(house, device, held=False)
    house.tick()
    assert [(d.rev, d.held) for name, d in house.sent if name == "pi-1"][-1] == (running.rev + 1, False)
    assert house.version("pi-0") == "1.0.0"


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("candidate", "digits 2.0.0 is candidate: nobody has approved it yet. `edgewright registry approve digits"),
        ("deprecated", "digits 2.0.0 is deprecated: what runs it may keep it"),
        ("revoked", "digits 2.0.0 is revoked: nobody may run it any more"),
    ],
)
def test_a_package_that_is_not_approved_begins_no_rollout(house: House, stage: str, said: str) -> None:
    with house.control.begin() as connection:
        connection.execute(control.packages.update().where(control.packages.c.version == "2.0.0").values(stage=stage))
    with pytest.raises(Refused) as refused:
        house.start("2.0.0")
    assert said in str(refused.value)


@pytest.mark.parametrize("gone", [{"stage": "revoked"}, {"state": "withdrawn"}])
def test_a_release_that_is_taken_away_under_way_goes_back_and_reaches_no_newcomer(
    house: House, gone: dict[str, str]
) -> None:
    house.start("1.0.0", stages=("100%",))
    assert house.live(FOUR, 30, until="done")["outcome"] == "promoted"
    house.start("2.0.0", stages=(2, "100%"))
    house.live(FOUR, 1)
    assert "2.0.0" in {house.version(d) for d in FOUR}
    with house.control.begin() as connection:
        connection.execute(control.packages.update().where(control.packages.c.version == "2.0.0").values(**gone))
    seen = house.live(FOUR, 30, until="rolled-back")
    assert (seen["state"], seen["outcome"]) == ("rolled-back", "withdrawn")
    assert {house.version(d) for d in FOUR} == {"1.0.0"}
    with house.control.begin() as connection:
        connection.execute(control.packages.update().where(control.packages.c.version == "1.0.0").values(**gone))
    house.enrol("pi-9")
    house.tick()
    assert house.digest("pi-9") is None
