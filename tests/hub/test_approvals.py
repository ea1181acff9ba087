"""A rollout that waited for approval begins with what its devices are and do by then, or is refused by then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import Refused
from edgewright_contracts.package import Package
from edgewright_hub.rollouts.processes import METRICS
from edgewright_hub.rollouts.progress import unpacked
from edgewright_hub.rollouts.readings import Readings
from edgewright_hub.rollouts.state import RolloutState
from edgewright_hub.storage import control, telemetry
from sim.house import HOUR, House

FOUR = [f"pi-{i}" for i in range(4)]
WEEK = 7 * 24 * HOUR


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    """Four devices that have run 1.0.0 for a while."""
    return House(tmp_path_factory.mktemp("grown"), packages).settle(FOUR)


def _approve(house: House, name: str, who: str = "ben") -> None:
    house.conductor.approve(name, house.packages["2.0.0"].digest, who=who, now_ms=house.now)


def _state(house: House, name: str) -> RolloutState:
    with house.control.connect() as connection:
        r = control.rollouts.c
        return unpacked(connection.execute(sa.select(r.progress).where(r.id == name)).scalar_one())


def _compared(state: RolloutState) -> Any:
    """What a rollout compares with; the places of devices differ in each."""
    return {row.device: row for row in state.members.rows()}, state.ledger, state.seldom, state.since_ms


def _retire(house: House, *devices: str) -> None:
    with house.control.begin() as connection:
        mine = control.devices.c.id.in_(devices)
        connection.execute(control.devices.update().where(mine).values(state="retired"))


def test_a_rollout_that_is_approved_a_week_later_begins_as_if_it_were_created_then(
    tmp_path: Path, grown: House
) -> None:
    house = grown.copy(tmp_path / "waits")
    name = house.start("2.0.0", stages=(2, "100%"), approvals=2)
    created = _state(house, name)
    house.now += WEEK
    house.enrol("new")
    _retire(house, "pi-3")
    house.tick()
    for swing in (0.02, 0.9) * 6:  # all together, which a week before they did not
        house.now += HOUR // 4
        house.live([*FOUR[:3], "new"], 1, wrong=lambda _, share=swing: share)
    _approve(house, name)
    waiting = _state(house, name)
    assert (waiting.state, waiting.ledger) == ("unapproved", created.ledger), "nothing is read anew before the last one"
    other = house.copy(tmp_path / "anew")
    _approve(house, name, "cleo")
    other.conductor.command(name, "abort", who="ann", now_ms=other.now)
    begun, anew = _state(house, name), _state(other, other.start("2.0.0", stages=(2, "100%")))
    assert _compared(begun) == _compared(anew)
    assert (begun.state, begun.approved, begun.author) == ("running", ("ben", "cleo"), "tests")
    assert sorted(begun.members.devices) == ["new", "pi-0", "pi-1", "pi-2"]
    label = METRICS.index("label")
    assert begun.ledger.processes[label].phi > 3 > created.ledger.processes[label].phi
    assert set(begun.members.pre[0, label]) == {12 * 20.0}, "labels of the week before are not in it"
    assert begun.members.pre[1, label].min() > 80


def test_what_moves_while_the_past_is_read_is_seen_by_a_rollout_that_begins(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = house.start("2.0.0", approvals=1)
    reads = Readings.before

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(Readings, "before", reads)
        found = reads(*arguments)
        house.conductor.revoke("digits", "1.0.0", reason="it sees ghosts", who="ann", now_ms=house.now)
        return found

    monkeypatch.setattr(Readings, "before", slowly)
    _approve(house, name)
    assert {row.previous for row in _state(house, name).members.rows()} == {None}


def _overlaps(house: House) -> None:
    """A device that another rollout gave its release comes to those that this one is for."""
    house.start("2.0.0", stages=("100%",), selector="site=rome")
    house.tick()
    house.put("pi-2", "berlin")


def _says(house: House, **birth: Any) -> None:
    d = telemetry.devices
    with house.telemetry.begin() as connection:
        connection.execute(d.update().values(birth=birth, birth_ms=house.now))


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (_overlaps, r"rollout r\S+ \(digits 2.0.0\) is running on 1 of the same devices"),
        (
            lambda house: _says(house, hardware={"arch": "aarch64"}, runtimes={"tvm": "1"}),
            "none of the 2 devices can run",
        ),
        (lambda house: _retire(house, *FOUR), "no device is enrolled yet"),
        (lambda house: _retire(house, "pi-0", "pi-1"), "the selector site=berlin means no enrolled device"),
        (lambda house: house.put("pi-0", "rome"), ""),
    ],
)
def test_what_a_rollout_would_not_be_created_for_it_does_not_begin_for(
    house: House, happens: Callable[[House], None], reason: str
) -> None:
    for device in FOUR:
        house.put(device, "berlin" if device < "pi-2" else "rome")
    name = house.start("2.0.0", selector="site=berlin", approvals=1)
    waiting = _state(house, name)
    happens(house)
    if not reason:
        _approve(house, name)
        assert _state(house, name).members.devices == ("pi-1",)
        return
    with pytest.raises(Refused, match=f"{reason}.* `edgewright rollout abort {name}` ends this rollout"):
        _approve(house, name)
    assert _state(house, name) == waiting, "whoever consents may do so again when it can begin"


def test_named_devices_that_were_retired_meanwhile_are_left_out_while_one_is_there(house: House) -> None:
    first, second = (house.start("2.0.0", devices=two, approvals=1) for two in (("pi-0", "pi-1"), ("pi-2", "pi-3")))
    _retire(house, "pi-1", "pi-2", "pi-3")
    _approve(house, first)
    assert _state(house, first).members.devices == ("pi-0",)
    with pytest.raises(Refused, match=r"no enrolled device is called pi-2, pi-3; .* ends this rollout"):
        _approve(house, second)
