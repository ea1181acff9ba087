"""Retreat: loading what is active, and going back to what ran before.

Guarantee: afterwards the application is answered by a package that loads, if there is one on this device. One that
does not load for want of memory, of a runtime or of a disk that reads stays in its slot, and is tried again while
nothing answers (`Job.load_at_s`) and at each start; only what can never load is forgotten.

A package that is on trial and is not wanted any more, or found no verdict in time, goes on answering where nothing was
before it, until another is activated: nobody found it bad. That ends with the hub's word that it wants none.
"""

from __future__ import annotations

import logging

import msgspec

from edgewright_contracts.errors import ContractError, Unavailable

from . import update
from .failures import classify, passing
from .job import Job
from .proving import previous, proven
from .quality import PrePeriod
from .slots import ModelState, Side
from .steps import load
from .update import Event, State

log = logging.getLogger(__name__)


def load_active(job: Job) -> None:
    """Make the session of the active slot; where it does not load, that of the other."""
    job.phase = "probation" if job.record.state is State.PROBATION else "normal"
    job.trial_since_s = job.now_s
    job.loaded, job.load_at_s = None, None
    side = job.state.active
    if side is not None:
        try:
            job.loaded = load(job.store, side)
        except Exception as error:
            log.exception("%s: the active slot %s does not load", job.store.name, side)
            try:
                _fall_back(job, side, error)
            finally:  # what was found answers, whatever the disk refuses
                job.switch()
            return
    job.loads = 0
    job.switch()


def roll_back(job: Job) -> None:
    """The step of `rollback`: the other slot answers, and a model that is to blame is blocked.

    It answers before anything is written: a full disk must not keep up what is withdrawn or broken. May be repeated.
    """
    state, record = job.state, job.record
    running, blame = state.running, record.failure == "model"
    sides: list[Side] = [state.active] if state.active else []
    if running is not None and running.digest == record.digest:
        sides = [state.spare] if previous(job) is not None else []
        if state.active and not blame and _may_stay(job, state.active):
            sides.append(state.active)
    answers, job.loaded, job.load_at_s = job.loaded, None, None
    job.phase = "normal"
    if running is not None and sides == [state.active] and answers and answers.package.digest == running.digest:
        job.loaded = answers  # its session is here, and needs no second one beside it
    else:
        state = _first_of(job, sides)
    job.switch()
    if running is not None and running.digest == record.digest:
        job.history = record.before if state.running != running else PrePeriod()  # of what runs from now on
    if blame:
        state = msgspec.structs.replace(state, blocked={**state.blocked, record.digest: record.reason})
    event = Event.BROKEN if blame else Event.DONE
    after = update.advance(record, event, reason=record.reason, failure=record.failure)
    job.emit(after, _told(state, record.digest))
    # One write moves the pointer and ends the rollback: there is no moment between them.
    job.save(msgspec.structs.replace(state, record=after, history=job.history))


def is_only(job: Job) -> bool:
    """Whether nothing on this device could answer in place of the package that the record is about."""
    running = job.state.running
    return running is None or (running.digest == job.record.digest and previous(job) is None)


def _told(state: ModelState, digest: str) -> str:
    now = state.running
    if now is None:
        return "nothing was there before: until another package comes, nothing answers"
    return f"{now.version} goes on: nothing else is here" if now.digest == digest else f"runs {now.version} again"


def _may_stay(job: Job, side: Side) -> bool:
    """Whether a package that is to be left may answer where nothing else does: nobody found it bad.

    What the power failed with again and again would keep the device from ever hearing of another, and what did not pass
    on this runtime may take the application with it.
    """
    if job.record.failure == "power" or (job.wanted is not None and job.wanted.digest is None):
        return False
    if job.loaded is not None:
        return True
    try:
        return proven(job.store, side)
    except (ContractError, Unavailable, OSError):
        return True  # loading it says why not


def _first_of(job: Job, sides: list[Side]) -> ModelState:
    """The first of `sides` that loads is active and answers; without one, the first that may load another time."""
    state, later = msgspec.structs.replace(job.state, active=None), None
    for side in sides:
        try:
            job.loaded = load(job.store, side)
        except Exception as error:
            log.exception("%s: slot %s does not load either", job.store.name, side)
            if passing(error):
                later = later or side
            else:
                state = state.with_slot(side, None)
        else:
            return msgspec.structs.replace(state, active=side)
    if later is not None:
        _later(job)
    return msgspec.structs.replace(state, active=later)


def _fall_back(job: Job, side: Side, error: Exception) -> None:
    if job.record.state is State.PROBATION:
        failure = classify(error, State.WARMUP)
        event = Event.BROKEN if failure == "model" else Event.DELAYED
        job.go(event, reason=f"does not load: {error}", failure=failure)
        return  # the machine rolls back on its next step
    state = _first_of(job, [job.state.spare] if previous(job) is not None else [])
    if not passing(error):
        state = state.with_slot(side, None)
    elif job.loaded is None:
        state = msgspec.structs.replace(state, active=side)
        _later(job)
    job.emit(job.record, f"the active slot does not load: {error}", failure="disk")
    if state != job.state:
        job.save(state)
        job.store.commit()


def _later(job: Job) -> None:
    job.loads += 1
    job.load_at_s = job.now_s + update.retry_after_s(job.loads, 0.5)
