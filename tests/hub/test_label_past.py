"""Labels that come in a table every few days are waited for too; and where none come, people are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgewright.planning import print_plan
from edgewright_contracts.package import Package
from edgewright_hub.rollouts.gates import GatePolicy
from edgewright_hub.rollouts.label_past import DAY_MS, Came, filled, late
from edgewright_hub.rollouts.members import Member
from edgewright_hub.rollouts.processes import Margin, Process
from edgewright_hub.rollouts.specification import RolloutSpec
from sim.house import QUICK, House

EIGHT = [f"pi-{i}" for i in range(8)]
HOUR_MS = 3600_000
ASKED: dict[str, Any] = {"gate": QUICK, "stages": (1, "50%", "100%"), "window_s": 60.0}


def _live(house: House, windows: int) -> dict[str, Any]:
    """Devices report each minute, without any labels."""
    for _ in range(windows):
        house.now += 60_000
        span = {"start_ms": house.now - 60_000, "mono_end_ms": 60_000}
        if rows := [house.row(d, version, **span) for d in EIGHT if (version := house.version(d))]:
            house.report(*rows)
        house.tick()
    return house.conductor.rollouts()[0]


def _table(house: House, right: int = 190) -> None:
    """A table of labels of what the devices run: 200 of each."""
    told = {"placed": "import", "n": 0, "labels_n": 200, "labels_wrong": 200 - right}
    rows = [house.row(device, house.version(device), **told) for device in EIGHT]
    house.report(*[row | {"outcomes": {"correct": [200, right]}} for row in rows])
    house.tick()


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    """Devices that have run the first version for two days, without labels in the second of these."""
    house = House(tmp_path, packages)
    for version in packages:
        house.publish_package(version)
    house.enrol(*EIGHT)
    house.start("1.0.0", **ASKED | {"stages": ("100%",)})
    _live(house, 6)
    assert house.conductor.rollouts()[0]["state"] == "done"
    return house


def test_a_table_of_labels_two_days_ago_is_waited_for_and_its_rates_are_the_past(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    _table(house)
    came_ms = house.now - house.now % DAY_MS
    house.now += 48 * HOUR_MS
    _live(house, 6)
    plan = house.conductor.plan(RolloutSpec(model="digits", version="2.0.0", **ASKED), now_ms=house.now)
    assert plan["seldom"] == {"label": {"days": 1, "last_ms": came_ms}}
    assert (plan["rates"]["label"], plan["not_waited_for"]) == (pytest.approx(0.05), [])
    assert plan["stages"][1]["waits_for"] == "label"
    print_plan(plan)
    assert "label: on 1 of the last 30 days" in capsys.readouterr().out

    house.start("2.0.0", **ASKED)
    waiting = _live(house, 30)
    assert (waiting["state"], waiting["stage"], waiting["devices_exposed"]) == ("running", 1, 4)
    assert waiting["reason"].startswith("wrong labels not seen yet")
    _table(house)
    _live(house, 1)
    _table(house)
    assert _live(house, 8)["outcome"] == "promoted"


def test_a_release_whose_labels_are_wrong_goes_back_when_the_table_comes(house: House) -> None:
    _table(house)
    house.now += 48 * HOUR_MS
    _live(house, 6)
    house.start("2.0.0", **ASKED)
    _live(house, 12)
    told = {"placed": "import", "n": 0, "labels_n": 200}
    wrong = {device: 80 if house.version(device) == "2.0.0" else 10 for device in EIGHT}
    house.report(*[house.row(d, house.version(d), **told, labels_wrong=wrong[d]) for d in EIGHT])
    assert _live(house, 3)["outcome"] == "rolled back"


def test_where_no_labels_came_for_a_month_nobody_waits_and_people_are_told(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    _table(house)
    house.now += 32 * DAY_MS
    _live(house, 6)
    plan = house.conductor.plan(RolloutSpec(model="digits", version="2.0.0", **ASKED), now_ms=house.now)
    assert (plan["seldom"], plan["not_waited_for"]) == ({}, ["label"])
    print_plan(plan)
    assert "label: none in the 30 days before, so it is not waited for" in capsys.readouterr().out
    house.start("2.0.0", **ASKED)
    assert _live(house, 1)["not_waited_for"] == ["label"]


def test_outcomes_have_a_past_of_their_own_and_days_that_differ_count_for_less() -> None:
    policy = GatePolicy(outcomes={"pick_ok": Margin(r0=1.1, r1=1.5)})
    rows = late(policy)
    assert list(rows) == ["label", "pick_ok"]
    pre = [0.0] * len(policy.metrics)
    pre[rows["label"]] = 5.0
    members = tuple(Member(device=d, previous="a" * 64, pre_trials=tuple(pre), pre_events=tuple(pre)) for d in EIGHT)
    processes = (Process(),) * len(policy.metrics)
    counted = [(d, day * DAY_MS, {"correct": (9, 9), "pick_ok": (100, 99 - 18 * (i % 2))})
               for day in (3, 10, 17) for i, d in enumerate(EIGHT, day)]  # fmt: skip
    after, moved, seldom = filled(policy, members, processes, counted)
    assert seldom == {"pick_ok": Came(days=3, last_ms=17 * DAY_MS)}
    assert {m.pre_trials[rows["pick_ok"]] for m in after} == {300.0}
    assert {m.pre_trials[rows["label"]] for m in after} == {5.0}
    assert moved[rows["pick_ok"]].phi > 2
    assert [p for p in moved if p.phi > 1] == [moved[rows["pick_ok"]]]
    assert filled(policy, members, processes, []) == (members, processes, {})
