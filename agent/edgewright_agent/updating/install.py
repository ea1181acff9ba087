"""Installing packages: one thread takes one model after another through the states of `update.py`.

Order: a step is done, told, persisted (`job`, `steps`). What a step throws has a class (`failures`) and the machine
goes on; what anything else throws is told, and tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.desired import Desired
from edgewright_contracts.errors import ContractError
from edgewright_contracts.event import FailureClass

from ..clock import Clock
from ..disk import Disk
from ..limits.governor import Step
from ..unforeseen import Unforeseen, tail
from . import health, orders, trial, update
from .failures import Unsuited, classify, said
from .fetch import Link
from .health import Conclusion
from .inbox import Cleared, Inbox, Registered, Sealed, Wish
from .job import Host, Interrupted, Job
from .recovery import recover
from .retreat import is_only, load_active, roll_back
from .sideload import Sideloads
from .slots import ModelState, Store
from .steps import Steps
from .update import Event, Record, State

TICK_S: Final = 1.0  # how soon a deadline is noticed
START_S: Final = 20.0  # that self-tests may keep a start waiting, all models together; then they go on behind it
SHORTEST: Final = 9  # steps of an attempt until it must be rolled back or committed

__all__ = ["Installer", "Sealed"]

log = logging.getLogger(__name__)


class Installer:
    """`desire`, `observe` and `stop` may be called from any thread; all else happens on the thread that `run`s."""

    def __init__(
        self,
        disk: Disk,
        models: Path,
        *,
        host: Host,
        trust: Sideloads,
        link: Link,
        repo: str,
        clock: Clock,
        boot_id: str,
        runtimes: tuple[str, ...],
        uniform: Callable[[], float],
        unforeseen: Unforeseen,
    ) -> None:
        self._disk, self._models, self._host = disk, models, host
        self._clock, self._boot_id, self._uniform, self._unforeseen = clock, boot_id, uniform, unforeseen
        self._inbox = Inbox(self._want, self._observed, self._registered, self._cleared, unforeseen)
        self._stopping = link.stopping
        self._steps = Steps(
            disk, trust, link, repo, runtimes, link.stopping, self._interrupt, uniform, host, self._shadow
        )
        self._jobs: dict[str, Job] = {}

    def boot(self, *, unclean: bool, cut: bool = False) -> None:
        """Load what runs, resume what was under way. To be called once, before `run`.

        A model that is to blame is not loaded again, or it would take this boot down as well; and whatever the disk
        refuses, what can be loaded answers. `cut`: the machine had ended with the agent.
        """
        end_s = self._clock.monotonic_ns() / 1e9 + START_S

        def soon() -> None:
            if self._clock.monotonic_ns() / 1e9 >= end_s:
                raise Interrupted

        for name in self._disk.list(self._models):
            try:
                job = self._job(name)
                try:
                    self._resume(job, unclean, cut)
                finally:
                    self._load(job, soon)
            except Exception as error:  # whatever is wrong with one model, the others answer
                self._unforeseen.tell("install", error)

    def _resume(self, job: Job, unclean: bool, cut: bool) -> None:
        record, then = update.resume(job.record, unclean=unclean, cut=cut)
        if record != job.record:
            job.keep(record)
        if then is Event.DELAYED:
            job.go(then, reason=f"{record.cuts} power cuts in {record.state}", failure="power")
        elif then is not None:
            reason = f"{record.crashes} unclean boots in {record.state}"
            if record.state is not State.SELFTEST and is_only(job):
                # A process that is killed looks like one that crashed, and blocked here is without an answer for good.
                job.go(Event.DELAYED, reason=f"{reason}: crashed, killed or out of memory", failure="power")
            else:
                job.go(then, reason=reason, failure="model")

    def _load(self, job: Job, interrupt: Callable[[], None]) -> None:
        job.load_at_s = None
        if job.record.state is not State.ROLLBACK:  # or what is to be left would be loaded again
            try:
                proven = self._proven(job, interrupt)
            except Interrupted:
                job.load_at_s, proven = job.now_s, False
            if proven:
                load_active(job)
            else:
                job.switch()
        if job.record.state is State.ROLLBACK:
            self._step(job)

    def _proven(self, job: Job, interrupt: Callable[[], None]) -> bool:
        try:
            return self._steps.proving.again(job, interrupt)
        except Interrupted:
            raise
        except Exception as error:  # a full disk, most likely; what loads answers, and the next boot proves it
            self._unforeseen.tell("install", error)
            return True

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.is_set():
            self._turn()
        for job in self._jobs.values():
            if job.record.state is State.PROBATION or job.watch is not None:
                self._inbox.handled(job.keep_trial, job.record)
            job.end_watch()
            self._inbox.handled(job.keep_history)

    def desire(self, desired: Desired) -> None:
        self._inbox.put(desired)

    def registered(self, model: str) -> None:
        """The application has named its preprocessing for `model`."""
        self._inbox.put(Registered(model))

    def clear(self, model: str, digest: str) -> None:
        """A person at the device says that this package may be tried again."""
        self._inbox.put(Cleared(model, digest))

    def observe(self, sealed: Sealed) -> None:
        self._inbox.put(sealed)

    def stop(self) -> None:
        self._stopping.set()
        self._inbox.put(None)

    def states(self) -> dict[str, ModelState]:
        """For births; each state is a frozen snapshot."""
        return {name: job.state for name, job in list(self._jobs.items())}

    def hurried(self) -> bool:
        """Whether windows shall be short: a trial or a rollout is on."""
        trials = (State.SHADOW, State.PROBATION)
        return any(j.record.state in trials or j.rollout for j in list(self._jobs.values()))

    def _turn(self) -> None:
        """One step of each job, and what came in between them; without anything to do, the wait for a message."""
        moved = False
        for job in list(self._jobs.values()):
            self._inbox.read()
            if self._stopping.is_set():
                return
            try:
                moved = self._advance(job) or moved
            except Exception as error:  # a full disk, most likely: nothing moved, so the same is tried again
                self._unforeseen.tell("install", error)
        self._inbox.read(0.0 if moved else TICK_S)

    def _interrupt(self, job: Job) -> None:
        """Called in the middle of a long step of `job`: raises Interrupted when something cannot wait for its end."""
        self._inbox.read_new()
        if orders.withdrawn(job) or any(self._urgent(other) for other in self._jobs.values() if other is not job):
            raise Interrupted

    def _urgent(self, job: Job) -> bool:
        rolling_back = job.record.state is State.ROLLBACK and job.now_s >= job.retry_at_s
        return rolling_back or orders.withdrawn(job) or self._conclusion(job) is not None

    def _conclusion(self, job: Job) -> Conclusion | None:
        if job.record.state is State.PROBATION:
            return health.conclude(job.record, job.tried_s, self._host.online)
        return trial.conclude(job) if job.record.state is State.SHADOW and job.watch is not None else None

    def _job(self, name: str) -> Job:
        if name not in self._jobs:
            try:
                store = Store(self._disk, self._models, name)
            except ContractError as error:  # flash rots, agents are put back to an earlier version: answer all the same
                self._unforeseen.tell("install", error)
                store = Store(self._disk, self._models, name, recover(self._disk, self._models / name))
            self._jobs[name] = Job(store, self._host, self._clock, self._boot_id)
        return self._jobs[name]

    def _want(self, wish: Wish) -> None:
        orders.take(self._job(wish.model.name), wish)

    def _registered(self, news: Registered) -> None:
        job = self._jobs.get(news.model)
        if job is None:
            return
        orders.registered(job)
        if job.loaded is not None:
            try:
                self._steps.check_transform(job.store.name, job.loaded.package)
            except Unsuited as error:  # an update of the application, most likely: it answers, and somebody must know
                job.emit(job.record, f"{job.loaded.package.manifest.version} answers, but {error}", failure="operator")

    def _cleared(self, asked: Cleared) -> None:
        if asked.model in self._jobs:
            orders.cleared(self._jobs[asked.model], asked.digest)

    def _observed(self, sealed: Sealed) -> None:
        job = self._jobs.get(sealed.model)
        if job is None:
            return
        on_trial = job.record.state is State.PROBATION
        mine = [w for w in sealed.windows if w.digest == job.record.digest[:16] and w.phase == "probation"]
        if on_trial and mine:
            trial.judge(job, mine, sealed.rss_mb)
        elif not on_trial:
            job.remember(sealed.windows)
            if job.record.state is State.SHADOW:
                trial.observe(job, sealed.windows)

    def _advance(self, job: Job) -> bool:
        """Take one step; False when the model waits for something: a wish, a window, a retry."""
        state = job.record.state
        if orders.withdrawn(job):
            job.go(Event.WITHDRAWN, reason="something else is wanted", failure="operator")
        elif job.load_at_s is not None and job.now_s >= job.load_at_s:
            self._load(job, lambda: self._interrupt(job))
        elif state is State.IDLE:
            return self._begin(job)
        elif state in update.UNDER_WAY and (why := self._cut_short(job)) is not None:
            self._delay(job, *why)
        elif state is State.PROBATION or (state is State.SHADOW and job.watch is not None):
            end = self._conclusion(job)
            if end is None:
                trial.clock(job)
                return False
            if end.event is Event.DELAYED and state is State.SHADOW:
                self._delay(job, end.reason, "operator")
            else:
                job.go(end.event, reason=end.reason, failure=end.failure)
        elif state in (State.BLOCKED, State.HELD) or job.now_s < job.retry_at_s:
            return False
        else:
            self._step(job)
        return True

    def _begin(self, job: Job) -> bool:
        running = job.state.running
        if job.wanted is not None and job.wanted.digest is None and running is not None:
            job.emit(Record(), f"the hub wants no package; {running.version} stopped")
            job.save(msgspec.structs.replace(job.state, active=None, record=Record()))
            load_active(job)
        elif self._host.may(Step.INSTALL) and orders.due(job, self._clock.wall_ms(), self._host.online):
            orders.begin(job)
            return job.record.state is State.FETCH
        return False

    def _cut_short(self, job: Job) -> tuple[str, FailureClass] | None:
        """Why an attempt shall not go on, although nothing failed."""
        if update.looping(job.record):
            return f"{job.record.steps} steps without an end: restarts cut the update off again and again", "power"
        wanted = job.wanted
        if wanted is not None and orders.over(wanted, self._clock.wall_ms()):
            return f"not ready in time: it was wanted until {wanted.not_after} ms (UTC)", "operator"
        return None

    def _step(self, job: Job) -> None:
        try:
            if job.record.state is State.ROLLBACK:
                blame, digest = job.record.failure == "model", job.record.digest
                roll_back(job)
                if not blame and job.wanted is not None and job.wanted.digest == digest:
                    self._wait(job)
            else:
                self._steps.take(job)
        except Interrupted:
            return
        except Exception as error:  # whatever a step throws has a class, and the machine goes on
            if self._stopping.is_set():
                return  # cut short by the end of the process: the next boot resumes
            self._failed(job, error)

    def _failed(self, job: Job, error: Exception) -> None:
        state = job.record.state
        failure, reason = classify(error, state), said(error)
        log.warning("%s: %s failed (%s): %s", job.store.name, state, failure, reason)
        try:
            if failure == "model":
                job.go(Event.BROKEN, reason=reason, failure=failure, log_tail=tail(error))
                return
            self._delay(job, reason, failure, tail(error))
            if isinstance(error, Unsuited):
                job.unsuited = job.record.wanted
        except OSError as full:  # the disk does not even take the event: stay, and try the step again later
            log.error("%s: cannot record the failure: %s", job.store.name, full)  # noqa: TRY400
            self._wait(job)

    def _shadow(self, job: Job) -> None:
        trial.begin(job, self._host)

    def _delay(self, job: Job, reason: str, failure: FailureClass, log_tail: str = "") -> None:
        before = job.record.state
        if before not in (State.COMMIT, State.ROLLBACK) or job.record.steps < update.STEPS:
            job.go(Event.DELAYED, reason=reason, failure=failure, log_tail=log_tail)
        if job.record.state is not State.ROLLBACK or before is State.ROLLBACK:
            self._wait(job)  # but rolling back begins at once

    def _wait(self, job: Job) -> None:
        """The next attempt comes later each time; what must be done is tried until it is, without a word more."""
        record = job.record
        must = record.state in (State.COMMIT, State.ROLLBACK)
        n = (max(1, record.steps - SHORTEST) if must else record.attempt) + job.refused
        job.refused += 1
        job.retry_at_s = job.now_s + update.retry_after_s(n, self._uniform())
