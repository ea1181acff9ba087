"""Retreat: loading what is active, and going back to what ran before.

Guarantee: afterwards the application is answered by a package that loads, if there is one on this device.
"""

from __future__ import annotations

import logging

import msgspec

from . import update
from .job import Job
from .steps import load
from .update import Event, State

log = logging.getLogger(__name__)


def load_active(job: Job) -> None:
    """Make the session of the active slot; a slot that does not load any more falls back to the other."""
    job.phase = "probation" if job.record.state is State.PROBATION else "normal"
    job.probation_since_s = job.now_s
    job.loaded = None
    side = job.state.active
    if side is not None:
        try:
            job.loaded = load(job.store, side)
        except Exception as error:
            log.exception("%s: the active slot %s does not load", job.store.name, side)
            _fall_back(job, error)
    job.switch()


def roll_back(job: Job) -> None:
    """The step of `rollback`: the other slot answers, and a model that is to blame is blocked."""
    running, record = job.state.running, job.record
    if running is not None and running.digest == record.digest:
        previous = job.state.spare if job.state.slot(job.state.spare) is not None else None
        job.store.save(msgspec.structs.replace(job.state, active=previous))
    load_active(job)
    state, blame = job.state, record.failure == "model"
    if blame:
        state = msgspec.structs.replace(state, blocked={**state.blocked, record.digest: record.reason})
    event = Event.BROKEN if blame else Event.DONE
    after = update.advance(record, event, reason=record.reason, failure=record.failure)
    back_to = state.running
    job.emit(after, f"runs {back_to.version} again" if back_to else "nothing was there before")
    job.store.save(msgspec.structs.replace(state, record=after))


def _fall_back(job: Job, error: Exception) -> None:
    if job.record.state is State.PROBATION:
        job.go(Event.BROKEN, reason=f"does not load: {error}", failure="model")
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
    job.store.save(state)
