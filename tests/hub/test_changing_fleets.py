"""Rollouts while the world around them changes: clocks are put back, devices are retired or leave whom it is for."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import Refused
from edgewright_contracts.package import Package
from edgewright_hub.rollouts.hearing import News
from edgewright_hub.rollouts.specification import Experiment, RolloutSpec
from edgewright_hub.storage import control, telemetry
from sim.house import HOUR, House
from sim.rollouts import NEW, OLD, Script, everyone, mask_of, names, obedient, seen_of, started, step

EIGHT = [f"pi-{i}" for i in range(8)]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    """Eight devices that have run 1.0.0 for a while."""
    return House(tmp_path_factory.mktemp("grown"), packages).settle(EIGHT, 20)


def _harmful(version: str) -> float:
    return 0.9 if version == "2.0.0" else 0.05


def _running(house: House, version: str = "2.0.0") -> list[str]:
    return [device for device in EIGHT if house.version(device) == version]


def _retire(house: House, device: str, state: str = "retired") -> None:
    with house.control.begin() as c, house.telemetry.begin() as t:
        c.execute(control.devices.update().where(control.devices.c.id == device).values(state=state))
        t.execute(
            telemetry.devices.update().where(telemetry.devices.c.device == device).values(online=state == "enrolled")
        )


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
    house.start("2.0.0", stages=("100%",), concurrency=4, bandwidth_bytes_s=1e6)
    house.live(EIGHT, 1)
    assert len(_running(house)) == 4
    house.now -= HOUR
    assert house.live(EIGHT, 10, until="done")["outcome"] == "promoted"
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


def test_a_canary_that_is_retired_gives_its_place_to_another_device(house: House) -> None:
    name = house.start("2.0.0", stages=(1, "100%"))
    house.live(EIGHT, 1)
    [canary] = _running(house)
    _retire(house, canary)
    others = [device for device in EIGHT if device != canary]
    house.live(others, 1)
    [second] = _running(house)
    assert second != canary
    seen = house.conductor.rollout(name)
    assert (seen["devices_by_status"]["gone"], seen["stages"][1]["devices"]) == (1, 7)
    assert seen["excluded"] == [{"why": "gone: retired", "n": 1, "devices": [canary]}]
    assert house.live(others, 3)["reason"].startswith("wrong labels "), "the gate judges it as it did the first"


def test_a_retired_device_leaves_the_count_of_its_stage_and_harm_is_judged_without_it(house: House) -> None:
    name = house.start("2.0.0", stages=(4, "100%"))
    house.live(EIGHT, 1)
    canaries = _running(house)
    _retire(house, canaries[0])
    others = [device for device in EIGHT if device != canaries[0]]
    seen = house.live(others, 20, wrong=_harmful, until="rolled-back")
    assert (seen["state"], seen["outcome"]) == ("rolled-back", "rolled back")
    assert "told to go back" not in house.conductor.rollout(name)["reason"], "nobody waits for it either"


def test_a_device_that_its_release_silenced_is_held_against_it_when_it_is_retired_afterwards() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(2, "100%"))
    state, gate = started(spec, 4), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    state, _ = step(state, spec, obedient(state), gate, 1000)
    failed = names(state, "committed")[0]
    state, _ = step(state, spec, everyone(state, News(failed, "fail", "it crashed")), gate, 2000)
    state, _ = step(state, spec, everyone(state, retired=mask_of(state, [failed])), gate, 3000)
    assert (names(state, "failed"), gate.asked[-1].failed) == ([failed], 1)


def test_a_device_that_is_enrolled_again_takes_its_turn_with_the_others(house: House) -> None:
    house.start("2.0.0", stages=("100%",), concurrency=1)
    house.live(EIGHT, 1)
    [canary] = _running(house)
    _retire(house, canary)
    others = [device for device in EIGHT if device != canary]
    house.live(others, 1)
    assert house.version(canary) == "1.0.0", "it begins with what it had"
    _retire(house, canary, state="enrolled")
    assert house.live(EIGHT, 20, until="done")["devices_by_status"] == {"committed": 8}


def test_a_device_that_leaves_the_cohort_is_not_given_the_release_and_comes_in_when_it_is_back(house: House) -> None:
    for device in EIGHT:
        house.put(device, "a")
    name = house.start("2.0.0", selector="site=a", stages=("100%",), concurrency=1)
    house.live(EIGHT, 1)
    moved, returned, *_ = [device for device in EIGHT if device not in _running(house)]
    house.put(moved, "hospital")
    house.put(returned, "hospital")
    house.live(EIGHT, 1)
    said = house.conductor.rollout(name)["excluded"]
    assert said == [{"why": "gone: the rollout is not for it any more", "n": 2, "devices": said[0]["devices"]}]
    house.put(returned, "a")
    assert house.live(EIGHT, 20, until="done")["outcome"] == "promoted"
    assert _running(house) == [device for device in EIGHT if device != moved]
    house.live(EIGHT, 2)
    assert house.version(moved) == "1.0.0"
    house.put(moved, "a")
    house.live(EIGHT, 2)
    assert house.version(moved) == "2.0.0", "after the end it comes as other later devices do"


def test_a_device_that_runs_the_release_is_judged_with_the_others_wherever_it_is_moved(house: House) -> None:
    for device in EIGHT:
        house.put(device, "a")
    house.start("2.0.0", selector="site=a", stages=(1, "100%"))
    house.live(EIGHT, 2)
    [canary] = _running(house)
    house.put(canary, "b")
    seen = house.live(EIGHT, 20, wrong=_harmful, until="rolled-back")
    assert (seen["outcome"], house.version(canary)) == ("rolled back", "1.0.0")


def test_a_device_that_was_asked_and_leaves_is_told_to_stay_with_what_it_had() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(2, "100%"))
    state, gate = started(spec, 4), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    left = names(state, "asked")[0]
    state, wishes = step(state, spec, everyone(state, left=mask_of(state, [left])), gate, 1000)
    assert [(w.device, w.digest) for w in wishes if w.device == left] == [(left, OLD)]
    assert [w.digest for w in wishes if w.device != left] == [NEW], "another takes its place"
    assert state.exposed == 2


def test_a_stage_that_means_only_devices_that_have_the_release_is_refused(house: House) -> None:
    for device in EIGHT:
        house.put(device, "lab" if device < "pi-2" else "b")
    house.start("2.0.0", selector="site=lab", stages=("100%",))
    house.live(EIGHT, 20, until="done")
    with pytest.raises(Refused, match=r"the stage site=lab means none of the 6 devices that would be given it: others"):
        house.start("2.0.0", stages=("site=lab", "100%"))
    assert house.start("2.0.0", stages=("site=b", "100%"))


@pytest.mark.parametrize(
    ("stages", "share", "devices"),
    [
        ((1, "100%"), 100, ()),
        ((1, "100%"), "99.9%", ()),
        ((1, "100%"), "50%", ("pi-0",)),
        (("id=pi-?", "100%"), "50%", ()),
    ],
)
def test_an_experiment_that_leaves_nobody_to_compare_with_is_refused(
    house: House, stages: tuple[int | str, ...], share: int | str, devices: tuple[str, ...]
) -> None:
    with pytest.raises(Refused, match=rf"an experiment at {share} of [18] devices leaves none without the release"):
        house.start("2.0.0", stages=stages, experiment=Experiment(share=share), devices=devices)
    assert house.start("2.0.0", stages=(1, "100%"), experiment=Experiment(share="75%"))


def test_a_stage_whose_devices_are_all_retired_is_passed_by_with_a_note(house: House) -> None:
    for device in EIGHT:
        house.put(device, "lab" if device < "pi-2" else "b")
    house.start("2.0.0", stages=("site=lab", 1, "100%"))
    for device in ("pi-0", "pi-1"):
        _retire(house, device)
    others = EIGHT[2:]
    house.live(others, 1)
    [_] = _running(house)
    audit = control.audit.c
    with house.control.connect() as connection:
        [said] = connection.execute(sa.select(audit.detail).where(audit.what == "rollout stage")).scalars()
    assert said.endswith(": nobody is left for stage 1 (site=lab): it is passed by")
    assert house.live(others, 1, wrong=_harmful)["stage"] == 1, "and the next one is judged as ever"


def test_no_stage_is_passed_by_into_the_last_while_nobody_has_shown_what_the_release_does(house: House) -> None:
    for device in EIGHT:
        house.put(device, "lab" if device < "pi-2" else "b")
    house.start("2.0.0", stages=("site=lab", "100%"))
    for device in ("pi-0", "pi-1"):
        _retire(house, device)
    seen = house.live(EIGHT[2:], 10)
    assert (seen["state"], seen["stage"], _running(house)) == ("running", 0, [])
    assert seen["reason"] == (
        "nobody is left for stage 1 (site=lab), and nobody has the release: abort it, and begin anew"
    )
    _retire(house, "pi-0", state="enrolled")
    house.live(EIGHT, 1)
    assert _running(house) == ["pi-0"]


def test_a_stage_whose_devices_are_silent_held_or_closed_is_waited_for() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=("site=lab", 1, "100%"), windows=("02:00-04:00",))
    state = started(spec, 4)
    groups = np.array([0, 0, -1, -1], np.int8)
    state = msgspec.structs.replace(state, members=replace(state.members, group=groups))
    first = state.members.devices[:2]
    kinds = {"held": mask_of(state, first)}, {"open": ~mask_of(state, first)}
    for seen in (seen_of(state, state.members.devices[2:]), *(everyone(state, **kind) for kind in kinds)):
        after, wishes = step(state, spec, seen, Script([]), 1000)
        assert (after.stage, wishes) == (0, [])
    after, wishes = step(state, spec, everyone(state, unable=mask_of(state, first)), Script([]), 1000)
    assert (after.stage, [wish.device for wish in wishes]) == (1, [state.members.devices[2]])
