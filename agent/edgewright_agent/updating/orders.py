"""Orders: what the hub wants of one model, and when an attempt at it begins, waits, or is given up.

Guarantee: what is not begun has a reason that was told. A package that failed ATTEMPTS times in a row is held, and then
nothing is written, until a newer document of the hub or what the application registers is a reason to try again. Only
a newer document, or a person at the device, clears a blocked digest: a reboot reads the same one again.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from edgewright_contracts.desired import DesiredModel

from . import update
from .inbox import Wish
from .job import Job
from .slots import ModelState
from .update import Event, Record, State


def take(job: Job, wish: Wish) -> None:
    """The hub's document says this of the model. Raises OSError, and is to be taken again then."""
    before, job.wanted, job.rev, job.held = job.wanted, wish.model, wish.rev, wish.held
    if before is not None and before.rollout != wish.model.rollout and job.loaded is not None:
        job.switch()
    if wish.rev > job.record.rev:
        clear(job, wish.cleared, "cleared by the operator")
        if job.record.state is State.HELD and job.record.digest == wish.model.digest:
            job.go(Event.DONE, reason="the hub asks for it again")
    job.retry_at_s = 0.0


def registered(job: Job) -> None:
    """The application named its preprocessing: what waited for it may be tried. Raises OSError."""
    job.unsuited, job.retry_at_s = None, 0.0
    if job.record.state is State.HELD:
        job.go(Event.DONE, reason="the application has named its preprocessing")


def barred(state: ModelState) -> list[str]:
    """Digests that are not tried here until somebody says so: what is blocked, and what is held."""
    held = [state.record.digest] if state.record.state is State.HELD else []
    return [*state.blocked, *held]


def clear(job: Job, digests: Collection[str], reason: str) -> None:
    """Packages that are blocked may be tried again: told, and persisted in one write. Raises OSError."""
    kept = {d: why for d, why in job.state.blocked.items() if d not in digests}
    freed = len(job.state.blocked) - len(kept)
    if not freed:
        return
    record = job.record
    if record.state is State.BLOCKED and record.digest in digests:
        record = update.advance(record, Event.DONE, reason=reason)
    job.emit(record, f"{reason}: {', '.join(d[:16] for d in job.state.blocked if d not in kept)}", failure="operator")
    job.save(msgspec.structs.replace(job.state, record=record, blocked=kept))


def cleared(job: Job, digest: str) -> None:
    """A person at the device says that this package may be tried again, blocked or held. Raises OSError."""
    clear(job, (digest,), "cleared by hand")
    if job.record.state is State.HELD and job.record.digest == digest:
        job.go(Event.DONE, reason="cleared by hand")
    job.unsuited, job.retry_at_s = None, 0.0


def due(job: Job, wall_ms: int | None, online: bool) -> bool:
    """Whether an attempt shall begin now. Tells, once, what does not begin for a reason that the operator must know."""
    wanted, record = job.wanted, job.record
    if wanted is None or wanted.digest is None or wanted == job.unsuited or _runs(job, wanted):
        return False
    if record.digest == wanted.digest and wanted.digest not in job.state.blocked:
        if update.exhausted(record, job.rev):
            held = f"held after {record.attempt} attempts, until something new is wanted, or it is cleared"
            job.go(Event.EXHAUSTED, reason=f"{held}; the last: {record.reason}", failure=record.failure)
            return False
        if record.failure == "link" and not online:
            return False  # or a week without a network would use up all attempts
    if job.now_s < job.retry_at_s:
        return False
    reason = "waits: this device is held by the operator of its hub" if job.held else out_of_hours(wanted, wall_ms)
    if reason and job.waiting != (wanted, reason):
        job.emit(record, reason, failure="operator" if job.held or over(wanted, wall_ms) else None)
    job.waiting = (wanted, reason)
    return not reason


def begin(job: Job) -> None:
    """An attempt at what is `due`, unless the package is blocked here."""
    wanted = job.wanted
    assert wanted is not None
    blocked = job.state.blocked.get(wanted.digest or "")
    if blocked is not None:
        job.keep(Record(wanted=wanted, rev=job.rev))
        job.go(Event.BROKEN, reason=f"blocked: {blocked}", failure="model")
        return
    job.announce(update.want(job.record, wanted, job.rev))


def out_of_hours(wanted: DesiredModel, wall_ms: int | None) -> str:
    """Why a switch to it is not for now, "" when it is."""
    if wanted.not_before is None and wanted.not_after is None:
        return ""
    if wall_ms is None:
        return "waits: it is wanted at certain hours, and this device does not know the time yet"
    if wall_ms < (wanted.not_before or 0):
        return f"waits until {wanted.not_before} ms (UTC)"
    if over(wanted, wall_ms):
        return f"not begun: it was wanted until {wanted.not_after} ms (UTC); give it new hours"
    return ""


def over(wanted: DesiredModel, wall_ms: int | None) -> bool:
    return wall_ms is not None and wanted.not_after is not None and wall_ms > wanted.not_after


def withdrawn(job: Job) -> bool:
    """Whether what is under way is not wanted any more."""
    return job.wanted is not None and job.record.digest != job.wanted.digest and job.record.state in update.CANCELLED


def _runs(job: Job, wanted: DesiredModel) -> bool:
    running = job.state.running
    return running is not None and running.digest == wanted.digest and wanted.variant in (None, running.variant)
