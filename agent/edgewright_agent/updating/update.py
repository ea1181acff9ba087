"""The update machine: one table. What to do in a state is `install.py`'s; this module only says what comes next.

    idle → fetch → stage → selftest [→ shadow] → warmup → activate → probation → commit → idle
                     a failure of the model, before activate → blocked, after it → rollback → blocked
                     a failure of link, power, disk, hub or operator: back to idle, and again later
                     the same package failed too often so: → held, until something new is wanted, or it is cleared

Guarantee: only a failure of class `model` ends in `blocked`. Where to go on after a restart is the row `BOOT` of the
same table. A pair that is not in the table is a bug and raises. The record is persisted with every step. Nothing is
written for ever: an attempt has at most STEPS steps, a package ATTEMPTS attempts, and each waits longer than the last.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from edgewright_contracts.codec import Sha256
from edgewright_contracts.desired import DesiredModel
from edgewright_contracts.event import FailureClass

from .quality import PrePeriod, Seen

RETRY_S: Final = (10.0, 6 * 3600.0)  # first and longest wait before another attempt
STEPS: Final = 28  # of one attempt: a good one takes 9, each cut of the power in the middle adds some (Mender's bound)

# In a row, of one package: about a week. What an operator must change does not change by trying.
ATTEMPTS: Final[dict[FailureClass, int]] = {"link": 40, "power": 40, "disk": 40, "hub": 40, "operator": 6}


class State(StrEnum):
    IDLE = "idle"
    FETCH = "fetch"
    STAGE = "stage"
    SELFTEST = "selftest"
    SHADOW = "shadow"
    WARMUP = "warmup"
    ACTIVATE = "activate"
    PROBATION = "probation"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    BLOCKED = "blocked"
    HELD = "held"


class Event(StrEnum):
    WANTED = "wanted"  # the hub desires a digest that does not run
    DONE = "done"  # the step of this state is done
    WATCH = "watch"  # the self-test is done, and a shadow run was asked for
    BROKEN = "broken"  # the model failed
    DELAYED = "delayed"  # anything else failed
    EXHAUSTED = "exhausted"  # it failed too often
    WITHDRAWN = "withdrawn"  # the hub desires something else now
    BOOT = "boot"  # the agent starts and finds the record in this state


S, E = State, Event

TABLE: Final[dict[tuple[State, Event], State]] = {
    # state, event              next            # why
    (S.IDLE,      E.WANTED):    S.FETCH,
    (S.FETCH,     E.DONE):      S.STAGE,
    (S.STAGE,     E.DONE):      S.SELFTEST,
    (S.SELFTEST,  E.DONE):      S.WARMUP,
    (S.SELFTEST,  E.WATCH):     S.SHADOW,
    (S.SHADOW,    E.DONE):      S.WARMUP,
    (S.WARMUP,    E.DONE):      S.ACTIVATE,
    (S.ACTIVATE,  E.DONE):      S.PROBATION,
    (S.PROBATION, E.DONE):      S.COMMIT,
    (S.COMMIT,    E.DONE):      S.IDLE,
    (S.BLOCKED,   E.DONE):      S.IDLE,         # cleared by the operator
    (S.HELD,      E.DONE):      S.IDLE,         # something is new: the hub's document, the application's transform

    (S.IDLE,      E.BROKEN):    S.BLOCKED,      # wanted again, but blocked before
    (S.FETCH,     E.BROKEN):    S.BLOCKED,      # signed, but not a package that this device can run
    (S.STAGE,     E.BROKEN):    S.BLOCKED,
    (S.SELFTEST,  E.BROKEN):    S.BLOCKED,
    (S.SHADOW,    E.BROKEN):    S.BLOCKED,
    (S.WARMUP,    E.BROKEN):    S.BLOCKED,
    (S.ACTIVATE,  E.BROKEN):    S.ROLLBACK,     # the pointer may have moved already
    (S.PROBATION, E.BROKEN):    S.ROLLBACK,
    (S.ROLLBACK,  E.BROKEN):    S.BLOCKED,      # done rolling back, and the model is to blame
    (S.ROLLBACK,  E.DONE):      S.IDLE,         # done rolling back, and it is not

    (S.FETCH,     E.DELAYED):   S.IDLE,
    (S.STAGE,     E.DELAYED):   S.IDLE,
    (S.SELFTEST,  E.DELAYED):   S.IDLE,
    (S.SHADOW,    E.DELAYED):   S.IDLE,
    (S.WARMUP,    E.DELAYED):   S.IDLE,
    (S.ACTIVATE,  E.DELAYED):   S.ROLLBACK,
    (S.PROBATION, E.DELAYED):   S.ROLLBACK,     # no verdict in time
    (S.COMMIT,    E.DELAYED):   S.COMMIT,
    (S.ROLLBACK,  E.DELAYED):   S.ROLLBACK,
    (S.IDLE,      E.EXHAUSTED): S.HELD,

    (S.FETCH,     E.WITHDRAWN): S.IDLE,
    (S.STAGE,     E.WITHDRAWN): S.IDLE,
    (S.SELFTEST,  E.WITHDRAWN): S.IDLE,
    (S.SHADOW,    E.WITHDRAWN): S.IDLE,
    (S.WARMUP,    E.WITHDRAWN): S.IDLE,
    (S.ACTIVATE,  E.WITHDRAWN): S.ROLLBACK,
    (S.PROBATION, E.WITHDRAWN): S.ROLLBACK,
    (S.BLOCKED,   E.WITHDRAWN): S.IDLE,
    (S.HELD,      E.WITHDRAWN): S.IDLE,

    (S.IDLE,      E.BOOT):      S.IDLE,
    (S.FETCH,     E.BOOT):      S.FETCH,        # goes on with what was downloaded
    (S.STAGE,     E.BOOT):      S.FETCH,        # the slot may be half written
    (S.SELFTEST,  E.BOOT):      S.SELFTEST,
    (S.SHADOW,    E.BOOT):      S.SHADOW,
    (S.WARMUP,    E.BOOT):      S.WARMUP,
    (S.ACTIVATE,  E.BOOT):      S.WARMUP,       # the session is gone with the process
    (S.PROBATION, E.BOOT):      S.PROBATION,
    (S.COMMIT,    E.BOOT):      S.COMMIT,
    (S.ROLLBACK,  E.BOOT):      S.ROLLBACK,
    (S.BLOCKED,   E.BOOT):      S.BLOCKED,
    (S.HELD,      E.BOOT):      S.HELD,
}  # fmt: skip

RESUME: Final = {state: TABLE[state, Event.BOOT] for state in State}

# Unclean boots in a row in a state that runs the model, until the model is to blame. The self-test runs in a process of
# its own, so there only a model that takes the whole machine down with it gets that far: power cuts must not.
CRASHES: Final = {S.SELFTEST: 40, S.SHADOW: 3, S.WARMUP: 3, S.ACTIVATE: 3, S.PROBATION: 3}
# Power cuts in a row in such a state, but for the self-test, until the package is put back, and tried again later: it
# may be what draws too much power, and it may not.
CUTS: Final = 10
UNDER_WAY: Final = frozenset({S.FETCH, S.STAGE, S.SELFTEST, S.SHADOW, S.WARMUP, S.ACTIVATE})  # nothing has switched
CANCELLED: Final = frozenset(s for s in S if (s, E.WITHDRAWN) in TABLE)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Persisted in `state.json`. `wanted` is None when nothing was ever wanted."""

    state: State = State.IDLE
    wanted: DesiredModel | None = None
    rev: int = 0  # of the hub's document that this attempt follows: only a newer one clears or releases
    attempt: int = 0  # of this digest, from 1; anew when it is wanted again after all went well
    steps: int = 0  # of this attempt
    crashes: int = 0  # unclean boots in a row in states of CRASHES, without a healthy window or a passed self-test
    cuts: int = 0  # power cuts likewise
    watched: int = 0  # windows of this shadow run that compared something
    healthy: int = 0  # windows of this probation
    breaches: int = 0  # windows in a row over a budget
    failure: FailureClass | None = None
    reason: str = ""
    before: PrePeriod = PrePeriod()
    seen: Seen = Seen()  # of this probation, all windows
    tried_s: float = 0.0  # of this shadow run or probation, by earlier boots and until it was last written

    @property
    def digest(self) -> Sha256:
        return (self.wanted and self.wanted.digest) or ""


class UnknownStep(RuntimeError):
    """The table has no such row: a bug of this program."""


def advance(record: Record, event: Event, *, reason: str = "", failure: FailureClass | None = None) -> Record:
    """The record after `event`. Raises UnknownStep."""
    try:
        state = TABLE[record.state, event]
    except KeyError:
        raise UnknownStep(f"no transition from {record.state} on {event}") from None
    kept = record.failure if state in (S.ROLLBACK, S.BLOCKED) and failure is None else failure
    passed = record.state is S.SELFTEST and event in (E.DONE, E.WATCH)
    # The power cuts of a self-test are not the crashes of what follows.
    crashes, cuts = (0, 0) if passed else (record.crashes, record.cuts)
    freed = event is E.DONE and record.state in (S.BLOCKED, S.HELD)
    return msgspec.structs.replace(
        record,
        state=state,
        attempt=0 if freed else record.attempt,
        steps=record.steps + 1,
        crashes=crashes,
        cuts=cuts,
        reason=reason[:1000],
        failure=kept,
    )


def want(record: Record, wanted: DesiredModel, rev: int = 0) -> Record:
    """A new attempt at `wanted`, from idle."""
    again = record.digest == wanted.digest and record.failure is not None
    fresh = Record(wanted=wanted, rev=rev, attempt=record.attempt + 1 if again else 1)
    return advance(fresh, Event.WANTED, reason="wanted")


def exhausted(record: Record, rev: int) -> bool:
    """Whether another attempt under document `rev` of the hub would be one too many; a newer one is worth another."""
    known = record.failure is not None and rev <= record.rev
    return known and record.attempt >= ATTEMPTS.get(record.failure or "operator", 1)


def looping(record: Record) -> bool:
    """Whether this attempt goes round in circles: restarts cut it off again and again."""
    return record.state in UNDER_WAY and record.steps >= STEPS


def resume(record: Record, *, unclean: bool, cut: bool = False) -> tuple[Record, Event | None]:
    """The record after a boot, and the event that must follow at once: the model crashes this process too often
    (`broken`), or the power fails too often while it runs (`delayed`). `cut`: the whole machine had ended as well.

    A clean boot changes nothing but the state and the count of steps, however often it comes.
    """
    limit = CRASHES.get(record.state)
    if unclean and cut and limit is not None and record.state is not S.SELFTEST:
        found, _ = resume(msgspec.structs.replace(record, cuts=record.cuts + 1), unclean=False)
        return found, Event.DELAYED if found.cuts >= CUTS else None
    crashes = record.crashes + 1 if unclean and limit is not None else record.crashes
    state = RESUME[record.state]
    steps = record.steps + (state is not record.state)
    found = msgspec.structs.replace(record, state=state, steps=steps, crashes=crashes)
    return found, Event.BROKEN if limit is not None and crashes >= limit else None


def retry_after_s(attempt: int, uniform: float) -> float:
    """Wait before the attempt after number `attempt`; `uniform` in [0, 1) spreads a fleet."""
    first, longest = RETRY_S
    return min(longest, first * 2.0 ** min(attempt - 1, 20)) * (0.5 + uniform)
