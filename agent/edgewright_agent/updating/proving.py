"""Proving: the self-test of a slot, and again when what it ran on has changed.

Guarantee: a slot answers on a runtime and a CPU on which it passed its self-test, or an operator was told why it
answers all the same. After a new version of the runtime, on another board, or with damaged files of the optimised form,
the active slot is tested before it answers, and the previous package beside it. If the active one fails:

- the previous package answers, if that passes here; a package on trial is sent back to it, and not blocked: it is not
  to blame for another runtime;
- else the active one answers with a warning, for a device that says nothing is worse than one whose last digits differ;
- but not what crashes, hangs or does not load: it would take the application with it.

A self-test that cannot be run (no memory, no working Python) is no verdict, and the slot answers from its own file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable
from edgewright_contracts.manifest import Variant
from edgewright_contracts.package import Package

from ..disk import Disk
from . import proof
from .failures import classify
from .job import Interrupted, Job
from .selftest import selftest
from .slots import Side, Slot, Store
from .update import Event, State
from .verdict import Verdict

log = logging.getLogger(__name__)


class Proving:
    """Of one agent; the install thread's."""

    def __init__(self, disk: Disk, stopping: threading.Event) -> None:
        self._disk, self._stopping = disk, stopping

    def prove(self, store: Store, side: Side, interrupt: Callable[[], None] = lambda: None) -> tuple[Verdict, str]:
        """Run the self-test of a slot: (verdict, log); a pass is durable. Raises what `selftest` raises, OSError."""
        package, variant, slot = _opened(store, side)
        verdict, tail = selftest(package.root, variant.id, slot.runtime, stopping=self._stopping, interrupt=interrupt)
        self._disk.written += sum(ref.size for ref in verdict.files.values())  # by the child, past the seam
        if verdict.passed:
            proof.write(self._disk, package.root, proof.make(package, variant, slot.runtime, verdict.files))
        return verdict, tail

    def ensure(self, store: Store, side: Side, interrupt: Callable[[], None]) -> None:
        """`prove` where there is no proof, as after a cut of the power. Raises Refused when it does not pass."""
        if not proven(store, side):
            verdict, _ = self.prove(store, side, interrupt)
            if not verdict.passed:
                raise Refused(f"self-test: {verdict.reason}")

    def again(self, job: Job, interrupt: Callable[[], None]) -> bool:
        """Before the active slot is loaded at a start: whether it may be. Raises OSError, and what `interrupt` does."""
        side = job.state.active
        if side is None:
            return True
        try:
            if proven(job.store, side):
                return True
            verdict, tail = self.prove(job.store, side, interrupt)
        except RequestError:  # Damaged, or a runtime that this agent does not know
            return True  # loading it says so, and takes the other slot
        except (Unavailable, MemoryError) as error:
            log.warning("%s: the self-test cannot be run again: %s", job.store.name, error)
            job.emit(
                job.record, f"the self-test cannot be run again: {error}", failure=classify(error, job.record.state)
            )
            return True
        if verdict.passed:
            job.emit(job.record, f"another runtime, CPU or damaged files: self-test again: {told(verdict)}")
            self._previous(job, interrupt)
            return True
        reason = f"self-test on this runtime and CPU: {verdict.reason}"
        if job.record.state is State.PROBATION and (previous(job) is not None or not verdict.ran):
            job.go(Event.DELAYED, reason=reason, failure="operator", log_tail=tail)
            return False  # the rollback is next
        return self._failed(job, side, reason, verdict.ran, tail, interrupt)

    def _failed(self, job: Job, side: Side, reason: str, ran: bool, tail: str, interrupt: Callable[[], None]) -> bool:
        other = job.state.spare
        if previous(job) is not None and self._passes(job.store, other, interrupt):
            job.emit(job.record, f"{reason}; the previous package answers", failure="operator", log_tail=tail)
            job.store.save(msgspec.structs.replace(job.state, active=other))
            return True
        how = "it answers all the same" if ran else "nothing answers"
        job.emit(job.record, f"{reason}; {how}, send another package", failure="operator", log_tail=tail)
        if ran:
            package, variant, slot = _opened(job.store, side)
            proof.write(self._disk, package.root, proof.make(package, variant, slot.runtime, {}, reason))
        return ran

    def _previous(self, job: Job, interrupt: Callable[[], None]) -> None:
        """The package to go back to is tested as well, and forgotten when it would take the application with it."""
        if (slot := previous(job)) is None:
            return
        spare = job.state.spare
        try:
            verdict = None if proven(job.store, spare) else self.prove(job.store, spare, interrupt)[0]
        except (RequestError, Unavailable, MemoryError, Interrupted) as error:
            log.warning("%s: the previous package cannot be tested: %s", job.store.name, error)
            return
        if verdict is not None and not verdict.passed:
            job.emit(
                job.record, f"the previous package {slot.version} fails here: {verdict.reason}", failure="operator"
            )
            if not verdict.ran:
                job.store.save(job.state.with_slot(spare, None))

    def _passes(self, store: Store, side: Side, interrupt: Callable[[], None]) -> bool:
        try:
            return proven(store, side) or self.prove(store, side, interrupt)[0].passed
        except (RequestError, Unavailable, MemoryError) as error:
            log.warning("%s: slot %s cannot take over: %s", store.name, side, error)
            return False


def proven(store: Store, side: Side) -> bool:
    """Whether a slot passed on this runtime and CPU. Raises Damaged, Unavailable, OSError."""
    package, slot = store.package(side), store.state.slot(side)
    assert slot is not None
    variant = package.manifest.variant(slot.variant)
    return proof.read(store.disk, package, variant, slot.runtime) is not None


def previous(job: Job) -> Slot | None:
    """What could answer in place of the active package: not what failed, and of what this update is about only what
    passed its self-test here."""
    slot = job.state.slot(job.state.spare)
    if slot is None or slot.digest in job.state.blocked:
        return None
    try:
        return slot if slot.digest != job.record.digest or proven(job.store, job.state.spare) else None
    except (ContractError, Unavailable, OSError):
        return None


def told(verdict: Verdict) -> str:
    """What an event says of a pass."""
    form = "; optimised for this CPU" if verdict.files else ""
    strain = f"; left to probation: {verdict.reason}" if verdict.reason else ""
    took = f"loads in {verdict.load_s * 1000:.3g} ms, p95 {verdict.p95_ms:.3g} ms, takes {verdict.rss_mb:.3g} MB"
    return f"passed; {took}{form}{strain}"


def made(disk: Disk, package: Package, variant: Variant, runtime: str) -> tuple[Path, bool]:
    """(file to load, whether it is an optimised one). Raises Unavailable, OSError."""
    return proof.to_load(package, variant, proof.read(disk, package, variant, runtime))


def _opened(store: Store, side: Side) -> tuple[Package, Variant, Slot]:
    package, slot = store.verified(side), store.state.slot(side)
    assert slot is not None
    return package, package.manifest.variant(slot.variant), slot
