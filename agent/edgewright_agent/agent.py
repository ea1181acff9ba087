"""The agent in an application's process: `with Agent(home) as agent: agent.model("digits").predict({"image": x})`.

Three threads of its own: telemetry (`reporter`), installing (`install`), and the link's. An inference waits for none of
them. Leaving the `with` block seals the open window; a kill loses it, and the next birth says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import itertools
import logging
import os
import platform
import random
import re
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import msgspec

from edgewright_contracts import birth, event
from edgewright_contracts.desired import Config, Desired
from edgewright_contracts.errors import RequestError
from edgewright_contracts.report import Phase, Rollout, Window
from edgewright_runtime.golden import Transform
from edgewright_runtime.runtime import available, probe

from . import clock as clocks
from . import tls
from .clock import Clock, SystemClock
from .console import status
from .console.errands import Errands
from .console.logtail import LogTail
from .delivery.mqtt import MqttTransport, Transport
from .delivery.nohub import NoHub
from .delivery.reporter import Reporter
from .delivery.spool import Spool
from .disk import Disk, RealDisk
from .hosting import logs
from .hosting.live import Live
from .inference.model import Active, Fallback, Model, Turned
from .inference.shadow import Allowance, Shadow
from .limits.device import resident_kb
from .limits.governor import Step
from .renewal import Renewal
from .samples.sampling import Redact, Sampling
from .samples.sending import sender
from .telemetry.meter import Meter
from .telemetry.notices import Notice
from .telemetry.ring import Outcome
from .telemetry.rows import Subject
from .unforeseen import Unforeseen
from .updating.fetch import Link
from .updating.install import Installer, Sealed
from .updating.job import Loaded
from .updating.machine import restarted
from .updating.pace import Ration
from .updating.sideload import Sideload, Sideloads
from .updating.slots import ModelState
from .updating.update import UNDER_WAY, State

NAME: Final = re.compile(r"\A[ -~]{1,64}\Z")  # of an outcome: codec.Label
JOIN_S: Final = 10.0  # for a thread at the end; a download or self-test under way breaks off sooner

log = logging.getLogger(__name__)


class Agent:
    """`home` must be enrolled, or hold a package that was brought by hand (`edgewright agent sideload`): without a hub,
    what is counted stays on the device. `runtimes` are those to use, best first; None takes all that work here.

    The other arguments replace a seam of the outside world. All methods may be called from any thread. Raises
    RequestError when `home` is neither or has its agent already, ContractError and Unavailable when it is damaged.
    """

    def __init__(
        self,
        home: Path | str,
        *,
        runtimes: Sequence[str] | None = None,
        transport: Transport | None = None,
        disk: Disk | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.home = Path(home)
        self.identity = status.of(self.home)
        self.boot_id = secrets.token_hex(8)
        self._clock = clock or SystemClock()
        self._disk = disk or RealDisk()
        self._began_ns = self._clock.monotonic_ns()
        self._followed: Config | None = None
        self._lock = _only_one(self.home)
        try:
            self._build(runtimes, transport)
        except BaseException:
            self._unlock()
            raise

    def _build(self, runtimes: Sequence[str] | None, transport: Transport | None) -> None:
        """The parts, none of which does or writes anything yet."""
        self._runtimes = available() if runtimes is None else {name: probe(name) for name in runtimes}
        wake = threading.Event()
        self._meter = Meter(wake)
        self._wake = wake
        self._ids = itertools.count(1)
        self._models: dict[str, Model] = {}
        self._transforms: dict[str, Transform] = {}
        self._transport = transport or self._connected()
        self._spool = Spool(self._disk, self.home / "spool", new_id=lambda: secrets.token_hex(8))
        hub = self.identity.hub
        unforeseen = Unforeseen(self.emit, self._clock, self.boot_id)
        ration = Ration(self._disk, self.home / "download.json", self._clock)
        connections = tls.connections(self.identity, self._clock, hub.repo)
        link = self._link = Link(connections, clock=self._clock, ration=ration)
        self._sideloads = Sideloads(self._disk, self.identity, link, self._clock, tuple(self._runtimes))
        self._offered: dict[str, Sideload] = {}
        self._installer = Installer(
            self._disk,
            self.home / "models",
            host=self,
            trust=self._sideloads,
            link=link,
            repo=hub.repo,
            clock=self._clock,
            boot_id=self.boot_id,
            runtimes=tuple(self._runtimes),
            uniform=random.random,
            unforeseen=unforeseen,
        )
        self._renewal = Renewal(
            self.identity,
            self._clock,
            lambda after, reason: self._reporter.notices.note(Notice("certificate", after, reason)),
            share=random.random(),
        )
        send = None
        if hub.api:
            send = sender(tls.connections(self.identity, self._clock, hub.api, named=True), hub.api, hub.device)
        self._sampling = Sampling(self._disk, self.home, self._clock, lambda: secrets.token_hex(8), send)
        self._tail = LogTail(self._disk, self.home, self._clock)
        self._errands = Errands(
            self.emit,
            self._clock,
            self.boot_id,
            unforeseen,
            rounds=(self._look_for_packages, self._sample, self._tail.keep),
            verbs={"bench": self._bench, "collect": self._collect, "resample": self._resample},
        )
        self._reporter = Reporter(
            self.home,
            disk=self._disk,
            clock=self._clock,
            meter=self._meter,
            spool=self._spool,
            transport=self._transport,
            wake=wake,
            boot_id=self.boot_id,
            subjects=self._subjects,
            hurried=self._installer.hurried,
            observe=self._observe,
            desire=self._desire,
            born=self._birth,
            received=lambda: link.received,
            unforeseen=unforeseen,
            errand=self._errands.ask,
        )
        self._threads = [
            threading.Thread(target=self._reporter.run, name="edgewright-telemetry", daemon=True),
            threading.Thread(target=self._installer.run, name="edgewright-install", daemon=True),
            threading.Thread(target=self._errands.run, name="edgewright-errands", daemon=True),
        ]

    def __enter__(self) -> Agent:
        logging.getLogger(__package__).addHandler(self._tail)
        self._spool.begin(self._reporter.opened())
        try:
            self._installer.boot(unclean=self._spool.after_crash, cut=restarted(self._disk, self.home))
            self._look_for_packages()
            self._desire(self._reporter.desired or Desired(rev=0))
            for thread in self._threads:
                thread.start()
            self._transport.start(self._reporter)
            if self.identity.hub.api:
                self._renewal.start()
        except BaseException:
            if not self._threads[0].is_alive():  # so nothing was counted, and nothing is lost
                with contextlib.suppress(OSError):
                    self._reporter.finish()
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all threads; the open window is sealed. Safe to repeat."""
        self._errands.stop()
        self._installer.stop()
        self._renewal.stop()
        self._reporter.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)
        self._transport.stop()
        logging.getLogger(__package__).removeHandler(self._tail)
        with contextlib.suppress(OSError):  # it is said already, by whoever needed the disk more
            self._tail.keep(last=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def model(self, name: str, *, transform: Transform | None = None, fallback: Fallback | None = None) -> Model:
        """The model of this name; it may have no package yet, and then `predict` raises Unavailable.

        `transform` is what the application itself does to raw samples [n, ...] before it predicts, for packages of
        `preprocess: host`: such a package is only installed when it makes the package's own tensors of the package's
        own samples. It is called on a thread of the agent, with one sample at a time.

        `fallback` answers where `predict` would raise Unavailable (no package, a run that failed, a model that failed
        again and again): outputs by name, or a function of the inputs that gives them. Such a prediction says so.
        """
        if transform is not None:
            self._transforms[name] = transform
            self._installer.registered(name)
        found = self._models.get(name)
        if found is None:
            found = self._models.setdefault(name, Model(name, self._meter, self._clock, self._ids, self._turned))
        if fallback is not None:
            found.fallback = fallback
        return found

    def dead(self) -> list[str]:
        """Threads that ended although the agent was not closed: nothing foreseen does that."""
        link = [self._transport.thread] if isinstance(self._transport, MqttTransport) else []
        return [thread.name for thread in (*self._threads, *link) if not thread.is_alive()]

    def live(self) -> Live:
        """How the agent is just now; from any thread."""
        watch, config, desired = self._reporter.watch, self._reporter.config, self._reporter.desired
        used = {name: round(float(value), 1) for name, value in watch.readings._asdict().items() if value is not None}
        return Live(
            pid=os.getpid(),
            boot_id=self.boot_id,
            uptime_s=(self._clock.monotonic_ns() - self._began_ns) / 1e9,
            clock=clocks.state(self._clock),
            link=self._transport.condition(),
            dead=self.dead(),
            shed=[step.value for step in Step if not watch.may(step)],
            used=used,
            window_s=self._reporter.window_s,
            profile=config.profile,
            desired_rev=desired.rev if desired else 0,
            config_version=config.version,
            traffic=self._transport.traffic(),
            overhead=self._transport.overhead(),
            disk=self._spool.trouble,
        )

    def settle(self, timeout: float = 10.0) -> bool:
        """Wait until everything predicted so far was counted: for tests and benchmarks, an application need not."""
        return self._meter.settle(timeout)

    def states(self) -> dict[str, ModelState]:
        """What each model has in its slots, and where an update of it stands."""
        return self._installer.states()

    def models(self) -> list[Model]:
        """Those that the application or the hub has named."""
        return list(self._models.values())

    def label(self, identifier: int, truth: int | str) -> None:
        """The true class of an earlier prediction, as index or label: counted as outcome `correct`."""
        self._meter.outcome(Outcome(identifier, "correct", truth))

    def outcome(self, identifier: int, name: str, happened: bool) -> None:
        """Whether something named came out of an earlier prediction, as ("pick_ok", True)."""
        if not NAME.match(name) or name == "correct":
            raise RequestError(
                f"expected an outcome name of 1 to 64 ASCII characters other than 'correct', got {name[:80]!r}"
            )
        self._meter.outcome(Outcome(identifier, name, int(happened)))

    def redact(self, change: Redact) -> None:
        """`change(model, inputs)` sees every sampled input before it is kept, and gives what may leave this device, by
        name and of any shape, or None for nothing. It is called on a thread of the agent."""
        self._sampling.redact = change

    # What the installer asks for (job.Host).

    @property
    def online(self) -> bool:
        return self._transport.online

    def emit(self, draft: event.Event) -> None:
        self._spool.event(draft)
        self._wake.set()

    def switch(self, model: str, loaded: Loaded | None, phase: Phase, rollout: Rollout) -> None:
        target = self.model(model)
        if loaded is None:
            target.switch(None)
            return
        package = loaded.package
        subject = Subject(model, package.manifest, package.digest, loaded.variant, loaded.baseline, phase, rollout)
        before = target.active
        same = before is not None and before.session is loaded.session
        active = Active(subject, loaded.session, before.turn if before and same else None)
        target.switch(active)

    def watch(self, model: str, candidate: Loaded, share: float, rollout: Rollout) -> Shadow:
        target, package = self.model(model), candidate.package
        assert target.active is not None  # a shadow run is left out where nothing answers
        baseline = candidate.baseline
        subject = Subject(model, package.manifest, package.digest, candidate.variant, baseline, "shadow", rollout)
        shadow = Shadow(
            target.active,
            Active(subject, candidate.session),
            attach=target.watch,
            share=share,
            meter=self._meter,
            allowance=lambda: Allowance(self.may(Step.SHADOW), permille=self._reporter.config.limits.cpu_permille),
            now_ns=self._clock.monotonic_ns,
            uniform=random.random,
        )
        shadow.start()
        return shadow

    def may(self, step: Step) -> bool:
        """Whether the device has room for this just now; an inference needs none."""
        return self._reporter.watch.may(step)

    def room_mb(self) -> float | None:
        limit = self._reporter.config.limits.rss_mb
        return None if limit is None else limit - resident_kb() / 1024

    def transform(self, model: str) -> Transform | None:
        return self._transforms.get(model)

    def _turned(self, turned: Turned) -> None:
        before, after = ("closed", "open") if turned.open else ("open", "closed")
        self._reporter.notices.note(Notice(before, after, f"breaker: {turned.reason}"[:1024], turned.subject))

    def _subjects(self) -> list[Subject]:
        return [m.active.subject for m in self.models() if m.active is not None]

    def _observe(self, sealed: list[tuple[Subject, Window]], rss_mb: float) -> None:
        by_model: dict[str, list[Window]] = {}
        for subject, window in sealed:
            by_model.setdefault(subject.model, []).append(window)
        for model, windows in by_model.items():
            self._installer.observe(Sealed(model, windows, rss_mb))

    def _desire(self, desired: Desired) -> None:
        if desired.rev:  # else nobody has asked, and the application's own choice stands
            logs.follow(desired.config.log_level)
        before, self._followed = self._followed, desired.config
        if before is not None and before != desired.config:
            self._reporter.notices.note(
                Notice(f"config {before.version}", f"config {desired.config.version}", changed(before, desired))
            )
        self._reporter.watch.obey(desired.config)
        self._link.pace(desired.config.download)
        self._installer.desire(self._sideloads.over(desired))

    def _look_for_packages(self) -> None:
        """What was brought by hand since the last look is wanted from now on."""
        offered = self._sideloads.wishes()
        if offered != self._offered:
            self._offered = offered
            self._desire(self._reporter.desired or Desired(rev=0))
        self._sideloads.settle(self._settled)

    def _settled(self, wish: Sideload) -> bool:
        """Whether a package that was brought lies in a slot, or is blocked."""
        state = self._installer.states().get(wish.name)
        held = [slot.digest for slot in (state.a, state.b) if slot is not None] if state else []
        return state is not None and (wish.digest in held or wish.digest in state.blocked)

    def _sample(self) -> None:
        self._sampling.turn(self._reporter.config.samples, room=self.may(Step.SAMPLES))
        for model in self.models():
            model.sampler = self._sampling.look if self._sampling.on else None

    def _resample(self) -> str:
        self._sampling.again()
        return msgspec.json.encode({"on": self._sampling.on, "counted": self._sampling.counted}).decode()

    def _bench(self) -> str:
        from .console import bench  # seldom asked for, and memory is scarce

        found = [bench.bench(self.home, m.name) for m in self.models() if m.active is not None]
        return msgspec.json.encode(found).decode()

    def _collect(self) -> str:
        from .console import collect

        limits = self._reporter.config.limits
        more = {"limits": msgspec.to_builtins(limits), "rss_mb": round(resident_kb() / 1024, 1), "dead": self.dead()}
        more["samples"] = dict(self._sampling.counted)
        return collect.collect(self.home, log=self._tail.text(), more=more)

    def _connected(self) -> Transport:
        if self.identity.alone:
            return NoHub()
        return MqttTransport(
            self.identity,
            self.boot_id,
            clock=self._clock,
            metered=lambda: self._reporter.config.profile == "metered",
        )

    def _birth(self, connection: int, window_s: int) -> bytes:
        desired = self._reporter.desired
        return birth.encode(
            birth.Birth(
                device=self.identity.device,
                boot_id=self.boot_id,
                connection=connection,
                agent=importlib.metadata.version("edgewright"),
                hardware=hardware(),
                runtimes=self._runtimes,
                slots=tuple(slots(self._installer.states())),
                clock=clocks.state(self._clock),
                uptime_ms=self._clock.monotonic_ns() // 1_000_000,
                window_s=window_s,
                unclean=self._spool.state.unclean,
                spool=self._spool.told(),
                desired_rev=desired.rev if desired else 0,
            )
        )


def changed(before: Config, desired: Desired) -> str:
    """What of the configuration is followed from now on, for the operator who asked for it."""
    was, now = msgspec.to_builtins(before), msgspec.to_builtins(desired.config)
    moved = [f"{name} {was[name]} → {now[name]}" for name in now if now[name] != was[name] and name != "version"]
    return f"revision {desired.rev} is followed: {', '.join(moved) or 'as before'}"[:1024]


def hardware() -> birth.Hardware:
    board = Path("/proc/device-tree/model")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return birth.Hardware(
        arch=platform.machine().lower(),
        model=board.read_text(errors="replace").strip("\0\n ") if board.exists() else "",
        cores=os.cpu_count() or 0,
        ram_mb=pages >> 20,
    )


def slots(states: dict[str, ModelState]) -> list[birth.Slot]:
    """Every filled slot of every model, as a birth tells it."""
    found = []
    for name, state in states.items():
        on_trial = state.record.state is State.PROBATION
        staging = state.record.state in UNDER_WAY - {State.FETCH}
        for side, slot in (("a", state.a), ("b", state.b)):
            if slot is None:
                continue
            kind: Literal["active", "previous", "staged", "probation"]
            if side == state.active:
                kind = "probation" if on_trial else "active"
            else:
                kind = "staged" if staging and slot.digest == state.record.digest else "previous"
            found.append(
                birth.Slot(model=name, digest=slot.digest, version=slot.version, variant=slot.variant, state=kind)
            )
    return found


def _only_one(home: Path) -> int:
    """A lock that this process holds while it lives. Raises RequestError when another has it."""
    descriptor = os.open(home / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RequestError(f"another agent runs in {home}; stop it first, or give each its own home") from None
    return descriptor
