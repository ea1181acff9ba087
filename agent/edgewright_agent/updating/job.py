"""A job: one model on this device. What is on disk, what the hub wants, and what is loaded; and what is told of it.

Order of every step: do it, spool the event, persist the record. Cut between the last two, the event comes twice with
the same attempt; it never goes missing. While the disk takes events and not the record, each is told only once.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple, Protocol

import msgspec

from edgewright_contracts import event as events
from edgewright_contracts.baseline import Baseline
from edgewright_contracts.desired import DesiredModel
from edgewright_contracts.event import FailureClass
from edgewright_contracts.manifest import Variant
from edgewright_contracts.package import Package
from edgewright_contracts.report import Phase, Rollout, Window
from edgewright_runtime.golden import Transform
from edgewright_runtime.runtime import Session

from ..clock import Clock
from ..draft import draft
from ..limits.governor import Step
from . import quality, update
from .slots import ModelState, Side, Slot, Store
from .update import Event, Record, State

HISTORY_S: Final = 3600.0  # between two writes of it, but for the first ones: flash wears

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Nothing is wrong: a step gives way, and is taken again from where it was."""


class Loaded(NamedTuple):
    package: Package
    variant: Variant
    baseline: Baseline
    session: Session
    before_mb: float = 0.0  # resident in this process before it was loaded


class Watch(Protocol):
    """A shadow run under way."""

    def broken(self) -> str:
        """What the candidate did that no model may do; "" while it does well."""

    def stop(self) -> None:
        """It looks on no more, and its session is let go. Safe to repeat."""


class Host(Protocol):
    """What the rest of the agent does for the installer."""

    @property
    def online(self) -> bool: ...

    def emit(self, draft: events.Event) -> None:
        """Durably spool an event. Raises OSError."""

    def switch(self, model: str, loaded: Loaded | None, phase: Phase, rollout: Rollout) -> None:
        """From now on the model answers with this; None: with Unavailable."""

    def watch(self, model: str, candidate: Loaded, share: float, rollout: Rollout) -> Watch:
        """Let `candidate` see a share of the live inputs of what answers now."""

    def room_mb(self) -> float | None:
        """Memory that this process may still take; None: no limit."""

    def may(self, step: Step) -> bool:
        """Whether the device has room for this now: what has begun goes on."""

    def transform(self, model: str) -> Transform | None:
        """The application's own preprocessing, if it has named one."""


class Job:
    """Of the install thread only, but for `state` and `rollout`, which are frozen."""

    def __init__(self, store: Store, host: Host, clock: Clock, boot_id: str) -> None:
        self.store = store
        self._host, self._clock, self._boot_id = host, clock, boot_id
        self.wanted: DesiredModel | None = None
        self.rev = 0  # of the document that wants it
        self.held = False  # by the same document: nothing is begun
        self.unsuited: DesiredModel | None = None  # wanted, and not for this device: waits until something else is
        self.waiting: tuple[DesiredModel, str] | None = None  # wanted, and what was told of its hours
        self.loaded: Loaded | None = None
        self.candidate: Loaded | None = None
        self.watch: Watch | None = None
        self.fetched: tuple[bytes, Slot] | None = None
        self.phase: Phase = "normal"
        self.history = store.state.history
        self.history_kept_s = self.now_s
        self.retry_at_s = 0.0
        self.trial_since_s = 0.0  # since when `Record.tried_s` of a shadow run or a probation is true
        self.clocked_s = 0.0  # when that was last to be written
        self.load_at_s: float | None = None  # when the active slot, which does not answer, is to be loaded again
        self.loads = 0  # that failed in a row
        self.refused = 0  # tries in a row of which the disk took nothing
        self._told: list[tuple[Record, str]] = []  # whose event is spooled, since the record was persisted last

    @property
    def state(self) -> ModelState:
        return self.store.state

    @property
    def record(self) -> Record:
        return self.store.state.record

    @property
    def rollout(self) -> str:
        wanted = self.wanted or self.record.wanted
        return wanted.rollout if wanted else ""

    @property
    def now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    @property
    def tried_s(self) -> float:
        """How long the shadow run or probation lasts by now, reboots left out."""
        return self.record.tried_s + self.now_s - self.trial_since_s

    def staged(self) -> tuple[Side, Slot]:
        """The slot that holds what this update is about, before it is active. Raises OSError when it does not."""
        side = self.state.spare
        slot = self.state.slot(side)
        if slot is None or slot.digest != self.record.digest:
            raise OSError(f"the staged package {self.record.digest[:16]} is not in slot {side} any more")
        return side, slot

    def switch(self) -> None:
        """The application gets what is loaded."""
        self._host.switch(self.store.name, self.loaded, self.phase, self.rollout)

    def go(self, event: Event, *, reason: str = "", failure: FailureClass | None = None, log_tail: str = "") -> None:
        """The machine takes one step: told, then persisted. Raises OSError, and then nothing moved."""
        record = update.advance(self.record, event, reason=reason, failure=failure)
        if record.state is State.BLOCKED and record.digest not in self.state.blocked:
            self.emit(record, reason, failure=failure, log_tail=log_tail)
            blocked = {**self.state.blocked, record.digest: reason}
            self.save(msgspec.structs.replace(self.state, record=record, blocked=blocked))
        else:
            self.announce(record, log_tail)

    def announce(self, record: Record, log_tail: str = "") -> None:
        self.emit(record, record.reason, failure=record.failure, log_tail=log_tail)
        self.keep(record)

    def keep(self, record: Record) -> None:
        self.save(msgspec.structs.replace(self.state, record=record))

    def save(self, state: ModelState) -> None:
        self.store.save(state)
        self._told.clear()
        self.refused = 0
        if state.record.state is not State.SHADOW:
            self.end_watch()
        if state.record.state in (State.IDLE, State.BLOCKED, State.HELD):
            self.candidate = None  # one that was given up takes no memory

    def end_watch(self) -> None:
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.stop()

    def emit(self, after: Record, reason: str, *, failure: FailureClass | None = None, log_tail: str = "") -> None:
        before = self.record
        if (after, reason) in self._told:
            return
        slot = self.state.slot(self.state.spare) if self.state.running is None else self.state.running
        mine = slot if slot is not None and slot.digest == after.digest else None
        log.info("%s: %s → %s %s", self.store.name, before.state, after.state, reason)
        self._host.emit(
            draft(
                self._clock,
                self._boot_id,
                model=self.store.name,
                digest=after.digest,
                variant=mine.variant if mine else "",
                rollout=after.wanted.rollout if after.wanted else "",
                before=before.state.value,
                after=after.state.value,
                reason=reason or after.reason,
                failure=failure or after.failure,
                attempt=after.attempt,
                log=log_tail,
            )
        )
        self._told.append((after, reason))

    def remember(self, windows: list[Window]) -> None:
        """Add windows of the running package to its pre-period; old ones fade."""
        running = self.state.running
        mine = [w for w in windows if running and w.digest == running.digest[:16] and w.phase == "normal"]
        baseline = self.loaded.baseline if self.loaded else None
        h = self.history = quality.remembered(self.history, quality.seen(mine, baseline), baseline)
        if h.n >= 2 * self.state.history.n or self.now_s - self.history_kept_s >= HISTORY_S:
            try:
                self.keep_history()
            except OSError as full:  # it counts here all the same, and is written later
                log.warning("%s: the pre-period is not written: %s", self.store.name, full)

    def keep_trial(self, record: Record) -> None:
        """`record` of a trial under way, with the time that it has taken so far."""
        now_s = self.now_s
        self.keep(msgspec.structs.replace(record, tried_s=self.tried_s))
        self.trial_since_s = now_s

    def keep_history(self) -> None:
        """A reboot must not forget what the running package did, or the next is judged against a guess."""
        if self.history != self.state.history:
            self.save(msgspec.structs.replace(self.state, history=self.history))
        self.history_kept_s = self.now_s
