"""Commands of people against what happened before: packages that may not be run, and other rollouts of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import Refused
from edgewright_contracts.package import Package
from edgewright_hub.registry import stages
from edgewright_hub.rollouts.specification import Experiment
from edgewright_hub.storage import control
from sim.house import House
from sim.packages import make_package

FOUR = [f"pi-{i}" for i in range(4)]
ONE, TWO, THREE = VERSIONS = ("1.0.0", "2.0.0", "3.0.0")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    root = tmp_path_factory.mktemp("packages")
    return {v: make_package(root / v, version=v, seed=i) for i, v in enumerate(VERSIONS)}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    """Four devices, two at site a and two at site b, that have run 1.0.0 for a while."""
    house = House(tmp_path_factory.mktemp("grown"), packages).settle(FOUR)
    for device in FOUR:
        house.put(device, "a" if device < "pi-2" else "b")
    return house


def runs(house: House, devices: list[str] = FOUR) -> list[str]:
    return [house.version(device) for device in devices]


def bring(house: House, version: str, **more: Any) -> str:
    """A rollout that reaches all whom it means."""
    name = house.start(version, stages=("100%",), **more)
    assert house.live(FOUR, 40, until="done")["outcome"] == "promoted"
    return name


def command(house: House, name: str, event: Any, reason: str = "") -> None:
    house.conductor.command(name, event, who="ann", now_ms=house.now, reason=reason)


# Packages that nobody may run.


def _abort(house: House) -> None:
    name = house.start(THREE, stages=(2, "100%"))
    house.live(FOUR, 2)
    _revoke(house)
    command(house, name, "abort")


def _revert(house: House) -> None:
    name = bring(house, THREE)
    _revoke(house)
    command(house, name, "revert")


def _conclude(house: House) -> None:
    name = house.start(THREE, stages=("50%", "100%"), experiment=Experiment(share="50%"))
    house.live(FOUR, 3)
    _revoke(house)
    house.conductor.conclude(name, "take back", who="ann", now_ms=house.now)


def _revoke(house: House) -> None:
    assert THREE in runs(house)
    house.conductor.revoke("digits", TWO, reason="it sees ghosts", who="ann", now_ms=house.now)


@pytest.mark.parametrize("ends", [_abort, _revert, _conclude])
def test_nobody_sends_a_device_back_to_what_was_revoked_meanwhile(house: House, ends: Callable[[House], None]) -> None:
    bring(house, TWO)
    ends(house)
    assert runs(house) == [ONE] * 4, "what was promoted before it"
    house.live(FOUR, 3)
    assert runs(house) == [ONE] * 4
    assert house.conductor.rollouts()[0]["state"] in ("aborted", "reverted", "rolled-back"), "they are seen there"


def _harmed_at_a(house: House) -> str:
    """2.0.0 does harm at site a."""
    name = house.start(TWO, selector="site=a", stages=(1, "100%"))
    for _ in range(60):
        house.live(FOUR[:2], 1, wrong=lambda version: 0.9 if version == TWO else 0.05)
        if house.conductor.rollout(name)["outcome"]:
            return name
    raise AssertionError(house.conductor.rollout(name)["reason"])


def _deprecated(house: House) -> str:
    with house.control.begin() as connection:
        stages.decide(connection, "digits", TWO, "deprecate", reason="slow", who="ann", now_ms=house.now)
    return r"digits 2\.0\.0 is deprecated: .*\. `edgewright rollout abort r2-.* ends this rollout"


def _blocked(house: House) -> str:
    name = _harmed_at_a(house)
    return rf"digits 2\.0\.0 is blocked: rollout {name} sent it back \(.*\. `edgewright rollout abort r2-"


ONWARD: dict[str, Callable[[House, str], None]] = {
    "approve": lambda one, name: one.conductor.approve(name, one.packages[TWO].digest, who="bob", now_ms=one.now),
    "promote": lambda one, name: one.conductor.conclude(name, "promote", who="ann", now_ms=one.now),
    "resume": lambda one, name: command(one, name, "resume"),
}


@pytest.mark.parametrize("no_longer", [_deprecated, _blocked])
@pytest.mark.parametrize("verb", ONWARD)
def test_a_rollout_that_waited_does_not_go_on_with_what_may_not_begin_any_more(
    house: House, no_longer: Callable[[House], str], verb: str
) -> None:
    share = Experiment(share="50%") if verb == "promote" else None
    ladder = ("50%", "100%") if share else (1, "100%")
    name = house.start(TWO, selector="site=b", stages=ladder, approvals=int(verb == "approve"), experiment=share)
    if verb != "approve":
        house.live(FOUR, 1)
        command(house, name, "pause")
    expected = no_longer(house)
    before = runs(house, ["pi-2", "pi-3"])
    with pytest.raises(Refused, match=expected):
        ONWARD[verb](house, name)
    house.live(FOUR, 3)
    assert runs(house, ["pi-2", "pi-3"]) == before
    command(house, name, "abort")
    assert runs(house, ["pi-2", "pi-3"]) == [ONE] * 2


def test_a_rollout_of_what_another_sent_back_is_paused_and_that_is_a_ticket(house: House) -> None:
    name = house.start(TWO, selector="site=b", stages=(1, "100%"))
    house.live(FOUR, 1)
    harmful = _harmed_at_a(house)
    house.live(FOUR, 1)
    said = house.conductor.rollout(name)
    assert (said["state"], said["devices_exposed"]) == ("paused", 1)
    assert said["reason"].startswith(f"2.0.0 is blocked: rollout {harmful} sent it back")
    a, seen = control.alerts.c, control.audit.c
    mine = sa.select(a.severity, a.text, a.closed_ms).where(a.key == f"rollout:{name}:blocked")
    with house.control.connect() as connection:
        ((severity, text, closed),) = connection.execute(mine).all()
        (noted,) = connection.execute(sa.select(seen.detail).where(seen.who == "hub", seen.what == "rollout pause"))
    assert (severity, closed) == ("ticket", None)
    assert f"digits 2.0.0 is blocked: rollout {harmful} sent it back" in text
    assert f"`edgewright rollout abort {name}` takes it back" in text
    assert noted.detail.startswith(f"{name}: digits 2.0.0 is blocked")
    house.live(FOUR, 5)
    command(house, name, "abort")
    assert runs(house) == [ONE] * 4
    with house.control.connect() as connection:
        assert connection.execute(mine).one().closed_ms == house.now


# Other rollouts of the model.


def test_nothing_is_reverted_under_a_later_rollout_on_the_same_devices(house: House) -> None:
    second = bring(house, TWO)
    third = house.start(THREE, stages=(2, "100%"))
    house.live(FOUR, 2)
    before = runs(house)
    assert sorted(before) == [TWO] * 2 + [THREE] * 2
    with pytest.raises(
        Refused,
        match=rf"rollout {third} \(digits 3\.0\.0\) is running on 4 of the same devices, and would lead back to "
        rf"2\.0\.0\. Wait for its end, or `edgewright rollout abort {third}` first",
    ):
        command(house, second, "revert")
    assert runs(house) == before
    command(house, third, "abort")
    command(house, second, "revert")
    assert runs(house) == [ONE] * 4


def test_a_revert_does_not_wait_for_a_rollout_on_other_devices(house: House) -> None:
    first = bring(house, TWO, selector="site=a")
    house.start(THREE, selector="site=b")
    command(house, first, "revert")
    assert runs(house, ["pi-0", "pi-1"]) == [ONE] * 2


def test_rollouts_of_other_devices_are_not_in_the_way(house: House) -> None:
    house.start(TWO, devices=("pi-0",))
    house.start(THREE, devices=("pi-1",))
    house.live(FOUR, 1)
    assert runs(house) == [TWO, THREE, ONE, ONE]
    with pytest.raises(Refused, match=r"\(digits 2\.0\.0\) is running on 1 of the same devices"):
        house.start(THREE, devices=("pi-0", "pi-2"))


def test_a_device_that_moves_stays_in_the_rollout_that_gave_it_its_release(house: House) -> None:
    at_a = house.start(TWO, selector="site=a", stages=("100%",))
    house.live(FOUR, 1)
    house.put("pi-0", "b")
    with pytest.raises(Refused, match=rf"rollout {at_a} \(digits 2\.0\.0\) is running on 1 of the same devices"):
        house.start(THREE, selector="site=b", stages=("100%",))
    house.live(FOUR, 1)
    command(house, at_a, "abort")
    assert runs(house) == [ONE] * 4


def test_a_device_that_moves_is_taken_over_only_when_its_rollout_has_ended(house: House) -> None:
    house.start(TWO, selector="site=a", stages=("100%",))
    at_b = house.start(THREE, selector="site=b", stages=("100%",))
    house.live(FOUR, 1)
    house.put("pi-0", "b")
    house.live(FOUR, 1)
    assert house.version("pi-0") == TWO
    assert "pi-0" not in [one["device"] for one in house.conductor.rollout(at_b)["devices"]]
    house.live(FOUR, 40, until="done")
    house.live(FOUR, 40)
    assert runs(house) in ([TWO, TWO, THREE, THREE], [THREE, TWO, THREE, THREE]), "as both ended, in one order"
    assert {one["outcome"] for one in house.conductor.rollouts()} == {"promoted"}


def test_a_device_that_several_rollouts_mean_is_in_one_of_them(house: House) -> None:
    house.put("pi-3", "b", line="3")
    house.start(TWO, selector="site=a", stages=("100%",))
    house.now += 1
    on_line = house.start(THREE, selector="tag.line=3", stages=("100%",))
    house.enrol("pi-4")
    house.put("pi-4", "a", line="3")
    house.live([*FOUR, "pi-4"], 2)
    assert runs(house, [*FOUR, "pi-4"]) == [TWO, TWO, ONE, THREE, TWO]
    assert [one["device"] for one in house.conductor.rollout(on_line)["devices"]] == ["pi-3"]


def test_what_has_gone_on_since_is_not_taken_back_with_an_earlier_release(house: House) -> None:
    name = house.start(TWO, stages=("100%",))
    house.live(FOUR, 1)
    wanted = house.wanted("pi-0")
    assert wanted is not None
    other = msgspec.structs.replace(wanted.models[0], digest=house.packages[THREE].digest, rollout="")
    later = msgspec.structs.replace(wanted, rev=wanted.rev + 1, models=(other,))
    with house.control.begin() as connection:
        mine = control.desired.update().where(control.desired.c.device == "pi-0")
        connection.execute(mine.values(rev=later.rev, document=msgspec.to_builtins(later)))
    command(house, name, "abort")
    assert runs(house) == [THREE, ONE, ONE, ONE]


def test_a_revert_reaches_devices_that_got_the_release_after_its_end(house: House) -> None:
    name = bring(house, TWO, selector="site=a")
    other = bring(house, TWO, selector="site=b")
    house.enrol("new-a", "new-b")
    house.put("new-a", "a")
    house.put("new-b", "b")
    everyone = [*FOUR, "new-a", "new-b"]
    house.live(everyone, 2)
    assert runs(house, everyone) == [TWO] * 6
    command(house, name, "revert", reason="too warm")
    assert runs(house, everyone) == [ONE, ONE, TWO, TWO, ONE, TWO], "what site b has is not its own"
    said = house.conductor.rollout(name)
    assert said["reason"] == "reverted by ann: too warm; with 1 device that got it later"
    assert "new-a" in [one["device"] for one in said["devices"]]
    house.live(everyone, 3)
    assert house.conductor.rollout(name)["state"] == "reverted"
    assert runs(house, everyone) == [ONE, ONE, TWO, TWO, ONE, TWO]
    assert house.conductor.rollout(other)["state"] == "done"
