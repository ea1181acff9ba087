"""Retreat: loading what is active, and going back to what ran before.

Guarantee: afterwards the application is answered by a package that loads, if there is one on this device.
"""

from __future__ import annotations

import logging

import msgspec

from . import update
from .failures import classify
from .job import Job
from .slots import Side
from .steps import load
from .update import Event, State

log = logging.getLogger(__name__)


def load_active(job: Job) -> None:
    """Make the session of the active slot; a slot that does not load any more falls back to the other."""
    job.phase = "probation" if job.record.state is State.PROBATION else "normal"
    job.trial_since_s = job.now_s
    job.loaded = None
    side = job.state.active
    if side is not None:
        try:
            job.loaded = load(job.store, side)
        except Exception as error:
            log.exception("%s: the active slot %s does not load", job.store.name, side)
            try:
                _fall_back(job, error)
            finally:  # what was found answers, whatever the disk refuses
                job.switch()
            return
    job.switch()


def roll_back(job: Job) -> None:
    """The step of `rollback`: the other slot answers, and a model that is to blame is blocked.

    It answers before anything is written: a full disk must not keep up what is withdrawn or broken. May be repeated.
    """
    state, record = job.state, job.record
    running, blame = state.running, record.failure == "model"
    sides: list[Side] = [state.active] if state.active else []
    if running is not None and running.digest == record.digest:
        previous = state.slot(state.spare) is not None
        replaced = job.wanted is not None and job.wanted.digest not in (None, record.digest)
        sides = [state.spare] if previous else []
        if (previous or replaced) and not blame and state.active:
            sides.append(state.active)  # withdrawn, but better than nothing: the other has rotted, or is still to come
    job.phase, job.loaded = "normal", None
    state = msgspec.structs.replace(state, active=None)
    for side in sides:
        try:
            job.loaded = load(job.store, side)
        except Exception:
            log.exception("%s: slot %s does not load either", job.store.name, side)
            state = state.with_slot(side, None)
        else:
            state = msgspec.structs.replace(state, active=side)
            break
    job.switch()
    if running is not None and running.digest == record.digest:
        job.history = record.before  # of what runs again
    if blame:
        state = msgspec.structs.replace(state, blocked={**state.blocked, record.digest: record.reason})
    event = Event.BROKEN if blame else Event.DONE
    after = update.advance(record, event, reason=record.reason, failure=record.failure)
    back_to = state.running
    job.emit(after, f"runs {back_to.version} again" if back_to else "nothing was there before")
    # One write moves the pointer and ends the rollback: there is no moment between them.
    job.save(msgspec.structs.replace(state, record=after, history=job.history))


def _fall_back(job: Job, error: Exception) -> None:
    if job.record.state is State.PROBATION:
        failure = classify(error, State.WARMUP)
        event = Event.BROKEN if failure == "model" else Event.DELAYED
        job.go(event, reason=f"does not load: {error}", failure=failure)
        return  # the machine rolls back on its next step
    other = job.state.spare
    if job.state.slot(other) is not None:
        try:
            job.loaded = load(job.store, other)
        except Exception:
            log.exception("%s: the other slot %s does not load either", job.store.name, other)
    broken = job.state.active
    assert broken is not None
    state = msgspec.structs.replace(job.state.with_slot(broken, None), active=other if job.loaded else None)
    job.emit(job.record, f"the active slot does not load: {error}", failure="disk")
    job.save(state)
    job.store.commit()
