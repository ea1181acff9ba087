"""Rollouts as traces: who was given the release at each step, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewright_contracts.codec import decode
from edgewright_contracts.errors import RequestError
from edgewright_hub.rollouts import rollout
from edgewright_hub.rollouts.gates import Evidence, GatePolicy, Judgement, SequentialGate
from edgewright_hub.rollouts.members import Member, News
from edgewright_hub.rollouts.processes import Counts, Margin
from edgewright_hub.rollouts.rollout import Observation, RolloutState
from edgewright_hub.rollouts.specification import RolloutSpec

NEW, OLD = "a" * 64, "b" * 64


@dataclass
class Script:
    """A gate that says what the case says, and holds once the case has nothing left to say."""

    verdicts: list[str]
    asked: list[Evidence] = field(default_factory=list)

    def judge(self, evidence: Evidence) -> Judgement:
        self.asked.append(evidence)
        verdict: Any = self.verdicts.pop(0) if self.verdicts else "hold"
        return Judgement(verdict=verdict, reason=f"said {verdict}", figures=(), ledger=evidence.ledger)


def _fleet(size: int) -> tuple[Member, ...]:
    return tuple(Member(device=f"d{i}", previous=OLD, pre_trials=(1e4, 0, 0)) for i in range(size))


def _started(spec: RolloutSpec, size: int = 8) -> RolloutState:
    return rollout.command(rollout.enrol(RolloutState(id="r1"), _fleet(size)), spec, "start", "go", 0)[0]


def _names(state: RolloutState, *statuses: str) -> list[str]:
    return [m.device for m in state.members if m.status in statuses]


def _everyone(state: RolloutState, **more: Any) -> Observation:
    return Observation(present=frozenset(m.device for m in state.members), **more)


def _obedient(state: RolloutState) -> Observation:
    """Every device that was asked has committed."""
    return _everyone(state, news=tuple(News(d, "commit") for d in _names(state, "asked")))


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
    state, gate = _started(spec), Script(list(case.verdicts))
    trace, back = [], 0
    for i, what in enumerate(case.steps):
        seen = _everyone(state)
        asked = _names(state, "asked")
        if what == "obey":
            seen = _obedient(state)
        elif what == "back":
            seen = _everyone(state, back=frozenset(_names(state, "committed")))
        elif ":" in what:
            happening, _, reason = what.partition(":")
            during = "selftest" if "self-test" in reason else "fetch"
            seen = _everyone(state, news=tuple(News(d, happening, reason, during) for d in asked))  # type: ignore[arg-type]
        state, wishes = rollout.step(state, spec, seen, gate, 1000 * (i + 1))
        trace.append((state.state, state.stage, state.exposed))
        back += sum(w.digest == OLD for w in wishes)
    assert trace == case.trace
    assert back == case.wishes_back
    assert state.outcome == case.outcome


def test_stopping_the_hub_between_any_two_steps_changes_nothing() -> None:
    """The state goes through JSON after every step, as it does through the database."""
    spec = RolloutSpec(model="digits", digest=NEW)
    verdicts = ["hold", "promote", "hold", "promote", "promote", "promote"]

    def run(stop: bool) -> list[tuple[RolloutState, list[rollout.Wish]]]:
        state, gate, seen = _started(spec), Script(list(verdicts)), []
        for i in range(8):
            if stop:
                state = msgspec.json.decode(msgspec.json.encode(state), type=RolloutState)
            state, wishes = rollout.step(state, spec, _obedient(state), gate, i)
            seen.append((state, wishes))
        return seen

    assert run(stop=True) == run(stop=False)


def test_a_silent_device_is_passed_over_and_comes_in_when_it_speaks() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"))
    state, gate = _started(spec, 4), Script(["hold", "promote", "hold", "hold", "hold", "promote"])
    first = state.members[0].device
    without = frozenset(m.device for m in state.members) - {first}
    state, _ = rollout.step(state, spec, Observation(present=without), gate, 1)
    assert _names(state, "asked") == [state.members[1].device]
    obeyed = Observation(present=without, news=(News(state.members[1].device, "commit"),))
    state, _ = rollout.step(state, spec, obeyed, gate, 2)
    assert (state.exposed, _names(state, "waiting")) == (3, [first])
    state, wishes = rollout.step(state, spec, _everyone(state), gate, 3)
    assert [w.device for w in wishes] == [first]


def test_a_device_that_never_answers_leaves_the_denominator_and_its_wish_is_withdrawn() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"), device_timeout_s=10)
    state, gate = _started(spec, 4), Script([])
    state, _ = rollout.step(state, spec, _everyone(state), gate, 1)
    silent = _names(state, "asked")[0]
    others = frozenset(m.device for m in state.members) - {silent}
    state, _ = rollout.step(state, spec, Observation(present=others), gate, 5_000)
    assert gate.asked[-1].expected == 0, "silent before it runs the release: not in the denominator"
    state, wishes = rollout.step(state, spec, Observation(present=others), gate, 11_000)
    assert _names(state, "late") == [silent]
    assert {(w.device, w.digest) for w in wishes} == {(silent, OLD), (_names(state, "asked")[0], NEW)}
    assert state.exposed == 1, "another takes its place, so no more devices are exposed than the stage allows"


def test_while_a_device_tries_again_the_reason_says_why() -> None:
    spec = RolloutSpec(model="digits", digest=NEW)
    state, gate = _started(spec), Script([])
    state, _ = rollout.step(state, spec, _everyone(state), gate, 1)
    device = _names(state, "asked")[0]
    seen = _everyone(state, news=(News(device, "retry", "the link is down", "fetch"),))
    state, _ = rollout.step(state, spec, seen, gate, 2)
    assert state.reason == f"said hold; {device} tries again (the link is down)"


@pytest.mark.parametrize("runs_it_in_between", [False, True])
def test_a_device_that_tries_again_for_ever_does_not_hold_the_rollout_for_ever(runs_it_in_between: bool) -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"), device_timeout_s=7200)
    state, gate = _started(spec, 4), Script([])
    state, _ = rollout.step(state, spec, _everyone(state), gate, 0)
    device = _names(state, "asked")[0]
    for hour in range(1, 12):
        news = [News(device, "retry", "expected 99 bytes of free disk", "fetch")]
        if runs_it_in_between:
            news.insert(0, News(device, "activate"))
        state, _ = rollout.step(state, spec, _everyone(state, news=tuple(news)), gate, 3600_000 * hour)
    assert device in _names(state, "late")
    assert state.exposed == 1, "another has taken its place"


def test_a_device_that_lost_the_release_has_the_whole_time_to_get_it_again() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"), device_timeout_s=10)
    state, gate = _started(spec, 4), Script([])
    state, _ = rollout.step(state, spec, _everyone(state), gate, 0)
    state, _ = rollout.step(state, spec, _obedient(state), gate, 1)
    (device,) = _names(state, "committed")
    lost = _everyone(state, news=(News(device, "retry", "power lost"),))
    state, _ = rollout.step(state, spec, lost, gate, 100_000)
    assert _names(state, "asked") == [device]
    state, _ = rollout.step(state, spec, _everyone(state), gate, 109_000)
    assert _names(state, "asked") == [device]


def test_a_device_that_falls_silent_with_the_release_stays_in_the_denominator() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(2, "100%"))
    state = _started(spec, 4)
    gate = SequentialGate(GatePolicy(slow=None, label=None))
    state, _ = rollout.step(state, spec, _everyone(state), gate, 1)
    state, _ = rollout.step(state, spec, _obedient(state), gate, 2)
    asked = _names(state, "committed")
    others = frozenset(m.device for m in state.members) - {asked[0]}
    for i in range(50):
        seen = Observation(present=others, windows=((asked[1], 5),))
        state, _ = rollout.step(state, spec, seen, gate, 1000 * i)
    assert (state.state, state.stage) == ("running", 0)
    assert state.reason == "1 of 2 devices reported long enough (90% needed)"


@pytest.mark.parametrize("stages", [("100%",), (1, "100%")])
def test_it_is_done_only_when_every_present_device_of_the_last_stage_has_soaked(stages: tuple[Any, ...]) -> None:
    size, soak = 40, 3
    spec = RolloutSpec(model="digits", digest=NEW, stages=stages)
    first = rollout.enrol(RolloutState(id="r1"), tuple(Member(device=f"d{i}", previous=None) for i in range(size)))
    state, _ = rollout.command(first, spec, "start", "go", 0)
    gate = SequentialGate(GatePolicy(soak_windows=soak))
    slow, retrying, silent = (m.device for m in state.members[-3:])
    all_but_one = frozenset(m.device for m in state.members) - {silent}
    zero = np.zeros((2, size))

    def step(reporting: list[str], news: tuple[News, ...] = (), n: float = 1000.0) -> RolloutState:
        trials = np.array([n if m.device in reporting else 0.0 for m in state.members])
        counts, nothing = np.vstack((trials, zero)), np.zeros((3, size))
        seen = Observation(
            all_but_one, news, tuple((d, 1) for d in reporting), Counts(counts, nothing), Counts(nothing, nothing)
        )
        nonlocal now
        now += 60_000
        return rollout.step(state, spec, seen, gate, now)[0]

    now = 0
    while state.stage < len(stages) - 1 or not _names(state, "asked"):
        state = step(_names(state, "committed"), tuple(News(d, "commit") for d in _names(state, "asked")))
    quick = [d for d in _names(state, "asked") if d not in (slow, retrying)]
    state = step([], (*(News(d, "commit") for d in (*quick, slow)), News(retrying, "retry", "disk full", "fetch")))
    for _ in range(10):
        state = step(quick)
    expected = len(quick) + 2
    assert (state.state, state.reason) == (
        "running",
        f"1 of {expected} devices of the last stage have not reported 3 times yet; {retrying} tries again (disk full)",
    )
    harmed = rollout.step(state, spec, _everyone(state, news=tuple(News(d, "fail") for d in quick)), gate, now)[0]
    assert harmed.outcome == "rolled back", "harm is watched for meanwhile"
    for _ in range(soak - 1):
        state = step([*quick, slow])
    assert state.state == "running"
    state = step([*quick, slow])
    assert (state.state, state.outcome) == ("done", "promoted")
    assert silent in _names(state, "waiting")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_fleet_smaller_than_its_stages_is_not_held_for_ever(size: int) -> None:
    spec = RolloutSpec(model="digits", digest=NEW)
    state, gate = _started(spec, size), SequentialGate(GatePolicy(slow=None, label=None))
    zero, nothing = np.zeros((2, size)), np.zeros((3, size))
    for minute in range(1, 60):
        running = _names(state, "committed")
        mask = np.array([1000.0 * (m.device in running) for m in state.members])
        seen = _everyone(
            state, news=tuple(News(d, "commit") for d in _names(state, "asked")),
            windows=tuple((d, 1) for d in running), treated=Counts(np.vstack((mask, zero)), nothing),
            control=Counts(np.vstack((1000.0 - mask, zero)), nothing),
        )  # fmt: skip
        state, _ = rollout.step(state, spec, seen, gate, 60_000 * minute)
    assert (state.state, state.exposed) == ("done", size)


def test_those_left_over_get_the_release_when_everyone_else_has_it() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=("100%",))
    state, gate = _started(spec, 4), Script(["hold", "promote"])
    here = frozenset(m.device for m in state.members[:3])
    state, _ = rollout.step(state, spec, Observation(present=here), gate, 1)
    news = tuple(News(d, "commit") for d in here)
    state, wishes = rollout.step(state, spec, Observation(present=here, news=news), gate, 2)
    assert state.state == "done"
    assert {(w.device, w.digest, w.trial) for w in wishes} == {(f"d{i}", NEW, False) for i in range(4)}


def test_the_end_of_a_rollout_is_told_to_those_that_failed_too() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=("100%",))
    state, gate = _started(spec, 20), Script(["hold", "hold", "promote"])
    state, _ = rollout.step(state, spec, _everyone(state), gate, 1)
    news = tuple(News(m.device, "fail" if m.device == "d3" else "commit") for m in state.members)
    state, _ = rollout.step(state, spec, _everyone(state, news=news), gate, 2)
    state, wishes = rollout.step(state, spec, _everyone(state), gate, 3)
    assert state.state == "done"
    assert len(wishes) == 20
    assert [(w.digest, w.trial) for w in wishes if w.device == "d3"] == [(OLD, False)]


def test_the_stage_whose_gate_asks_for_labels_has_a_device_that_gets_them() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, 2, "100%"))
    for labelled in range(8):
        members = tuple(
            msgspec.structs.replace(m, pre_trials=(1e4, 0, 50.0 if m.device == f"d{labelled}" else 0))
            for m in _fleet(8)
        )
        state = rollout.command(rollout.enrol(RolloutState(id="r1"), members), spec, "start", "go", 0)[0]
        gate = Script(["hold", "promote", "hold"])
        for i in range(3):
            state, _ = rollout.step(state, spec, _obedient(state), gate, i)
        assert state.exposed == 2
        assert f"d{labelled}" in _names(state, "asked", "committed")
        assert gate.asked[-1].labels_block


def test_a_paused_rollout_exposes_nobody_and_still_turns_back_from_harm() -> None:
    spec = RolloutSpec(model="digits", digest=NEW)
    state, gate = _started(spec), Script(["hold", "promote", "promote", "rollback"])
    state, _ = rollout.step(state, spec, _everyone(state), gate, 1)
    state, _ = rollout.command(state, spec, "pause", "lunch", 2)
    for _ in range(2):
        state, wishes = rollout.step(state, spec, _obedient(state), gate, 3)
        assert (state.state, state.exposed, wishes) == ("paused", 1, [])
    state, wishes = rollout.step(state, spec, _obedient(state), gate, 4)
    assert state.state == "rolling-back"
    assert len(wishes) == 1


def test_rolled_back_is_said_only_of_what_was_seen() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=("100%",), device_timeout_s=10)
    state, gate = _started(spec, 8), Script(["hold", "hold", "rollback"])
    for now, seen in enumerate((_everyone, _obedient, _everyone)):
        state, _ = rollout.step(state, spec, seen(state), gate, now)
    nobody = Observation(present=frozenset())
    state, _ = rollout.step(state, spec, nobody, gate, 3)
    assert state.state == "rolling-back", "all offline: nothing was seen"
    here = [m.device for m in state.members[:2]]
    state, _ = rollout.step(state, spec, Observation(present=frozenset(here), back=frozenset(here)), gate, 4)
    assert state.state == "rolling-back"
    state, _ = rollout.step(state, spec, nobody, gate, 10_003)
    away = [m.device for m in state.members[2:]]
    assert (state.state, state.outcome) == ("rolled-back", "rolled back")
    assert state.reason == f"said rollback; told to go back and not seen there yet: {', '.join(away[:5])} and 1 more"


def test_abort_sends_everyone_back_at_once_and_cannot_be_taken_back() -> None:
    spec = RolloutSpec(model="digits", digest=NEW, stages=(3, "100%"))
    state, _ = rollout.step(_started(spec), spec, _everyone(_started(spec)), Script([]), 1)
    state, wishes = rollout.command(state, spec, "abort", "by hand", 2)
    assert (state.state, state.outcome, len(wishes)) == ("aborted", "aborted", 3)
    with pytest.raises(RequestError, match="is aborted and cannot resume; possible now: nothing, it has ended"):
        rollout.command(state, spec, "resume", "", 3)


def test_the_order_is_fixed_by_the_rollout_and_differs_in_the_next() -> None:
    one = [m.device for m in rollout.enrol(RolloutState(id="r1"), _fleet(50)).members]
    late = rollout.enrol(rollout.enrol(RolloutState(id="r1"), _fleet(50)[::-1][:25]), _fleet(25))
    assert [m.device for m in late.members] == one
    assert [m.device for m in rollout.enrol(RolloutState(id="r2"), _fleet(50)).members] != one


@pytest.mark.parametrize("stages", [("50%",), ("100%", "10%"), (5, 2, "100%")])
def test_stages_must_grow_and_reach_everyone(stages: tuple[Any, ...]) -> None:
    with pytest.raises(RequestError, match="counts or percentages that grow and end in 100%, as 1, 25%, 100%; got"):
        RolloutSpec(model="digits", stages=stages)


@pytest.mark.parametrize("stage", ["x", "", "25", "25 %", "1e2%", "150%", "0%", "\u0661%", 0, -1])
def test_stages_that_are_neither_counts_nor_percentages_are_named(stage: Any) -> None:
    body = msgspec.json.encode({"model": "digits", "stages": [1, stage, "100%"]})
    with pytest.raises(RequestError) as raised:
        decode(RolloutSpec, body, name="rollout", limit=9999, wire="json")
    assert str(raised.value) == f"stages: expected counts or percentages, as 1, 25%, 100%; got 1, {stage}, 100%"


def test_every_transition_of_the_table_leads_somewhere_and_every_end_is_an_end() -> None:
    for (before, _), after in rollout.TABLE.items():
        assert before in rollout.ACTIVE
        assert after in rollout.ACTIVE or after in ("done", "aborted", "rolled-back")


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
    dumb = frozenset(m.device for m in state.members[:silent])
    for minute in range(1, minutes + 1):
        running = np.array([m.status == "committed" for m in state.members])
        speaks = np.array([m.device not in dumb for m in state.members])
        rate = np.array([rates[m.device] for m in state.members]) * np.where(running, factor, 1.0)
        k = rng.poisson(60 * rate).astype(float)
        zero = np.zeros((2, size))

        def counts(mask: np.ndarray, k: np.ndarray = k, zero: np.ndarray = zero) -> Counts:
            return Counts(np.vstack((60.0 * mask, zero)), np.vstack((k * mask, zero)))

        seen = Observation(
            present=frozenset(m.device for m in state.members) - dumb,
            news=tuple(News(d, "commit") for d in _names(state, "asked") if d not in dumb),
            windows=tuple((m.device, 1) for m, r in zip(state.members, running, strict=True) if r),
            treated=counts(running & speaks), control=counts(~running & speaks),
            back=frozenset(_names(state, "committed")) if state.state == "rolling-back" else frozenset(),
        )  # fmt: skip
        state, _ = rollout.step(state, spec, seen, gate, 60_000 * minute)
        if state.state not in rollout.ACTIVE:
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
