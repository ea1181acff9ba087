"""The update machine as traces, and the rules that hold for every row of its table."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest

from edgewright_agent.updating import update
from edgewright_agent.updating.update import E, Record, S
from edgewright_contracts.desired import DesiredModel

WANTED = DesiredModel(name="digits", digest="a" * 64, rollout="r1")
STEPS = [S.FETCH, S.STAGE, S.SELFTEST, S.WARMUP, S.ACTIVATE, S.PROBATION, S.COMMIT]


class Case(NamedTuple):
    name: str
    fail_in: S | None
    event: E
    trace: list[str]  # the states behind the failure
    reported: str | None  # the class that the last record carries


CASES = [
    Case("nothing fails", None, E.DONE, ["idle"], None),
    *(Case(f"the model fails in {s}", s, E.BROKEN, ["blocked"], "model") for s in STEPS[:4]),
    *(Case(f"the model fails in {s}", s, E.BROKEN, ["rollback", "blocked"], "model") for s in STEPS[4:6]),
    *(Case(f"the link fails in {s}", s, E.DELAYED, ["idle"], "link") for s in STEPS[:4]),
    *(Case(f"the disk fails in {s}", s, E.DELAYED, ["rollback", "idle"], None) for s in STEPS[4:6]),
    Case("the disk fails in commit", S.COMMIT, E.DELAYED, ["commit", "idle"], None),
    *(Case(f"withdrawn in {s}", s, E.WITHDRAWN, ["idle"], "operator") for s in STEPS[:4]),
    *(Case(f"withdrawn in {s}", s, E.WITHDRAWN, ["rollback", "idle"], None) for s in STEPS[4:6]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_an_update_goes_through_these_states(case: Case):
    classes = {E.BROKEN: "model", E.DELAYED: "link", E.WITHDRAWN: "operator", E.DONE: None}
    record = update.want(Record(), WANTED)
    trace = [record.state]
    while record.state not in (S.IDLE, S.BLOCKED):
        event = E.DONE
        failure = None
        if record.state is S.ROLLBACK:
            event = E.BROKEN if record.failure == "model" else E.DONE
        elif record.state is case.fail_in and S.ROLLBACK not in trace and trace.count(record.state) == 1:
            event, failure = case.event, classes[case.event]
        record = update.advance(record, event, failure=failure)
        trace.append(record.state)
    before = STEPS[: STEPS.index(case.fail_in) + 1] if case.fail_in else STEPS
    assert [s.value for s in trace] == [*(s.value for s in before), *case.trace]
    assert record.failure == case.reported
    assert record.attempt == 1


def test_only_the_models_own_failures_end_in_blocked():
    for (state, event), after in update.TABLE.items():
        if after is S.BLOCKED and state is not S.BLOCKED:
            assert event is E.BROKEN, (state, event)


def test_every_state_says_where_to_go_on_after_a_restart_and_every_state_ends():
    assert set(update.RESUME) == set(S)
    for start in S:
        reached, frontier = {start}, [start]
        while frontier:
            state = frontier.pop()
            for (s, _), after in update.TABLE.items():
                if s is state and after not in reached:
                    reached.add(after)
                    frontier.append(after)
        assert S.IDLE in reached, start


def test_a_pair_that_is_not_in_the_table_is_raised():
    with pytest.raises(update.UnknownStep, match="idle on done"):
        update.advance(Record(), E.DONE)


def test_a_model_that_crashes_the_process_three_times_in_probation_is_to_blame():
    record = Record(state=S.PROBATION, wanted=WANTED)
    for _ in range(2):
        record, then = update.resume(record, unclean=True)
        assert then is None
    _, then = update.resume(record, unclean=True)
    assert then is E.BROKEN
    _, then = update.resume(record, unclean=False)
    assert then is None


@pytest.mark.parametrize("state", [S.FETCH, S.STAGE, S.SELFTEST, S.COMMIT, S.ROLLBACK])
def test_power_cuts_outside_the_models_own_run_blame_nobody(state):
    record = Record(state=state, wanted=WANTED)
    for _ in range(10):
        record, then = update.resume(msgspec.structs.replace(record, state=state), unclean=True)
        assert then is None


@pytest.mark.parametrize("state", list(S))
def test_clean_boots_blame_nobody_however_many_there_are(state):
    record = Record(state=state, wanted=WANTED)
    for _ in range(1000):
        record, then = update.resume(record, unclean=False)
        assert then is None
    assert record == Record(state=update.RESUME[state], wanted=WANTED)


def test_a_boot_never_skips_a_rollback():
    record = Record(state=S.ROLLBACK, wanted=WANTED, failure="operator", crashes=2)
    for n in range(1000):
        record = update.advance(record, E.DELAYED, reason="disk full", failure="disk")
        record, then = update.resume(record, unclean=n % 2 == 0)
        assert (record.state, then) == (S.ROLLBACK, None)


def test_a_selftest_that_takes_the_machine_down_each_time_ends_and_one_that_passes_starts_afresh():
    record = Record(state=S.SELFTEST, wanted=WANTED)
    boots = 0
    while True:
        record, then = update.resume(record, unclean=True)
        boots += 1
        if then is not None:
            break
        passed = update.advance(record, E.DONE)
        assert update.resume(passed, unclean=True)[1] is None
    assert (boots, then) == (40, E.BROKEN)


def test_attempts_are_counted_per_digest_and_wait_longer_each_time():
    first = update.want(Record(), WANTED)
    again = update.want(update.advance(first, E.DELAYED), WANTED)
    assert again.attempt == 2
    other = update.want(update.advance(again, E.DELAYED), DesiredModel(name="digits", digest="b" * 64))
    assert other.attempt == 1
    waits = [update.retry_after_s(n, 0.5) for n in range(1, 12)]
    assert waits == sorted(waits)
    assert waits[0] == 10
    assert waits[-1] == 3600


def test_a_record_comes_back_from_disk_as_it_was():
    record = update.advance(update.want(Record(), WANTED), E.DONE, reason="x")
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
