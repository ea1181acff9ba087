"""Rollouts as traces: who was given the release at each step, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewright_contracts.codec import decode
from edgewright_contracts.errors import RequestError
from edgewright_hub.rollouts import rollout
from edgewright_hub.rollouts.gates import GatePolicy, SequentialGate
from edgewright_hub.rollouts.hearing import News, Said
from edgewright_hub.rollouts.members import STATUSES, Member, Members
from edgewright_hub.rollouts.processes import Counts, Margin
from edgewright_hub.rollouts.progress import packed, unpacked
from edgewright_hub.rollouts.rollout import Observation
from edgewright_hub.rollouts.specification import RolloutSpec
from edgewright_hub.rollouts.state import ACTIVE, TABLE, RolloutState
from edgewright_hub.rollouts.wishes import Wish
from sim.rollouts import NEW, OLD, Script, everyone, fleet, mask_of, names, obedient, seen_of, started, step


@dataclass
class Case:
    name: str
    steps: list[str]  # "obey", "silent", or happening:reason for the devices that were asked
    verdicts: list[str]
    trace: list[tuple[str, int, int]]  # state, stage, devices exposed
    wishes_back: int = 0
    outcome: str = ""
    stages: tuple[Any, ...] = (1, "25%", "100%")


CASES = [
    Case(
        "a good release goes to one device, to a quarter, and to all",
        ["obey"] * 7, ["hold", "promote", "hold", "promote", "hold", "promote"],
        [("running", 0, 1), ("running", 1, 2), ("running", 1, 2), ("running", 2, 8), ("running", 2, 8), ("done", 2, 8),
         ("done", 2, 8)], outcome="promoted",
    ),
    Case(
        "harm in the second stage sends both devices back and ends when they are seen there",
        ["obey", "obey", "obey", "obey", "back"], ["hold", "promote", "rollback"],
        [("running", 0, 1), ("running", 1, 2), ("rolling-back", 1, 2), ("rolling-back", 1, 2), ("rolled-back", 1, 2)],
        wishes_back=2, outcome="rolled back",
    ),
    Case(
        "a first device that fails its self-test ends the rollout",
        ["obey", "fail:self-test: 3 of 32 outputs differ"], ["hold", "rollback"],
        [("running", 0, 1), ("rolled-back", 0, 1)], wishes_back=1, outcome="refused by self-test",
    ),
    Case(
        "a broken link is retried and is not held against the release",
        ["idle", "retry:link lost", "obey", "obey"], ["hold", "hold", "hold", "promote"],
        [("running", 0, 1), ("running", 0, 1), ("running", 0, 1), ("running", 1, 2)],
    ),
    Case(
        "a release that is not promoted stays where it is",
        ["obey"] * 4, ["hold"] * 4, [("running", 0, 1)] * 4,
    ),
    Case(
        "one stage for all is judged too",
        ["obey", "obey", "obey"], ["hold", "hold", "promote"], [("running", 0, 8), ("running", 0, 8), ("done", 0, 8)],
        outcome="promoted", stages=("100%",),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_traces(case: Case) -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=case.stages)
    state, gate = started(spec), Script(list(case.verdicts))
    trace, back = [], 0
    for i, what in enumerate(case.steps):
        seen = everyone(state)
        asked = names(state, "asked")
        if what == "obey":
            seen = obedient(state)
        elif what == "back":
            seen = everyone(state, back=names(state, "committed"))
        elif ":" in what:
            happening, _, reason = what.partition(":")
            during = "selftest" if "self-test" in reason else "fetch"
            seen = everyone(state, *(News(d, happening, reason, during) for d in asked))  # type: ignore[arg-type]
        state, wishes = step(state, spec, seen, gate, 1000 * (i + 1))
        trace.append((state.state, state.stage, state.exposed))
        back += sum(w.digest == OLD for w in wishes)
    assert trace == case.trace
    assert back == case.wishes_back
    assert state.outcome == case.outcome


def test_stopping_the_hub_between_any_two_steps_changes_nothing() -> None:
    """The state goes through JSON after every step, as it does through the database."""
    spec = RolloutSpec(model="digits", digest=NEW)
    verdicts = ["hold", "promote", "hold", "promote", "promote", "promote"]

    def run(stop: bool) -> list[tuple[RolloutState, list[Wish]]]:
        state, gate, seen = started(spec), Script(list(verdicts)), []
        for i in range(8):
            if stop:
                state = unpacked(msgspec.json.decode(msgspec.json.encode(packed(state))))
            state, wishes = step(state, spec, obedient(state), gate, i)
            seen.append((state, wishes))
        return seen

    assert run(stop=True) == run(stop=False)


def test_what_is_stored_is_what_is_read_whatever_the_numbers() -> None:
    rng = np.random.default_rng(1)
    size = 300
    counts = {name: rng.integers(0, 70_000, (sides, 5, size)) * rng.random((sides, 5, 1)).round(1)
              for name, sides in (("pre", 2), ("since", 2), ("pending", 4))}  # fmt: skip
    members = Members.new(
        [f"d{i}" for i in range(size)], [OLD, "c" * 64], {"d3": "the link is down"},
        previous=rng.integers(-1, 2, size).astype(np.int16), slow_cell=rng.integers(-1, 400, size).astype(np.int16),
        status=rng.integers(0, len(STATUSES), size).astype(np.int8), back=rng.random(size) < 0.5,
        asked_ms=1_760_000_000_000 + rng.integers(0, 2**34, size), windows=rng.integers(0, 2**31, size, np.int32),
        **counts,
    )  # fmt: skip
    state = RolloutState(id="r1", members=members, reason="said so")
    again = unpacked(msgspec.json.decode(msgspec.json.encode(packed(state))))
    assert again == state
    assert again != msgspec.structs.replace(state, members=Members.of(()))


def test_a_rollout_that_an_older_release_stored_goes_on() -> None:
    row = {
        "device": "d0", "previous": OLD, "pre_trials": [9.0, 0.0, 1.0], "pre_events": [1.0, 0.0, 0.0],
        "control_trials": [2.0, 0.0, 0.0], "control_events": [0.0] * 3, "slow_cell": 40, "status": "failed",
        "stage": 0, "asked_ms": 7, "windows": 2, "retries": 1, "restarts": 1, "back": False, "failed_in": "selftest",
        "reason": "no",
    }  # fmt: skip
    other = {**row, "device": "d1", "status": "waiting", "stage": None, "slow_cell": None, "reason": ""}
    pending = [[float(i), 0.0] for i in range(12)]
    document = {
        "id": "r1", "state": "running", "members": [row, other], "stage": 0, "since_ms": 5, "pending": pending,
        "ledger": {"processes": []}, "judged_ms": 3, "reason": "because", "outcome": "", "figures": [],
    }  # fmt: skip
    state = unpacked(document)
    assert (state.state, state.since_ms, state.judged_ms, state.reason) == ("running", 5, 3, "because")
    assert state.members.row(0) == Member(
        device="d0", previous=OLD, pre_trials=(9, 0, 1), pre_events=(1, 0, 0), control_trials=(2, 0, 0), slow_cell=40,
        status="failed", stage=0, asked_ms=7, windows=2, refused=True, reason="no",
    )  # fmt: skip
    assert state.members.row(1).stage is None
    assert state.members.pending[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    spec = RolloutSpec(model="digits", digest=NEW)
    assert step(state, spec, everyone(state), Script(["rollback"]), 9)[0].outcome == "rolled back"


def test_a_silent_device_is_passed_over_and_comes_in_when_it_speaks() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"))
    state, gate = started(spec, 4), Script(["hold", "promote", "hold", "hold", "hold", "promote"])
    first = state.members.devices[0]
    without = set(state.members.devices) - {first}
    state, _ = step(state, spec, seen_of(state, without), gate, 1)
    assert names(state, "asked") == [state.members.devices[1]]
    obeyed = seen_of(state, without, News(state.members.devices[1], "commit"))
    state, _ = step(state, spec, obeyed, gate, 2)
    assert (state.exposed, names(state, "waiting")) == (3, [first])
    state, wishes = step(state, spec, everyone(state), gate, 3)
    assert [w.device for w in wishes] == [first]


def test_a_device_that_never_answers_leaves_the_denominator_and_its_wish_is_withdrawn() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"), device_timeout_s=10)
    state, gate = started(spec, 4), Script([])
    state, _ = step(state, spec, everyone(state), gate, 1)
    silent = names(state, "asked")[0]
    others = set(state.members.devices) - {silent}
    state, _ = step(state, spec, seen_of(state, others), gate, 5_000)
    assert gate.asked[-1].expected == 0, "silent before it runs the release: not in the denominator"
    state, wishes = step(state, spec, seen_of(state, others), gate, 11_000)
    assert names(state, "late") == [silent]
    assert {(w.device, w.digest) for w in wishes} == {(silent, OLD), (names(state, "asked")[0], NEW)}
    assert state.exposed == 1, "another takes its place, so no more devices are exposed than the stage allows"


def test_while_a_device_tries_again_the_reason_says_why() -> None:
    spec = RolloutSpec(model="digits", digest=NEW)
    state, gate = started(spec), Script([])
    state, _ = step(state, spec, everyone(state), gate, 1)
    device = names(state, "asked")[0]
    seen = everyone(state, News(device, "retry", "the link is down", "fetch"))
    state, _ = step(state, spec, seen, gate, 2)
    assert state.reason == f"said hold; {device} tries again (the link is down)"


@pytest.mark.parametrize("runs_it_in_between", [False, True])
def test_a_device_that_tries_again_for_ever_does_not_hold_the_rollout_for_ever(runs_it_in_between: bool) -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"), device_timeout_s=7200)
    state, gate = started(spec, 4), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    device = names(state, "asked")[0]
    for hour in range(1, 12):
        news = [News(device, "retry", "expected 99 bytes of free disk", "fetch", "disk")]
        if runs_it_in_between:
            news.insert(0, News(device, "activate"))
        state, _ = step(state, spec, everyone(state, *news), gate, 3600_000 * hour)
    assert device in names(state, "late")
    assert state.exposed == 1, "another has taken its place"


def test_a_device_that_lost_the_release_has_the_whole_time_to_get_it_again() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"), device_timeout_s=10)
    state, gate = started(spec, 4), Script([])
    state, _ = step(state, spec, everyone(state), gate, 0)
    state, _ = step(state, spec, obedient(state), gate, 1)
    (device,) = names(state, "committed")
    state, _ = step(state, spec, everyone(state, News(device, "retry", "power lost")), gate, 100_000)
    assert names(state, "resting") == [device]
    state, wishes = step(state, spec, everyone(state), gate, 400_000)
    assert wishes == [Wish(device, "digits", NEW, trial=True, again=True)], "told anew, so that it tries at once"
    state, _ = step(state, spec, everyone(state), gate, 409_000)
    assert names(state, "asked") == [device]


def test_a_device_that_falls_silent_with_the_release_stays_in_the_denominator() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(2, "100%"))
    state = started(spec, 4)
    gate = SequentialGate(GatePolicy(slow=None, label=None))
    state, _ = step(state, spec, everyone(state), gate, 1)
    state, _ = step(state, spec, obedient(state), gate, 2)
    asked = names(state, "committed")
    others = set(state.members.devices) - {asked[0]}
    for i in range(50):
        seen = seen_of(state, others, windows={asked[1]: 5})
        state, _ = step(state, spec, seen, gate, 1000 * i)
    assert (state.state, state.stage) == ("running", 0)
    assert state.reason == "1 of 2 devices reported long enough (90% needed)"


@pytest.mark.parametrize("stages", [("100%",), (1, "100%")])
def test_it_is_done_only_when_every_present_device_of_the_last_stage_has_soaked(stages: tuple[Any, ...]) -> None:
    size, soak = 40, 3
    spec = RolloutSpec(model="digits", digest=NEW, stages=stages)
    first = rollout.enrol(RolloutState(id="r1"), tuple(Member(device=f"d{i}", previous=None) for i in range(size)))
    state, _ = rollout.command(first, spec, "start", "go", 0)
    gate = SequentialGate(GatePolicy(soak_windows=soak))
    slow, retrying, silent = state.members.devices[-3:]
    all_but_one = set(state.members.devices) - {silent}
    zero = np.zeros((2, size))

    def report(reporting: list[str], news: tuple[News, ...] = (), n: float = 1000.0) -> RolloutState:
        trials = n * mask_of(state, reporting)
        counts, nothing = np.vstack((trials, zero)), np.zeros((3, size))
        seen = seen_of(
            state, all_but_one, *news, windows=dict.fromkeys(reporting, 1), treated=Counts(counts, nothing),
            control=Counts(nothing, nothing),
        )  # fmt: skip
        nonlocal now
        now += 60_000
        return step(state, spec, seen, gate, now)[0]

    now = 0
    while state.stage < len(stages) - 1 or not names(state, "asked"):
        state = report(names(state, "committed"), tuple(News(d, "commit") for d in names(state, "asked")))
    quick = [d for d in names(state, "asked") if d not in (slow, retrying)]
    state = report([], (*(News(d, "commit") for d in (*quick, slow)), News(retrying, "retry", "disk full", "fetch")))
    for _ in range(10):
        state = report(quick)
    expected = len(quick) + 2
    assert (state.state, state.reason) == (
        "running",
        f"1 of {expected} devices of the last stage have not reported 3 times yet; {retrying} tries again (disk full)",
    )
    harmed = step(state, spec, everyone(state, *(News(d, "fail") for d in quick)), gate, now)[0]
    assert harmed.outcome == "rolled back", "harm is watched for meanwhile"
    for _ in range(soak - 1):
        state = report([*quick, slow])
    assert state.state == "running"
    state = report([*quick, slow])
    assert (state.state, state.outcome) == ("done", "promoted")
    assert silent in names(state, "waiting")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_fleet_smaller_than_its_stages_is_not_held_for_ever(size: int) -> None:
    spec = RolloutSpec(model="digits", digest=NEW)
    state, gate = started(spec, size), SequentialGate(GatePolicy(slow=None, label=None))
    zero, nothing = np.zeros((2, size)), np.zeros((3, size))
    for minute in range(1, 60):
        running = names(state, "committed")
        mask = 1000.0 * mask_of(state, running)
        seen = everyone(
            state, *(News(d, "commit") for d in names(state, "asked")),
            windows=dict.fromkeys(running, 1), treated=Counts(np.vstack((mask, zero)), nothing),
            control=Counts(np.vstack((1000.0 - mask, zero)), nothing),
        )  # fmt: skip
        state, _ = step(state, spec, seen, gate, 60_000 * minute)
    assert (state.state, state.exposed) == ("done", size)


def test_those_left_over_get_the_release_when_everyone_else_has_it() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=("100%",))
    state, gate = started(spec, 4), Script(["hold", "promote"])
    here = state.members.devices[:3]
    state, _ = step(state, spec, seen_of(state, here), gate, 1)
    news = tuple(News(d, "commit") for d in here)
    state, wishes = step(state, spec, seen_of(state, here, *news), gate, 2)
    assert state.state == "done"
    assert {(w.device, w.digest, w.trial) for w in wishes} == {(f"d{i}", NEW, False) for i in range(4)}


def test_the_end_of_a_rollout_is_told_to_those_that_failed_too() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=("100%",))
    state, gate = started(spec, 20), Script(["hold", "hold", "promote"])
    state, _ = step(state, spec, everyone(state), gate, 1)
    news = tuple(News(m.device, "fail" if m.device == "d3" else "commit") for m in state.members.rows())
    state, _ = step(state, spec, everyone(state, *news), gate, 2)
    state, wishes = step(state, spec, everyone(state), gate, 3)
    assert state.state == "done"
    assert len(wishes) == 20
    assert [(w.digest, w.trial) for w in wishes if w.device == "d3"] == [(OLD, False)]


def test_the_stage_whose_gate_asks_for_labels_has_a_device_that_gets_them() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, 2, "100%"))
    for labelled in range(8):
        members = tuple(
            msgspec.structs.replace(m, pre_trials=(1e4, 0, 50.0 if m.device == f"d{labelled}" else 0)) for m in fleet(8)
        )
        state = rollout.command(rollout.enrol(RolloutState(id="r1"), members), spec, "start", "go", 0)[0]
        gate = Script(["hold", "promote", "hold"])
        for i in range(3):
            state, _ = step(state, spec, obedient(state), gate, i)
        assert state.exposed == 2
        assert f"d{labelled}" in names(state, "asked", "committed")
        assert gate.asked[-1].labels_block


def test_a_paused_rollout_exposes_nobody_and_still_turns_back_from_harm() -> None:
    spec = RolloutSpec(model="digits", digest=NEW)
    state, gate = started(spec), Script(["hold", "promote", "promote", "rollback"])
    state, _ = step(state, spec, everyone(state), gate, 1)
    state, _ = rollout.command(state, spec, "pause", "lunch", 2)
    for _ in range(2):
        state, wishes = step(state, spec, obedient(state), gate, 3)
        assert (state.state, state.exposed, wishes) == ("paused", 1, [])
    state, wishes = step(state, spec, obedient(state), gate, 4)
    assert state.state == "rolling-back"
    assert len(wishes) == 1


def test_rolled_back_is_said_only_of_what_was_seen() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=("100%",), device_timeout_s=10)
    state, gate = started(spec, 8), Script(["hold", "hold", "rollback"])
    for now, seen in enumerate((everyone, obedient, everyone)):
        state, _ = step(state, spec, seen(state), gate, now)
    nobody = seen_of(state, ())
    state, _ = step(state, spec, nobody, gate, 3)
    assert state.state == "rolling-back", "all offline: nothing was seen"
    here = state.members.devices[:2]
    state, _ = step(state, spec, seen_of(state, here, back=here), gate, 4)
    assert state.state == "rolling-back"
    state, _ = step(state, spec, nobody, gate, 10_003)
    away = state.members.devices[2:]
    assert (state.state, state.outcome) == ("rolled-back", "rolled back")
    assert state.reason == f"said rollback; told to go back and not seen there yet: {', '.join(away[:5])} and 1 more"


def test_abort_sends_everyone_back_at_once_and_cannot_be_taken_back() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(3, "100%"))
    state, _ = step(started(spec), spec, everyone(started(spec)), Script([]), 1)
    state, wishes = rollout.command(state, spec, "abort", "by hand", 2)
    assert (state.state, state.outcome, len(wishes)) == ("aborted", "aborted", 3)
    with pytest.raises(RequestError, match="is aborted and cannot resume; possible now: nothing, it has ended"):
        rollout.command(state, spec, "resume", "", 3)


def test_the_order_is_fixed_by_the_rollout_and_differs_in_the_next() -> None:
    one = rollout.enrol(RolloutState(id="r1"), fleet(50)).members.devices
    late = rollout.enrol(rollout.enrol(RolloutState(id="r1"), fleet(50)[::-1][:25]), fleet(25))
    assert late.members.devices == one
    assert rollout.enrol(RolloutState(id="r2"), fleet(50)).members.devices != one


@pytest.mark.parametrize("stages", [("50%",), ("100%", "10%"), (5, 2, "100%")])
def test_stages_must_grow_and_reach_everyone(stages: tuple[Any, ...]) -> None:
    with pytest.raises(RequestError, match="counts or percentages that grow and end in 100%, as 1, 25%, 100%; got"):
        RolloutSpec(model="digits", stages=stages)


@pytest.mark.parametrize("stage", ["x", "", "25", "25 %", "1e2%", "150%", "0%", "\u0661%", 0, -1])
def test_stages_that_are_neither_counts_nor_percentages_are_named(stage: Any) -> None:
    body = msgspec.json.encode({"model": "digits", "stages": [1, stage, "100%"]})
    with pytest.raises(RequestError) as raised:
        decode(RolloutSpec, body, name="rollout", limit=9999, wire="json")
    assert str(raised.value) == (
        f"stages: expected counts or percentages, as 1, 25%, 100%, or selectors, as site=berlin; got 1, {stage}, 100%"
    )


def test_every_transition_of_the_table_leads_somewhere_and_every_end_is_an_end() -> None:
    for (before, _), after in TABLE.items():
        assert before in ACTIVE or (before, after) == ("done", "reverting")
        assert after in ACTIVE or after in ("done", "aborted", "rolled-back", "reverted")


# Simulated rollouts with the real gate: 60 inferences a window, devices that differ by half of their rate.


def _simulate(size: int, base: float, factor: float, seed: int, *, silent: int = 0, minutes: int = 600) -> RolloutState:
    spec = RolloutSpec(
        model="digits", digest=NEW, stages=("1%", "5%", "25%", "100%"), window_s=60,
        gate=GatePolicy(slow=None, label=None, error=Margin(r0=1.1, r1=1.5, delta=0.001)),
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    rates = {f"d{i}": min(1.0, base * rng.gamma(4, 0.25)) for i in range(size)}
    members = tuple(
        Member(device=d, previous=OLD, pre_trials=(17_280.0, 0, 0), pre_events=(float(rng.poisson(17_280 * r)), 0, 0))
        for d, r in rates.items()
    )
    state = rollout.command(rollout.enrol(RolloutState(id=f"r{seed}"), members), spec, "start", "go", 0)[0]
    gate = SequentialGate(spec.gate)
    speaks = np.arange(size) >= silent
    own = np.array([rates[device] for device in state.members.devices])
    for minute in range(1, minutes + 1):
        members = state.members
        running = members.has("committed")
        k = rng.poisson(60 * own * np.where(running, factor, 1.0)).astype(float)
        zero = np.zeros((2, size))

        def counts(mask: np.ndarray, k: np.ndarray = k, zero: np.ndarray = zero) -> Counts:
            return Counts(np.vstack((60.0 * mask, zero)), np.vstack((k * mask, zero)))

        asked = [members.devices[i] for i in np.flatnonzero(members.has("asked") & speaks)]
        seen = Observation(
            present=speaks,
            said=Said.of([News(d, "commit") for d in asked], members.columns()),
            windows=running.astype(np.int32),
            treated=counts(running & speaks), control=counts(~running & speaks),
            back=running if state.state == "rolling-back" else None,
        )  # fmt: skip
        state, _ = step(state, spec, seen, gate, 60_000 * minute)
        if state.state not in ACTIVE:
            break
    return state


def test_a_good_release_reaches_a_fleet_of_two_hundred() -> None:
    ends = [_simulate(200, 0.01, 1.0, seed) for seed in range(4)]
    assert [s.outcome for s in ends] == ["promoted"] * 4


def test_five_times_the_errors_are_stopped_at_the_first_devices() -> None:
    ends = [_simulate(200, 0.01, 5.0, seed) for seed in range(4)]
    assert [s.outcome for s in ends] == ["rolled back"] * 4
    assert max(s.exposed for s in ends) <= 10


def test_a_fleet_without_errors_is_promoted_too() -> None:
    assert _simulate(100, 0.0, 1.0, 1).outcome == "promoted"


def test_when_the_whole_stage_is_silent_the_rollout_holds() -> None:
    state = _simulate(20, 0.01, 1.0, 1, silent=20, minutes=50)
    assert (state.state, state.exposed) == ("running", 0)
    assert state.reason == "no device of this stage can be judged yet"
