"""What a rollout's specification asks for, as traces: whom it reaches, how fast, with whose consent, how it ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewright_contracts.errors import Refused, RequestError
from edgewright_hub.rollouts import experiment, exposure, rollout
from edgewright_hub.rollouts.effect import Effect
from edgewright_hub.rollouts.hearing import News
from edgewright_hub.rollouts.members import HAPPENINGS, IS_GIVEN, MEMBERS, NEXT, STATUSES, Member, Members
from edgewright_hub.rollouts.progress import packed, unpacked
from edgewright_hub.rollouts.rollout import Observation
from edgewright_hub.rollouts.specification import Experiment, Retries, Retry, RolloutSpec
from edgewright_hub.rollouts.state import ACTIVE, TABLE, RolloutState
from edgewright_hub.rollouts.wishes import Wish
from sim.rollouts import NEW, OLD, Script, everyone, fleet, mask_of, names, obedient, seen_of, started, step


def _spec(**more: Any) -> RolloutSpec:
    return RolloutSpec(model="digits", digest=NEW, **more)


def _told(wishes: list[Wish], digest: str | None = NEW) -> list[str]:
    return sorted(w.device for w in wishes if w.digest == digest)


# Groups.


def _grouped(spec: RolloutSpec, groups: dict[str, int]) -> RolloutState:
    members = tuple(msgspec.structs.replace(m, group=groups.get(m.device)) for m in fleet(20))
    return rollout.command(rollout.enrol(RolloutState(id="r1"), members), spec, "start", "go", 0)[0]


def test_a_stage_by_selector_is_given_to_those_devices_and_to_no_other() -> None:
    spec = _spec(stages=("site=lab", "50%", "site=berlin", "100%"))
    lab, berlin = [f"d{i}" for i in range(3)], [f"d{i}" for i in range(3, 9)]
    state = _grouped(spec, dict.fromkeys(lab, 0) | dict.fromkeys(berlin, 2))
    gate = Script(["promote"] * 20)
    trace = []
    while state.state == "running":
        state, wishes = step(state, spec, obedient(state), gate, 0)
        if wishes and state.state == "running":
            trace.append(_told(wishes))
    assert trace[0] == lab
    assert len(trace[1]) == 7
    assert not {*trace[1]} & {*berlin}, "they wait for their stage"
    assert trace[2] == berlin
    assert len(trace[3]) == 4
    assert state.state == "done"


@pytest.mark.parametrize("stage", ["site=berlin", "!held", "hw=pi5*,tag.line=3", "held"])
def test_what_reads_as_a_selector_is_a_stage(stage: str) -> None:
    assert _spec(stages=(1, stage, "100%")).ladder == (1, stage, "100%")


# Caps.


def test_no_more_devices_update_at_once_than_the_cap_allows() -> None:
    spec = _spec(stages=("100%",), concurrency=3)
    state, gate = started(spec, 10), Script(["promote"] * 99)
    asked = []
    for now in range(10):
        going = names(state, "asked", "active")
        news = [News(d, "activate" if now % 2 else "commit") for d in going[:2]]
        state, wishes = step(state, spec, everyone(state, *news), gate, now)
        if state.state != "running":
            break
        assert len(names(state, "asked", "active")) <= 3
        asked += _told(wishes)
    assert sorted(asked) == sorted(state.members.devices)
    assert state.state == "done", "a stage that is not given to all yet is not promoted, whatever the gate says"


def test_in_any_time_no_more_bytes_are_asked_for_than_the_rate_allows() -> None:
    rate, size = 1000.0, 30_000
    spec = _spec(stages=("100%",), bandwidth_bytes_s=rate, release_bytes=size)
    state, gate = started(spec, 40), Script([])
    rng, now, asked = np.random.default_rng(1), 0, []
    while len(asked) < 40:
        now += int(rng.integers(100, 60_000))
        state, wishes = step(state, spec, obedient(state), gate, now)
        asked += [now] * len(wishes)
    for i, begin in enumerate(asked):
        for j in range(i, 40):
            seconds = (asked[j] - begin) / 1000
            assert (j - i + 1) * size <= rate * (seconds + exposure.BURST_S)
    assert asked[-1] - asked[0] <= 1.2 * 1000 * 40 * size / rate, "and not much fewer"


def test_a_release_larger_than_the_bucket_still_comes_through() -> None:
    spec = _spec(stages=("100%",), bandwidth_bytes_s=10.0, release_bytes=100_000)
    state, gate = started(spec, 3), Script([])
    begun = []
    for minute in range(400):
        state, wishes = step(state, spec, everyone(state), gate, 60_000 * minute)
        begun += [minute] * len(_told(wishes))
    assert begun == [0, 167, 334]


# Maintenance windows and holds.


def test_closed_devices_wait_for_their_window_are_not_late_and_the_rollout_waits_for_them() -> None:
    spec = _spec(stages=("100%",), device_timeout_s=60)
    state, gate = started(spec, 4), Script(["promote"] * 99)
    first, second = state.members.devices[:2], state.members.devices[2:]
    state, wishes = step(state, spec, everyone(state, open=mask_of(state, first)), gate, 0)
    assert _told(wishes) == sorted(first)
    news = [News(first[0], "commit")]
    closed = np.zeros(4, np.bool_)
    state, wishes = step(state, spec, everyone(state, *news, open=closed), gate, 1_000)
    assert _told(wishes, OLD) == [first[1]], "its window is over, and it does not run the release yet"
    state, _ = step(state, spec, everyone(state, open=closed), gate, 10_000_000)
    assert (state.state, state.reason) == ("running", "3 devices wait for their maintenance windows")
    assert names(state, "late") == []
    state, wishes = step(state, spec, everyone(state, open=mask_of(state, [first[1], *second])), gate, 20_000_000)
    assert _told(wishes) == sorted([first[1], *second])
    state, _ = step(state, spec, obedient(state), gate, 20_001_000)
    assert state.state == "done"


def test_a_stage_in_which_nobody_is_open_holds() -> None:
    spec = _spec()
    state, gate = started(spec), Script([])
    state, wishes = step(state, spec, everyone(state, open=np.zeros(8, np.bool_)), gate, 0)
    assert (wishes, gate.asked[-1].expected, state.exposed) == ([], 0, 0)


def test_a_device_that_its_operator_holds_is_left_alone_and_comes_in_later() -> None:
    spec = _spec(stages=(1, "100%"))
    state, gate = started(spec, 4), Script(["hold", "hold", "promote"])
    state, _ = step(state, spec, everyone(state), gate, 0)
    (held,) = names(state, "asked")
    state, wishes = step(state, spec, everyone(state, held=mask_of(state, [held])), gate, 1)
    assert (_told(wishes, OLD), len(_told(wishes))) == ([held], 1), "another takes its place"
    assert names(state, "waiting")[0] == held
    assert state.members.reasons[held] == "held by an operator"
    (other,) = names(state, "asked")
    state, _ = step(state, spec, everyone(state, News(other, "commit"), held=mask_of(state, [held])), gate, 2)
    state, wishes = step(state, spec, everyone(state), gate, 3)
    assert held in _told(wishes)


# Failures that are nobody's fault.


def test_a_device_is_asked_again_after_a_back_off_that_doubles_and_then_no_more() -> None:
    spec = _spec(stages=(1, "100%"), retry=Retries(link=Retry(attempts=3, first_s=60)))
    state, gate = started(spec, 3), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    (device,) = names(state, "asked")
    now, waits = 0, []
    for _ in range(3):
        failed = now
        state, wishes = step(state, spec, everyone(state, News(device, "retry", "no route", "fetch")), gate, now)
        while not wishes:
            now += 1_000
            state, wishes = step(state, spec, everyone(state), gate, now)
        assert wishes == [Wish(device, "digits", NEW, trial=True, again=True)]
        waits.append((now - failed) // 1000)
    assert waits == [60, 120, 240]
    state, wishes = step(state, spec, everyone(state, News(device, "retry", "no route", "fetch")), gate, now)
    assert names(state, "late") == [device]
    assert state.members.reasons[device] == "given up after 4 attempts: no route"
    assert (_told(wishes, OLD), state.exposed) == ([device], 1), "another takes its place"


def test_every_class_of_failure_has_its_own_patience() -> None:
    ends = {}
    for cause in ("model", "link", "power", "disk", "hub", "operator"):
        spec = _spec(device_timeout_s=900)
        state, gate = started(spec, 3), Script([])
        state, _ = step(state, spec, everyone(state), gate, 0)
        (device,) = names(state, "asked")
        happening: Any = "fail" if cause == "model" else "retry"
        state, _ = step(state, spec, everyone(state, News(device, happening, "so", "fetch", cause)), gate, 0)  # type: ignore[arg-type]
        after = []
        for minute in range(0, 70, 5):
            state, wishes = step(state, spec, everyone(state), gate, 60_000 * minute)
            after += [(w.digest == NEW, minute) for w in wishes if w.device == device]
        ends[cause] = after[:1]
    again = [(True, 5)]
    assert ends == {"model": [], "link": again, "power": again, "disk": [(True, 60)], "hub": again,
                    "operator": [(False, 15)]}, "the operator's has the time of an answer"  # fmt: skip


def test_a_device_that_gave_up_by_itself_takes_no_further_part_and_says_why() -> None:
    spec = _spec(stages=(1, "100%"))
    state, gate = started(spec, 3), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    (device,) = names(state, "asked")
    said = "held after 40 attempts, until something new is wanted"
    state, wishes = step(state, spec, everyone(state, News(device, "stop", said)), gate, 1)
    assert (names(state, "late"), state.members.reasons[device]) == ([device], said)
    assert _told(wishes, OLD) == [device]
    assert state.members.stage[state.members.columns()[device]] == -1


def test_a_resting_device_that_falls_silent_gives_its_place_to_another() -> None:
    spec = _spec(stages=(1, "100%"), device_timeout_s=600)
    state, gate = started(spec, 3), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    (device,) = names(state, "asked")
    state, _ = step(state, spec, everyone(state, News(device, "retry", "battery", "fetch", "power")), gate, 0)
    others = set(state.members.devices) - {device}
    state, _ = step(state, spec, seen_of(state, others), gate, 900_000)
    assert names(state, "resting") == [device]
    state, wishes = step(state, spec, seen_of(state, others), gate, 900_001)
    assert (names(state, "late"), _told(wishes, OLD), len(_told(wishes))) == ([device], [device], 1)


def test_a_resting_device_that_came_through_by_itself_is_not_asked_again() -> None:
    spec = _spec(stages=(1, "100%"))
    state, gate = started(spec, 3), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    (device,) = names(state, "asked")
    state, _ = step(state, spec, everyone(state, News(device, "retry", "link", "fetch")), gate, 0)
    state, _ = step(state, spec, everyone(state, News(device, "activate"), News(device, "commit")), gate, 1)
    state, wishes = step(state, spec, everyone(state), gate, 10**7)
    assert (names(state, "committed"), wishes) == ([device], [])


# Consent.


def test_it_starts_when_enough_different_persons_approved_this_digest() -> None:
    spec = _spec(approvals=2)
    state = rollout.enrol(RolloutState(id="r1", author="ann"), fleet(4))
    state, _ = rollout.command(state, spec, "start", "by ann", 1)
    assert state.state == "unapproved"
    idle, wishes = step(state, spec, everyone(state), Script([]), 2)
    assert (idle, wishes) == (state, [])
    with pytest.raises(Refused, match="ann created rollout r1: somebody else must approve it"):
        rollout.approve(state, spec, "ann", NEW, 2)
    with pytest.raises(Refused, match="is of aaaaaaaaaaaaaaaa, and bob looked at bbbbbbbbbbbbbbbb"):
        rollout.approve(state, spec, "bob", OLD, 2)
    state = rollout.approve(state, spec, "bob", NEW, 3)
    assert (state.state, state.reason) == ("unapproved", "approved by bob; 1 more must")
    with pytest.raises(Refused, match="bob has approved rollout r1 already: 2 different persons must"):
        rollout.approve(state, spec, "bob", NEW, 4)
    state = rollout.approve(unpacked(packed(state)), spec, "cy", NEW, 5)
    assert (state.state, state.reason) == ("running", "approved by bob and cy")
    with pytest.raises(RequestError, match="is running and cannot approve"):
        rollout.approve(state, spec, "dan", NEW, 6)


# How it ends.


def test_a_withdrawn_digest_ends_it_at_once_whatever_it_was_doing() -> None:
    spec = _spec(stages=(2, "100%"))
    for command in ("", "pause"):
        state, gate = started(spec, 4), Script([])
        state, _ = step(state, spec, everyone(state), gate, 0)
        if command:
            state, _ = rollout.command(state, spec, "pause", "lunch", 1)
        state, wishes = step(state, spec, everyone(state, withdrawn="its owner does not sign it any more"), gate, 2)
        assert (state.state, state.outcome) == ("rolling-back", "withdrawn")
        assert state.reason == "its owner does not sign it any more"
        assert len(_told(wishes, OLD)) == 2
        state, wishes = step(state, spec, everyone(state, withdrawn="still"), gate, 3)
        assert (state.state, wishes) == ("rolled-back", []), "nobody had come to run it"
    waiting = rollout.command(RolloutState(id="r2"), _spec(approvals=1), "start", "", 0)[0]
    ended, _ = step(waiting, spec, everyone(waiting, withdrawn="revoked"), gate, 1)
    assert (ended.state, ended.outcome) == ("aborted", "withdrawn")


def _done(spec: RolloutSpec, size: int = 4) -> RolloutState:
    state, gate = started(spec, size), Script(["hold", "promote"])
    failing = state.members.devices[-1]
    state, _ = step(state, spec, everyone(state), gate, 0)
    news = [News(d, "fail" if d == failing else "commit") for d in state.members.devices]
    state, _ = step(state, spec, everyone(state, *news), gate, 1)
    assert state.state == "done"
    return state


def test_a_rollout_that_is_done_can_be_reverted_at_any_later_time() -> None:
    spec = _spec(stages=("100%",))
    state = unpacked(msgspec.json.decode(msgspec.json.encode(packed(_done(spec)))))
    gone_on, *ran, _failed = state.members.devices
    later = 90 * 86_400_000
    with pytest.raises(Refused, match="all have gone on since"):
        rollout.revert(state, np.zeros(4, np.bool_), "too late", later)
    state, asked = rollout.revert(state, mask_of(state, ran), "wrong in the dark", later)
    wishes = asked.expand(state.members, spec)
    assert wishes == [Wish(d, "digits", OLD, trial=False) for d in ran], f"{gone_on} runs something newer by now"
    assert state.state == "reverting"
    closed = np.zeros(4, np.bool_)
    state, _ = step(state, spec, everyone(state, back=ran[:1], open=closed), Script([]), later + 1)
    assert state.state == "reverting", "windows do not delay it"
    state, _ = step(state, spec, everyone(state, back=ran[1:]), Script([]), later + 2)
    assert (state.state, state.outcome, state.reason) == ("reverted", "reverted", "wrong in the dark")
    with pytest.raises(RequestError, match="is reverted and cannot revert; possible now: nothing, it has ended"):
        rollout.revert(state, mask_of(state, ran), "", later + 3)


def test_a_revert_waits_for_devices_too_that_got_the_release_after_the_end() -> None:
    spec = _spec(stages=("100%",))
    state, gate = started(spec, 3), Script(["hold", "promote"])
    away = state.members.devices[0]
    here = state.members.devices[1:]
    state, _ = step(state, spec, seen_of(state, here), gate, 0)
    state, wishes = step(state, spec, seen_of(state, here, *(News(d, "commit") for d in here)), gate, 1)
    assert (state.state, away in _told(wishes)) == ("done", True)
    state, _ = rollout.revert(state, np.ones(3, np.bool_), "no good", 2)
    state, _ = step(state, spec, everyone(state, back=here), gate, 3)
    assert state.state == "reverting"
    state, _ = step(state, spec, everyone(state, back=[away]), gate, 4)
    assert state.state == "reverted"


def test_devices_rest_from_a_model_that_was_taken_back_from_them() -> None:
    spec = _spec(stages=(2, "100%"), cooldown_s=3600)
    state, gate = started(spec, 6), Script(["hold", "rollback"])
    state, _ = step(state, spec, everyone(state), gate, 0)
    assert rollout.cooling(state, spec, 1) == ()
    state, _ = step(state, spec, obedient(state), gate, 1_000)
    two = tuple(names(state, "committed"))
    assert rollout.cooling(state, spec, 1_000) == two
    state, _ = step(state, spec, everyone(state, back=two), gate, 5_000)
    assert state.state == "rolled-back"
    assert rollout.cooling(state, spec, 3_604_999) == two
    assert rollout.cooling(state, spec, 3_605_000) == ()
    assert rollout.cooling(_done(_spec(stages=("100%",), cooldown_s=3600)), spec, 2) == (), "it went well"


# Experiments.


def _effect(low: float, high: float) -> Effect:
    return Effect(
        metric="pick_ok", treated=0.05 + (low + high) / 2, control=0.05, n=900, n_control=900, ratio=None,
        ratio_low=0.1, ratio_high=9.0, difference=(low + high) / 2, difference_low=low, difference_high=high,
        certainty=0.95,
    )  # fmt: skip


def _at_its_share(spec: RolloutSpec, gate: Script) -> tuple[RolloutState, int]:
    state = started(spec, 20)
    for now in range(12):
        state, _ = step(state, spec, obedient(state), gate, 1_000 * now)
    return state, 12_000


def test_an_experiment_stays_at_its_share_whatever_the_gate_says_until_somebody_concludes() -> None:
    spec = _spec(experiment=Experiment(share="50%"))
    assert spec.ladder == (1, "25%", "50%", "100%")
    for answer, end in (("promote", "done"), ("take back", "rolling-back")):
        gate = Script(["promote"] * 99, effects=(_effect(-0.03, 0.01),))
        state, now = _at_its_share(spec, gate)
        assert (
            state.state,
            state.exposed,
        ) == ("running", 10)
        with pytest.raises(RequestError, match="cannot start; possible now: pause, abort, conclude"):
            rollout.command(state, spec, "start", "", now)
        state, _ = rollout.conclude(state, spec, answer, "ann says so", now)  # type: ignore[arg-type]
        assert state.conclusion is not None
        assert state.conclusion.effects == (_effect(-0.03, 0.01),), "an effect with an interval, as it was known then"
        with pytest.raises((Refused, RequestError)):
            rollout.conclude(state, spec, "promote", "again", now)
        state = unpacked(msgspec.json.decode(msgspec.json.encode(packed(state))))
        if answer == "promote":
            for _ in range(3):
                state, _ = step(state, spec, obedient(state), gate, now)
        assert state.state == end
        assert state.outcome == ("promoted" if answer == "promote" else "taken back")


@pytest.mark.parametrize(
    ("effect", "more", "outcome", "says"),
    [
        ((-0.03, -0.01), {"outcome": "pick_ok"}, "", "a difference of -2.00 points (-3.00 to -1.00, 95% sure)"),
        ((0.01, 0.03), {"outcome": "pick_ok"}, "taken back", "pick_ok 7.00% against 5.00%"),
        ((-0.03, 0.01), {"at_most_s": 5.0}, "taken back", "undecided after 5 s: pick_ok 4.00% against 5.00%"),
        ((-0.03, 0.01), {"at_most_s": 5.0, "undecided": "promote"}, "", "undecided after 5 s"),
    ],
)
def test_an_experiment_ends_when_the_interval_leaves_out_nothing_or_its_time_is_over(
    effect: tuple[float, float], more: dict[str, Any], outcome: str, says: str
) -> None:
    spec = _spec(stages=("50%", "100%"), experiment=Experiment(share="50%", **more))
    after, _ = _at_its_share(spec, Script(["hold"] * 99, effects=(_effect(*effect),)))
    assert after.conclusion is not None
    assert (after.outcome, after.conclusion.answer) == (outcome, "take back" if outcome else "promote")
    assert says in after.conclusion.reason


def test_what_an_experiment_found_is_told_with_what_the_devices_may_differ_by_themselves() -> None:
    known = msgspec.structs.replace(_effect(-0.03, 0.01), ratio=0.8, ratio_low=0.6, ratio_high=0.98, apart=0.14)
    assert experiment.told(known).endswith(
        "a difference of -1.00 points (-3.00 to +1.00, 95% sure), a ratio of 0.80 (0.60 to 0.98); "
        "the devices by themselves may differ by 14%"
    )
    unbounded = msgspec.structs.replace(known, ratio_low=0.0, ratio_high=None, apart=None)
    assert experiment.told(unbounded).endswith("(0.00 to any); the devices by themselves may differ in any way")


def test_harm_ends_an_experiment_too_and_nobody_concludes_what_has_not_begun() -> None:
    spec = _spec(experiment=Experiment(share="50%"))
    state, gate = started(spec, 20), Script(["hold", "promote", "promote", "hold", "rollback"])
    with pytest.raises(Refused, match="is not at the share of an experiment"):
        rollout.conclude(state, spec, "promote", "", 0)
    for now in range(6):
        state, _ = step(state, spec, obedient(state), gate, 1_000 * now)
    assert (state.state, state.outcome, state.conclusion) == ("rolling-back", "rolled back", None)


@pytest.mark.parametrize("share", ["100%", "site=lab", "0%", 0])
def test_the_share_of_an_experiment_leaves_somebody_to_compare_with(share: Any) -> None:
    with pytest.raises(RequestError, match="experiment: expected a count or a percentage below 100%, as 50%; got"):
        _spec(experiment=Experiment(share=share))


# The tables.


def test_the_matrix_is_the_table() -> None:
    assert NEXT.shape == (len(STATUSES), len(HAPPENINGS))
    for (status, happening), after in MEMBERS.items():
        assert STATUSES[NEXT[STATUSES.index(status), HAPPENINGS.index(happening)]] == after
    news = [HAPPENINGS.index(happening) for happening in ("activate", "commit", "fail", "retry", "stop")]
    for ended in ("late", "gone"):
        assert (NEXT[STATUSES.index(ended), news] == STATUSES.index(ended)).all()
        assert not IS_GIVEN[STATUSES.index(ended)]


def test_what_one_device_says_is_taken_in_its_order_whatever_others_say_between() -> None:
    spec = _spec(stages=("100%",))
    state, _ = step(started(spec, 3), spec, everyone(started(spec, 3)), Script([]), 0)
    a, b, c = state.members.devices
    news = [News(a, "activate"), News(b, "commit"), News(a, "retry", "power"), News(c, "fail", "bad", "selftest"),
            News(a, "activate"), News(b, "activate"), News("stranger", "fail"), News(a, "commit")]  # fmt: skip
    state, _ = step(state, spec, everyone(state, *news), Script([]), 1)
    assert [state.members.row(i).status for i in range(3)] == ["committed", "committed", "failed"]
    assert state.members.attempts.tolist() == [1, 0, 0]
    assert state.members.refused.tolist() == [False, False, True]
    assert state.members.reasons == {c: "bad"}


def _scenes() -> dict[tuple[str, str], Any]:
    """For each transition of the table: a state before it, what is observed then, and the gate."""
    spec = _spec(stages=(2, "100%"))
    fresh = rollout.enrol(RolloutState(id="r1", author="ann"), fleet(4))
    running, _ = step(started(spec, 4), spec, everyone(started(spec, 4)), Script([]), 0)
    committed, _ = step(running, spec, obedient(running), Script([]), 1)
    last, _ = step(committed, spec, everyone(committed), Script(["promote"]), 2)
    paused, _ = rollout.command(committed, spec, "pause", "", 2)
    back, _ = step(committed, spec, everyone(committed), Script(["rollback"]), 3)
    done = _done(_spec(stages=("100%",)))
    still = ~done.members.has("failed")
    reverting, _ = rollout.revert(done, still, "", 4)
    two = _spec(stages=(2, "100%"), approvals=1)
    tried = _spec(stages=(2, "100%"), experiment=Experiment(share=2))
    unapproved, _ = rollout.command(fresh, two, "start", "", 1)
    other = ["d0", "d1", "d2", "d3"]

    def stepped(state: RolloutState, verdict: str = "hold", **more: Any) -> Any:
        return lambda s: step(s, spec, everyone(s, *(News(d, "commit") for d in names(s, "asked")), **more),
                              Script([verdict]), 10_000)  # fmt: skip

    def told(decide: Any, spec: RolloutSpec = spec) -> Any:
        def both(state: RolloutState) -> tuple[RolloutState, list[Wish]]:
            after, wishes = decide(state)
            return after, wishes.expand(after.members, spec)

        return both

    def commanded(event: Any, spec: RolloutSpec = spec) -> Any:
        return told(lambda s: rollout.command(s, spec, event, "so", 10_000), spec)

    def concluded(answer: Any) -> Any:
        return told(lambda s: rollout.conclude(s, tried, answer, "so", 10_000), tried)

    return {
        ("draft", "start"): (fresh, commanded("start")),
        ("draft", "submit"): (fresh, commanded("start", two)),
        ("draft", "abort"): (fresh, commanded("abort")),
        ("unapproved", "approve"): (unapproved, lambda s: (rollout.approve(s, two, "bob", NEW, 10_000), [])),
        ("unapproved", "abort"): (unapproved, commanded("abort")),
        ("running", "pause"): (running, commanded("pause")),
        ("running", "abort"): (committed, commanded("abort")),
        ("running", "harm"): (committed, stepped(committed, "rollback")),
        ("running", "finish"): (last, stepped(last, "promote")),
        ("running", "conclude"): (committed, concluded("promote")),
        ("running", "take back"): (committed, concluded("take back")),
        ("paused", "resume"): (paused, commanded("resume")),
        ("paused", "abort"): (paused, commanded("abort")),
        ("paused", "harm"): (paused, stepped(paused, "rollback")),
        ("paused", "conclude"): (paused, concluded("promote")),
        ("paused", "take back"): (paused, concluded("take back")),
        ("rolling-back", "undone"): (back, stepped(back, back=other)),
        ("done", "revert"): (done, told(lambda s: rollout.revert(s, still, "so", 10_000))),
        ("reverting", "undone"): (reverting, stepped(reverting, back=other)),
    }


def test_a_hub_that_dies_between_deciding_and_writing_decides_the_same_again_at_every_transition() -> None:
    scenes = _scenes()
    assert set(scenes) == set(TABLE), "every transition of the table has a scene"
    for (before, event), (state, decide) in scenes.items():
        assert state.state == before, (before, event)
        stored = msgspec.json.encode(packed(state))
        first, wishes = decide(state)
        assert first.state == TABLE[before, event], (before, event)
        again, same = decide(unpacked(msgspec.json.decode(stored)))  # the first was computed and never written
        assert (again, same) == (first, wishes), (before, event)
        assert msgspec.json.encode(packed(state)) == stored, "deciding wrote to nothing that it was given"
        assert len({w.device for w in wishes}) == len(wishes), "each device is told one thing, once"
        restarted = unpacked(msgspec.json.decode(msgspec.json.encode(packed(first))))
        assert restarted == first
        if event == "finish":  # written, and read after a restart: nothing is repeated
            assert step(restarted, _spec(), everyone(restarted), Script(["promote"]), 20_000) == (first, [])


def test_in_states_that_have_ended_nothing_is_wished_any_more() -> None:
    ended = [s for s in {*TABLE.values()} if s not in ACTIVE]
    assert sorted(ended) == ["aborted", "done", "reverted", "rolled-back"]
    for name in ended:
        state = msgspec.structs.replace(_done(_spec(stages=("100%",))), state=name)
        seen = everyone(state, *(News(d, "fail") for d in state.members.devices), withdrawn="now")
        assert step(state, _spec(), seen, Script(["rollback"]), 9) == (state, [])


def test_late_joiners_take_their_place_and_keep_what_others_had() -> None:
    spec = _spec(stages=("50%", "100%"))
    state, gate = started(spec, 10), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    before = {m.device: m for m in state.members.rows()}
    state = rollout.enrol(state, tuple(Member(device=f"e{i}", previous="c" * 64) for i in range(10)))
    after = {m.device: m for m in state.members.rows()}
    assert {d: after[d] for d in before} == before
    assert after["e0"].previous == "c" * 64
    state, wishes = step(state, spec, everyone(state), gate, 1)
    assert (state.exposed, len(wishes)) == (10, 5), "the share is of all who take part now"


def test_an_observation_need_not_say_more_than_who_is_there() -> None:
    state = started(_spec())
    after, wishes = rollout.step(state, _spec(), Observation(np.ones(8, np.bool_)), Script([]), 1)
    assert (len(wishes), after.exposed) == (1, 1)
    assert dataclasses.replace(state.members) == state.members
    assert Members.of(state.members.rows()) == state.members


@pytest.mark.parametrize("seed", range(4))
def test_whatever_devices_and_gates_do_those_told_to_run_the_release_are_those_that_were_given_it(seed: int) -> None:
    """Random news, silence, windows, holds, verdicts and commands: what the documents say follows the states."""
    rng = np.random.default_rng(seed)
    ends = set()
    for _ in range(15):
        size, cap = 12, int(rng.integers(1, 6))
        spec = _spec(stages=(1, "25%", "100%"), concurrency=cap, device_timeout_s=120, retry=Retries(
            link=Retry(attempts=2, first_s=30), disk=Retry(attempts=1, first_s=60)))  # fmt: skip
        state, told = started(spec, size), dict.fromkeys((m.device for m in fleet(size)), OLD)
        for turn in range(60):
            members = state.members
            happenings: Any = rng.choice(
                ["activate", "commit", "retry", "fail", "stop"], 4, p=[0.3, 0.4, 0.2, 0.04, 0.06]
            )
            causes: Any = rng.choice(["link", "disk", "operator"], 4)
            who = rng.integers(0, size, 4)
            news = [
                News(members.devices[i], h, "so", "fetch", c) for i, h, c in zip(who, happenings, causes, strict=True)
            ]
            present = [d for d in members.devices if rng.random() < 0.8]
            gone = {name: rng.random(size) < 0.03 for name in ("retired", "left")}
            seen = seen_of(state, present, *news, open=rng.random(size) < 0.9, held=rng.random(size) < 0.05, **gone)
            verdict = rng.choice(["hold", "promote", "rollback"], p=[0.6, 0.39, 0.01])
            before = state
            state, wishes = step(state, spec, seen, Script([str(verdict)]), 20_000 * turn)
            assert len({w.device for w in wishes}) == len(wishes)
            told |= {w.device: w.digest for w in wishes}
            given = {d for d, yes in zip(members.devices, state.members.given, strict=True) if yes}
            ran = {d for d, digest in told.items() if digest == NEW}
            if state.state in ("running", "paused"):
                assert ran == given
                assert before.state == "running" or not _told(wishes), "a paused rollout gives nobody anything"
                if _told(wishes):
                    assert len(names(state, "asked", "active")) <= cap
            elif state.state == "done":
                later = names(state, "waiting", "asked", "resting", "late") if spec.paced else []
                assert ran == {*members.devices} - {*names(state, "failed", "gone"), *later}
                assert all(not w.trial for w in wishes)
            else:
                assert not ran
            if state.state not in ACTIVE:
                break
            if state.state in ("running", "paused") and rng.random() < 0.05:
                state, _ = rollout.command(state, spec, "resume" if state.state == "paused" else "pause", "", 0)
        ends.add(state.state)
    assert len(ends) > 1
