"""Commands of people against what happened before: packages that may not be run, and other rollouts of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewright_contracts.package import Package
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
    house = House(tmp_path_factory.mktemp("grown"), packages)
    for version in VERSIONS:
        house.publish_package(version)
    house.enrol(*FOUR)
    for device in FOUR:
        place(house, device, "a" if device < "pi-2" else "b")
    house.start(ONE, stages=("100%",))
    house.live(FOUR, 20, until="done")
    house.live(FOUR, 10)
    return house


@pytest.fixture
def house(tmp_path: Path, grown: House) -> House:
    return grown.copy(tmp_path)


def place(house: House, device: str, site: str) -> None:
    with house.control.begin() as connection:
        mine = control.devices.update().where(control.devices.c.id == device)
        connection.execute(mine.values(attributes={"site": site}))


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
