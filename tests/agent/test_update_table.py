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
    Case("the model fails in shadow", S.SHADOW, E.BROKEN, ["blocked"], "model"),
    Case("nothing was compared in shadow", S.SHADOW, E.DELAYED, ["idle"], "link"),
    Case("withdrawn in shadow", S.SHADOW, E.WITHDRAWN, ["idle"], "operator"),
    Case(
        "nothing fails, with a shadow run",
        S.SHADOW,
        E.DONE,
        ["warmup", "activate", "probation", "commit", "idle"],
        None,
    ),
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
        elif record.state is S.SELFTEST and case.fail_in is S.SHADOW:
            event = E.WATCH
        record = update.advance(record, event, failure=failure)
        trace.append(record.state)
    before = STEPS[: STEPS.index(case.fail_in) + 1] if case.fail_in in STEPS else STEPS
    if case.fail_in is S.SHADOW:
        before = [*STEPS[:3], S.SHADOW]
    assert [s.value for s in trace] == [*(s.value for s in before), *case.trace]
    assert record.failure == case.reported
    assert record.attempt == 1


def test_only_the_models_own_failures_end_in_blocked():
    for (state, event), after in update.TABLE.items():
        if after is S.BLOCKED and state is not S.BLOCKED:
            assert event is E.BROKEN, (state, event)


# Every pair of a state and an event that cannot come there. A new state or event must be in the table, or here.
IMPOSSIBLE = {
    E.WANTED: set(S) - {S.IDLE},
    E.DONE: {S.IDLE},
    E.WATCH: set(S) - {S.SELFTEST},
    E.BROKEN: {S.COMMIT, S.BLOCKED, S.HELD},  # what is committed is not on trial, and does not become the model's fault
    E.DELAYED: {S.IDLE, S.BLOCKED, S.HELD},
    E.EXHAUSTED: set(S) - {S.IDLE},
    E.WITHDRAWN: {S.IDLE, S.COMMIT, S.ROLLBACK},  # these end first, and soon
    E.BOOT: set(),
}


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("event", list(E))
def test_every_state_knows_every_event_or_it_cannot_come(state, event):
    assert ((state, event) in update.TABLE) is (state not in IMPOSSIBLE[event])
    if state in IMPOSSIBLE[event]:
        with pytest.raises(update.UnknownStep, match=f"{state} on {event}"):
            update.advance(Record(state=state, wanted=WANTED), event)


def test_whatever_comes_an_attempt_ends_within_its_steps():
    """All ways from `fetch`, restarts among them: behind STEPS steps the machine goes back or is at rest."""
    frontier = [update.want(Record(), WANTED)]
    seen = set()
    while frontier:
        record = frontier.pop()
        if record.steps > update.STEPS:
            assert not update.looping(record)  # or it should have gone back already
            continue
        if update.looping(record):
            nexts = [update.advance(record, E.DELAYED, failure="power")]
        elif record.state in (S.IDLE, S.BLOCKED, S.HELD):
            continue
        else:
            events = [e for s, e in update.TABLE if s is record.state and e is not E.BOOT]
            nexts = [update.advance(record, e, failure="link") for e in events]
            nexts.append(update.resume(record, unclean=False)[0])
        for after in nexts:
            key = (after.state, after.steps)
            if key not in seen:
                seen.add(key)
                frontier.append(after)
    assert max(steps for state, steps in seen if state in update.UNDER_WAY) == update.STEPS


def test_attempts_end_by_class_and_a_newer_document_is_worth_another():
    record, tries = Record(), 0
    while not update.exhausted(record, rev=5):
        record = update.advance(update.want(record, WANTED, 5), E.DELAYED, failure="hub")
        tries += 1
    assert (tries, record.attempt) == (40, 40)
    assert not update.exhausted(record, rev=6)
    held = update.advance(record, E.EXHAUSTED, failure="hub")
    assert (held.state, held.failure) == (S.HELD, "hub")
    freed = update.advance(held, E.DONE)
    assert update.want(freed, WANTED, 6).attempt == 1
    assert update.exhausted(Record(wanted=WANTED, attempt=6, failure="operator"), 0)
    assert not update.exhausted(Record(wanted=WANTED, attempt=60), 0)  # it went well


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


@pytest.mark.parametrize("state", [S.SHADOW, S.PROBATION])
def test_a_model_that_crashes_the_process_three_times_is_to_blame(state):
    record = Record(state=state, wanted=WANTED)
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
    assert record == Record(state=update.RESUME[state], wanted=WANTED, steps=int(update.RESUME[state] is not state))


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
    again = update.want(update.advance(first, E.DELAYED, failure="link"), WANTED)
    assert again.attempt == 2
    other = update.want(update.advance(again, E.DELAYED, failure="link"), DesiredModel(name="digits", digest="b" * 64))
    assert other.attempt == 1
    well = msgspec.structs.replace(again, state=S.COMMIT)
    assert update.want(update.advance(well, E.DONE), WANTED).attempt == 1  # it failed before, but not since
    waits = [update.retry_after_s(n, 0.5) for n in range(1, 41)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (10, 6 * 3600)
    assert 7 * 86400 < sum(waits) < 10 * 86400  # a week without a repository is not the end


def test_a_record_comes_back_from_disk_as_it_was():
    record = update.advance(update.want(Record(), WANTED), E.DONE, reason="x")
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
