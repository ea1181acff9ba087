"""Installing packages: does what each state of `update.py` stands for, on one thread, one model after another.

Order within a step: do it, spool the event, persist the record. Cut between the last two, the event comes twice with
the same attempt; it never goes missing. Every step may be done again.
"""

from __future__ import annotations

import io
import logging
import platform
import queue
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np

from edgewright_contracts import event as events
from edgewright_contracts.baseline import Baseline, decode_baseline
from edgewright_contracts.desired import Desired, DesiredModel
from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable
from edgewright_contracts.event import FailureClass
from edgewright_contracts.manifest import Variant, decode_manifest
from edgewright_contracts.package import Package
from edgewright_contracts.report import Phase, Rollout, Window
from edgewright_runtime.runtime import Session, open_session

from . import health, update
from .clock import Clock
from .disk import Disk
from .fetch import Link, LinkDown, WrongBytes
from .health import Health
from .slots import ModelState, Side, Slot, Store, needed
from .trust import Distrusted, NotAllowed, Trust
from .update import Event, PrePeriod, Record, State

SPARE_BYTES: Final = 4 << 20  # of disk that a download leaves free
HISTORY_N: Final = 100_000  # inferences that the pre-period remembers before it halves
WARM_ROWS: Final = 3
TICK_S: Final = 1.0  # how soon a deadline is noticed

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    package: Package
    variant: Variant
    baseline: Baseline
    session: Session


class Host(Protocol):
    """What the rest of the agent does for the installer."""

    @property
    def online(self) -> bool: ...

    def emit(self, draft: events.Event) -> None:
        """Durably spool an event. Raises OSError."""

    def switch(self, model: str, loaded: Loaded | None, phase: Phase, rollout: Rollout) -> None:
        """From now on the model answers with this; None: with Unavailable."""


class Sealed(NamedTuple):
    """What was sealed together for one model."""

    model: str
    windows: list[Window]
    rss_mb: float


class DiskFull(Unavailable):
    """Too little space for a package."""


class Installer:
    """`desire`, `observe` and `stop` may be called from any thread; all else happens on the thread that `run`s."""

    def __init__(
        self,
        disk: Disk,
        models: Path,
        *,
        host: Host,
        trust: Trust,
        link: Link,
        repo: str,
        clock: Clock,
        boot_id: str,
        runtimes: tuple[str, ...],
        uniform: Callable[[], float],
    ) -> None:
        self._disk, self._models, self._host, self._trust = disk, models, host, trust
        self._link, self._repo, self._clock, self._boot_id = link, repo, clock, boot_id
        self._runtimes, self._uniform = runtimes, uniform
        self._inbox: queue.SimpleQueue[Desired | Sealed | None] = queue.SimpleQueue()
        self._stopping = link.stopping
        self._jobs: dict[str, Job] = {}

    def boot(self, *, unclean: bool) -> None:
        """Load what runs, resume what was under way. To be called once, before `run`."""
        self._disk.mkdir(self._models)
        for name in self._disk.list(self._models):
            job = self._job(name)
            record, then = update.resume(job.state.record, unclean=unclean)
            job.store.save(msgspec.structs.replace(job.state, record=record))
            self._load_active(job)
            if then is not None:
                self._go(job, then, reason=f"{record.crashes} crashes, {record.steps} steps", failure="model")

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:  # a full disk, most likely: nothing moved, so the same is tried again
                log.exception("installing is stuck and tries again")
                self._stopping.wait(TICK_S)

    def _turn(self) -> None:
        for job in list(self._jobs.values()):
            self._work(job)
        try:
            message = self._inbox.get(timeout=TICK_S)
        except queue.Empty:
            return
        if isinstance(message, Desired):
            self._desired(message)
        elif isinstance(message, Sealed):
            self._sealed(message)

    def desire(self, desired: Desired) -> None:
        self._inbox.put(desired)

    def observe(self, sealed: Sealed) -> None:
        self._inbox.put(sealed)

    def stop(self) -> None:
        self._stopping.set()
        self._inbox.put(None)

    def states(self) -> dict[str, ModelState]:
        """For births; each state is a frozen snapshot."""
        return {name: job.state for name, job in list(self._jobs.items())}

    def hurried(self) -> bool:
        """Whether windows shall be short: a probation or a rollout is on."""
        return any(j.record.state is State.PROBATION or j.rollout for j in list(self._jobs.values()))

    def _job(self, name: str) -> Job:
        if name not in self._jobs:
            try:
                store = Store(self._disk, self._models, name)
            except ContractError as error:  # flash rots; a device that can fetch again must not stay dark
                log.error("%s; starting without a package", error)  # noqa: TRY400
                self._disk.unlink(self._models / name / "state.json")
                store = Store(self._disk, self._models, name)
            self._jobs[name] = Job(store)
        return self._jobs[name]

    def _desired(self, desired: Desired) -> None:
        for model in desired.models:
            job = self._job(model.name)
            job.retry_at_s = 0.0
            if job.wanted is not None and job.wanted.rollout != model.rollout and job.loaded is not None:
                self._host.switch(model.name, job.loaded, job.phase, model.rollout)
            job.wanted = model
            self._clear(job, desired.cleared_digests)

    def _clear(self, job: Job, digests: tuple[str, ...]) -> None:
        kept = {d: why for d, why in job.state.blocked.items() if d not in digests}
        if len(kept) == len(job.state.blocked):
            return
        job.store.save(msgspec.structs.replace(job.state, blocked=kept))
        if job.record.state is State.BLOCKED and job.record.digest in digests:
            self._go(job, Event.DONE, reason="cleared by the operator", failure="operator")

    def _sealed(self, sealed: Sealed) -> None:
        job = self._jobs.get(sealed.model)
        if job is None:
            return
        record = job.record
        on_trial = record.state is State.PROBATION
        mine = [w for w in sealed.windows if w.digest == record.digest[:16] and w.phase == "probation"]
        if on_trial and mine:
            self._judge(job, mine, sealed.rss_mb)
        elif not on_trial:
            job.remember(sealed.windows)

    def _judge(self, job: Job, windows: list[Window], rss_mb: float) -> None:
        budgets = job.loaded.package.manifest.budgets if job.loaded else None
        if budgets is None:
            return
        record = job.record
        verdict = health.judge(windows, record, budgets, rss_mb)
        if verdict.health is Health.BROKEN:
            self._go(job, Event.BROKEN, reason=verdict.reason, failure="model")
            return
        well = verdict.health is Health.HEALTHY
        job.keep(
            msgspec.structs.replace(
                record,
                healthy=record.healthy + well,
                breaches=verdict.breaches,
                crashes=0 if well else record.crashes,
                reason=verdict.reason or record.reason,
            )
        )

    def _work(self, job: Job) -> None:
        """Take steps until the model waits for something: a wish, a window, a retry."""
        while not self._stopping.is_set():
            state, wanted = job.record.state, job.wanted
            changed = wanted is not None and job.record.digest != wanted.digest
            if changed and state in update.CANCELLED:
                self._go(job, Event.WITHDRAWN, reason="the hub wants something else", failure="operator")
            elif state is State.IDLE:
                if not self._begin(job):
                    return
            elif state is State.PROBATION:
                if not self._conclude(job):
                    return
            elif state is State.BLOCKED or self._now_s() < job.retry_at_s:
                return
            else:
                self._step(job)

    def _begin(self, job: Job) -> bool:
        wanted = job.wanted
        if wanted is None or self._now_s() < job.retry_at_s or not self._in_hours(wanted):
            return False
        running = job.state.running
        if wanted.digest is None:
            if running is not None:
                self._emit(job, Record(), f"the hub wants no package; {running.version} stopped")
                job.store.save(msgspec.structs.replace(job.state, active=None, record=Record()))
                self._load_active(job)
            return False
        if running is not None and running.digest == wanted.digest and wanted.variant in (None, running.variant):
            return False
        if wanted.digest in job.state.blocked:
            job.keep(Record(wanted=wanted))
            self._go(job, Event.BROKEN, reason=f"blocked: {job.state.blocked[wanted.digest]}", failure="model")
            return False
        self._announce(job, update.want(job.record, wanted))
        return True

    def _in_hours(self, wanted: DesiredModel) -> bool:
        if wanted.not_before is None and wanted.not_after is None:
            return True
        now = self._clock.wall_ms()
        return now is not None and (wanted.not_before or 0) <= now <= (wanted.not_after or now)

    def _step(self, job: Job) -> None:
        state = job.record.state
        steps: dict[State, Callable[[Job], None]] = {
            State.FETCH: self._fetch,
            State.STAGE: self._stage,
            State.SELFTEST: self._selftest,
            State.WARMUP: self._warm_up,
            State.ACTIVATE: self._activate,
            State.COMMIT: self._commit,
            State.ROLLBACK: self._roll_back,
        }
        try:
            steps[state](job)
        except Exception as error:  # whatever a step throws has a class, and the machine goes on
            if self._stopping.is_set():
                return  # cut short by the end of the process: the next boot resumes
            self._failed(job, error)

    def _failed(self, job: Job, error: Exception) -> None:
        failure = classify(error, job.record.state)
        expected = isinstance(error, Refused | RequestError | Unavailable | OSError)
        tail = "" if expected else traceback.format_exc()
        log.warning("%s: %s failed: %s", job.store.name, job.record.state, error)
        try:
            if failure == "model":
                self._go(job, Event.BROKEN, reason=str(error), failure=failure, tail=tail)
            else:
                state = job.record.state
                self._go(job, Event.DELAYED, reason=str(error), failure=failure, tail=tail)
                if job.record.state is not State.ROLLBACK or state is State.ROLLBACK:
                    self._wait(job)  # but rolling back begins at once
        except OSError as full:  # the disk does not even take the event: stay, and try the step again later
            log.error("%s: cannot record the failure: %s", job.store.name, full)  # noqa: TRY400

    def _fetch(self, job: Job) -> None:
        wanted = job.record.wanted
        assert wanted is not None
        assert wanted.digest is not None
        spare = job.state.slot(job.state.spare)
        if spare is not None and spare.digest == wanted.digest and wanted.variant in (None, spare.variant):
            self._go(job, Event.DONE, reason="the other slot holds it already")
            return
        data = self._trust.manifest(wanted.name, wanted.digest)
        manifest = decode_manifest(data)
        if manifest.name != wanted.name:
            raise ContractError("manifest.name", wanted.name, manifest.name)
        ranked = manifest.ranked(platform.machine().lower(), self._runtimes)
        choice = next((c for c in ranked if wanted.variant in (None, c[0].id)), None)
        if choice is None:
            raise ContractError(
                "manifest.ranking",
                f"variant {wanted.variant or 'any'} for {platform.machine()} and {', '.join(self._runtimes) or 'none'}",
                ", ".join(manifest.ranking),
            )
        variant, runtime = choice
        need, free = job.store.to_download(manifest, variant) + SPARE_BYTES, self._disk.free(job.store.root)
        if need > free:
            raise DiskFull(f"expected {need} bytes of free disk, got {free}")
        for file in needed(variant):
            ref = manifest.files[file]
            self._link.blob(
                self._disk, f"{self._repo}blobs/{ref.sha256}", job.store.part(ref.sha256), ref.size, ref.sha256
            )
        job.fetched = (data, Slot(wanted.digest, manifest.version, variant.id, runtime))
        self._go(job, Event.DONE, reason=f"{manifest.version} {variant.id} for {runtime}")

    def _stage(self, job: Job) -> None:
        spare = job.state.slot(job.state.spare)
        if spare is None or spare.digest != job.record.digest:
            assert job.fetched is not None  # a boot in this state goes back to fetch
            job.store.stage(*job.fetched)
        job.fetched = None
        self._go(job, Event.DONE)

    def _selftest(self, job: Job) -> None:
        side, slot = self._candidate(job)
        verdict, tail = health.selftest(job.store.side(side), slot.variant, slot.runtime, stopping=self._stopping)
        if verdict.passed:
            self._go(job, Event.DONE, reason=f"passed; peak {verdict.rss_mb:.0f} MB")
        else:
            self._go(job, Event.BROKEN, reason=f"self-test: {verdict.reason}", failure="model", tail=tail)

    def _warm_up(self, job: Job) -> None:
        side, _ = self._candidate(job)
        began = self._now_s()
        loaded = self._load(job, side)
        manifest = loaded.package.manifest
        with np.load(io.BytesIO(loaded.package.read(loaded.variant.selftest)), allow_pickle=False) as arrays:
            inputs = {t.name: arrays[f"input:{t.name}"][:WARM_ROWS] for t in manifest.inputs}
        loaded.session.run(inputs)
        took = self._now_s() - began
        if manifest.budgets.load_s is not None and took > manifest.budgets.load_s:
            raise Refused(f"loading took {took:.1f} s, budget {manifest.budgets.load_s:g} s")
        job.candidate = loaded
        self._go(job, Event.DONE, reason=f"loaded in {took:.2f} s")

    def _activate(self, job: Job) -> None:
        side, _ = self._candidate(job)
        assert job.candidate is not None  # a boot in this state goes back to warm-up
        record = msgspec.structs.replace(
            update.advance(job.record, Event.DONE), before=job.history, healthy=0, breaches=0, crashes=0
        )
        job.loaded, job.candidate, job.phase = job.candidate, None, "probation"
        job.probation_since_s, job.history = self._now_s(), PrePeriod()
        self._host.switch(job.store.name, job.loaded, job.phase, job.rollout)
        self._emit(job, record, "")
        # One write moves the pointer and begins the probation: there is no moment between them.
        job.store.save(msgspec.structs.replace(job.state, active=side, record=record))

    def _conclude(self, job: Job) -> bool:
        """End the probation when it is time; True when it ended."""
        record = job.record
        assert record.wanted is not None
        rule = record.wanted.probation
        late = self._now_s() - job.probation_since_s > rule.max_s
        if record.healthy >= rule.windows and (self._host.online or late):
            how = f"{record.healthy} healthy windows"
            self._go(job, Event.DONE, reason=how if self._host.online else f"offline: {how}, no contact with the hub")
            return True
        if late:
            reason = f"no verdict in {rule.max_s:g} s: {record.healthy} of {rule.windows} healthy windows"
            self._go(job, Event.DELAYED, reason=reason, failure="operator")
            return True
        return False

    def _commit(self, job: Job) -> None:
        job.phase = "normal"
        if job.loaded is not None:
            self._host.switch(job.store.name, job.loaded, job.phase, job.rollout)
        self._go(job, Event.DONE, reason="committed")

    def _roll_back(self, job: Job) -> None:
        running, record = job.state.running, job.record
        if running is not None and running.digest == record.digest:
            previous = job.state.spare if job.state.slot(job.state.spare) is not None else None
            job.store.save(msgspec.structs.replace(job.state, active=previous))
        self._load_active(job)
        state, blame = job.state, record.failure == "model"
        if blame:
            state = msgspec.structs.replace(state, blocked={**state.blocked, record.digest: record.reason})
        event = Event.BROKEN if blame else Event.DONE
        after = update.advance(record, event, reason=record.reason, failure=record.failure)
        back_to = state.running
        self._emit(job, after, f"runs {back_to.version} again" if back_to else "nothing was there before")
        job.store.save(msgspec.structs.replace(state, record=after))
        if not blame and job.wanted is not None and job.wanted.digest == record.digest:
            self._wait(job)

    def _load_active(self, job: Job) -> None:
        """Make the session of the active slot; a slot that does not load any more falls back to the other."""
        job.phase = "probation" if job.record.state is State.PROBATION else "normal"
        job.probation_since_s = self._now_s()
        job.loaded = None
        side = job.state.active
        if side is not None:
            try:
                job.loaded = self._load(job, side)
            except Exception as error:
                log.exception("%s: the active slot %s does not load", job.store.name, side)
                self._fall_back(job, error)
        self._host.switch(job.store.name, job.loaded, job.phase, job.rollout)

    def _fall_back(self, job: Job, error: Exception) -> None:
        if job.record.state is State.PROBATION:
            self._go(job, Event.BROKEN, reason=f"does not load: {error}", failure="model")
            return  # the machine rolls back on its next step
        other = job.state.spare
        if job.state.slot(other) is not None:
            try:
                job.loaded = self._load(job, other)
            except Exception:
                log.exception("%s: the other slot %s does not load either", job.store.name, other)
        broken = job.state.active
        assert broken is not None
        state = msgspec.structs.replace(job.state.with_slot(broken, None), active=other if job.loaded else None)
        self._emit(job, job.record, f"the active slot does not load: {error}", failure="disk")
        job.store.save(state)

    def _load(self, job: Job, side: Side) -> Loaded:
        package, slot = job.store.package(side), job.state.slot(side)
        assert slot is not None
        manifest = package.manifest
        variant = manifest.variant(slot.variant)
        package.read(variant.model)  # its hash: flash rots
        session = open_session(
            package.root / variant.model, slot.runtime, inputs=manifest.inputs, outputs=manifest.outputs
        )
        return Loaded(package, variant, decode_baseline(package.read(variant.baseline)), session)

    def _candidate(self, job: Job) -> tuple[Side, Slot]:
        side = job.state.spare
        slot = job.state.slot(side)
        if slot is None or slot.digest != job.record.digest:
            raise OSError(f"the staged package {job.record.digest[:16]} is not in slot {side} any more")
        return side, slot

    def _go(
        self, job: Job, event: Event, *, reason: str = "", failure: FailureClass | None = None, tail: str = ""
    ) -> None:
        record = update.advance(job.record, event, reason=reason, failure=failure)
        if record.state is State.BLOCKED and record.digest not in job.state.blocked:
            self._emit(job, record, reason, failure=failure, tail=tail)
            blocked = {**job.state.blocked, record.digest: reason}
            job.store.save(msgspec.structs.replace(job.state, record=record, blocked=blocked))
        else:
            self._announce(job, record, tail=tail)

    def _announce(self, job: Job, record: Record, tail: str = "") -> None:
        self._emit(job, record, record.reason, failure=record.failure, tail=tail)
        job.keep(record)

    def _emit(
        self, job: Job, after: Record, reason: str, *, failure: FailureClass | None = None, tail: str = ""
    ) -> None:
        before = job.record
        slot = job.state.slot(job.state.spare) if job.state.running is None else job.state.running
        mine = slot if slot is not None and slot.digest == after.digest else None
        log.info("%s: %s → %s %s", job.store.name, before.state, after.state, reason)
        self._host.emit(
            events.Event(
                spool_id="0" * 16,  # given with the number, when it is offered
                seq=1,
                boot_id=self._boot_id,
                mono_ms=self._clock.monotonic_ns() // 1_000_000,
                wall_ms=self._clock.wall_ms(),
                model=job.store.name,
                digest=after.digest,
                variant=mine.variant if mine else "",
                rollout=after.wanted.rollout if after.wanted else "",
                before=before.state.value,
                after=after.state.value,
                reason=(reason or after.reason)[:1024],
                failure=failure or after.failure,
                attempt=after.attempt,
                log=tail[-events.LOG_TAIL_BYTES :],
            )
        )

    def _wait(self, job: Job) -> None:
        """The next attempt comes later each time."""
        job.retry_at_s = self._now_s() + update.retry_after_s(job.record.attempt, self._uniform())

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


class Job:
    """One model: what is on disk, what the hub wants, and what is loaded."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.wanted: DesiredModel | None = None
        self.loaded: Loaded | None = None
        self.candidate: Loaded | None = None
        self.fetched: tuple[bytes, Slot] | None = None
        self.phase: Phase = "normal"
        self.history = PrePeriod()
        self.retry_at_s = 0.0
        self.probation_since_s = 0.0

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

    def keep(self, record: Record) -> None:
        self.store.save(msgspec.structs.replace(self.state, record=record))

    def remember(self, windows: list[Window]) -> None:
        """Add windows of the running package to its pre-period; old ones fade."""
        running = self.state.running
        h = self.history
        for w in windows:
            if running is not None and w.digest == running.digest[:16] and w.phase == "normal":
                h = PrePeriod(h.n + w.n, h.errors + w.error_count, h.rejected + sum(w.rejected.values()))
        if h.n > HISTORY_N:
            h = PrePeriod(h.n // 2, h.errors // 2, h.rejected // 2)
        self.history = h


def classify(error: Exception, state: State) -> FailureClass:
    """Who is to blame. Only the model's failures block a digest, so whatever is in doubt is not the model's."""
    if isinstance(error, LinkDown):
        return "link"
    if isinstance(error, Distrusted | NotAllowed | WrongBytes):
        return "hub"
    if isinstance(error, OSError | DiskFull):
        return "disk"
    if isinstance(error, Unavailable):
        return "link"
    if state in (State.COMMIT, State.ROLLBACK):
        return "disk"  # these must be done, so they are tried until they are
    if isinstance(error, Refused | RequestError):  # LoadFailed and ContractError: signed, and still unusable
        return "model"
    return "model" if state is State.WARMUP else "disk"


__all__ = ["DiskFull", "Host", "Installer", "Loaded", "Sealed", "classify"]
