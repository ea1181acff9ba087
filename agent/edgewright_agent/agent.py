"""The agent in an application's process: `with Agent(home) as agent: agent.model("digits").predict({"image": x})`.

Four threads of its own: telemetry (`delivery.reporter`), installing (`updating.install`), errands (`console.errands`)
and the link's. An inference waits for none of them. Leaving the `with` block seals the open window; a kill loses it,
and the next birth says so.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import random
import re
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from edgewright_contracts import event
from edgewright_contracts.errors import RequestError
from edgewright_contracts.report import Window
from edgewright_runtime.golden import Transform
from edgewright_runtime.runtime import available, probe

from . import clock as clocks
from . import introduction, tls
from .clock import Clock, SystemClock
from .console import status
from .console.errands import Errands
from .console.logtail import LogTail
from .console.verbs import verbs
from .delivery.mqtt import MqttTransport, Transport
from .delivery.nohub import NoHub
from .delivery.reporter import Reporter
from .delivery.spool import Spool
from .disk import Disk, RealDisk
from .following import Following
from .hosting.live import Live
from .hosting.lock import HomeLock
from .inference.model import Fallback, Model
from .limits.governor import Step
from .models import Models
from .renewal import Renewal
from .samples.sampling import Redact, Sampling
from .samples.sending import Sender
from .telemetry.meter import Meter
from .telemetry.notices import Notice
from .telemetry.ring import Outcome
from .telemetry.rows import Subject
from .unforeseen import Unforeseen
from .updating.fetch import Link
from .updating.install import Installer, Sealed
from .updating.machine import restarted
from .updating.pace import Ration
from .updating.sideload import Sideloads
from .updating.slots import ModelState

NAME: Final = re.compile(r"\A[ -~]{1,64}\Z")  # of an outcome: codec.Label
JOIN_S: Final = 10.0  # for a thread at the end; a download or self-test under way breaks off sooner


class Agent:
    """`home` must be enrolled, or hold a package that was brought by hand (`edgewright agent sideload`): without a hub,
    what is counted stays on the device. `runtimes` are those to use, best first; None takes all that work here.

    The other arguments replace a seam of the outside world. All methods may be called from any thread; in a child that
    this process forks nothing is counted. Raises RequestError when `home` is neither or has its agent already,
    ContractError and Unavailable when it is damaged.
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
        self._lock = HomeLock(self.home)
        try:
            self._build(runtimes, transport)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Agent:
        logging.getLogger(__package__).addHandler(self._tail)
        self._spool.begin(self._reporter.windows.opened())
        try:
            self._installer.boot(unclean=self._spool.after_crash, cut=restarted(self._disk, self.home))
            self._following.look()
            self._following.anew()
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
        self._lock.release()

    def model(self, name: str, *, transform: Transform | None = None, fallback: Fallback | None = None) -> Model:
        """The model of this name; it may have no package yet, and then `predict` raises Unavailable.

        `transform` is what the application itself does to raw samples [n, ...] before it predicts, for packages of
        `preprocess: host`: such a package is only installed when it makes the package's own tensors of the package's
        own samples. It is called on a thread of the agent, with one sample at a time.

        `fallback` answers where `predict` would raise Unavailable (no package, a run that failed, a model that failed
        again and again): outputs by name, or a function of the inputs that gives them. Such a prediction says so.
        """
        if transform is not None:
            self._models.transforms[name] = transform
            self._installer.registered(name)
        found = self._models.model(name)
        if fallback is not None:
            found.fallback = fallback
        return found

    def models(self) -> list[Model]:
        """Those that the application or the hub has named."""
        return self._models.all()

    def label(self, identifier: int, truth: int | str) -> None:
        """The true class of an earlier prediction, as index or label: counted as outcome `correct`. Raises RequestError
        for what is neither."""
        known = truth if isinstance(truth, str) else _whole(truth, "a class")
        self._meter.outcome(Outcome(_whole(identifier, "an id"), "correct", known))

    def outcome(self, identifier: int, name: str, happened: bool) -> None:
        """Whether something named came out of an earlier prediction, as ("pick_ok", True)."""
        if not NAME.match(name) or name == "correct":
            raise RequestError(
                f"expected an outcome name of 1 to 64 ASCII characters other than 'correct', got {name[:80]!r}"
            )
        self._meter.outcome(Outcome(_whole(identifier, "an id"), name, int(bool(happened))))

    def redact(self, change: Redact) -> None:
        """`change(model, inputs)` sees every sampled input before it is kept, and gives what may leave this device, by
        name and of any shape, or None for nothing. It is called on a thread of the agent."""
        self._sampling.redact = change

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
            window_s=self._reporter.windows.window_s,
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

    # How the parts hang together. None of them does or writes anything before `__enter__`.

    def _build(self, runtimes: Sequence[str] | None, transport: Transport | None) -> None:
        self._runtimes = available() if runtimes is None else {name: probe(name) for name in runtimes}
        self._wake = threading.Event()
        self._meter = Meter(self._wake)
        self._transport = transport or self._connected()
        self._spool = Spool(self._disk, self.home / "spool", new_id=lambda: secrets.token_hex(8))
        hub = self.identity.hub
        unforeseen = Unforeseen(self._emit, self._clock, self.boot_id)
        ration = Ration(self._disk, self.home / "download.json", self._clock)
        connections = tls.connections(self.identity, self._clock, hub.repo)
        link = self._link = Link(connections, clock=self._clock, ration=ration)
        self._sender: Sender | None = None
        if hub.api:
            self._sender = Sender(tls.connections(self.identity, self._clock, hub.api, named=True), hub.api, hub.device)
        self._reporter = Reporter(
            self.home,
            disk=self._disk,
            clock=self._clock,
            meter=self._meter,
            spool=self._spool,
            transport=self._transport,
            wake=self._wake,
            boot_id=self.boot_id,
            subjects=lambda: self._models.subjects(),
            hurried=lambda: self._installer.hurried(),
            observe=self._observe,
            desire=lambda desired: self._following.follow(desired),
            born=self._born,
            https=self._https,
            unforeseen=unforeseen,
            errand=lambda command: self._errands.ask(command),
        )
        self._models = Models(
            meter=self._meter,
            reporter=self._reporter,
            transport=self._transport,
            clock=self._clock,
            emit=self._emit,
        )
        self._sideloads = Sideloads(self._disk, self.identity, link, self._clock, tuple(self._runtimes))
        self._installer = Installer(
            self._disk,
            self.home / "models",
            host=self._models,
            trust=self._sideloads,
            link=link,
            repo=hub.repo,
            clock=self._clock,
            boot_id=self.boot_id,
            runtimes=tuple(self._runtimes),
            uniform=random.random,
            unforeseen=unforeseen,
        )
        self._following = Following(self._reporter, link, self._installer, self._sideloads)
        self._renewal = Renewal(
            self.identity,
            self._clock,
            lambda after, reason: self._reporter.notices.note(Notice("certificate", after, reason)),
            share=random.random(),
        )
        self._sampling = Sampling(
            self._disk,
            self.home,
            self._clock,
            lambda: secrets.token_hex(8),
            self._sender,
            lost=lambda: self._meter.shed("samples"),
        )
        self._tail = LogTail(self._disk, self.home, self._clock)
        self._errands = Errands(
            self._emit,
            self._clock,
            self.boot_id,
            unforeseen,
            rounds=(self._following.look, self._sample, self._tail.keep),
            verbs=verbs(
                self.home,
                answering=lambda: [m.name for m in self.models() if m.active is not None],
                limits=lambda: self._reporter.config.limits,
                dead=self.dead,
                sampling=self._sampling,
                tail=self._tail,
            ),
        )
        self._threads = [
            threading.Thread(target=self._reporter.run, name="edgewright-telemetry", daemon=True),
            threading.Thread(target=self._installer.run, name="edgewright-install", daemon=True),
            threading.Thread(target=self._errands.run, name="edgewright-errands", daemon=True),
        ]

    def _connected(self) -> Transport:
        if self.identity.alone:
            return NoHub()
        return MqttTransport(
            self.identity,
            self.boot_id,
            clock=self._clock,
            metered=lambda: self._reporter.config.profile == "metered",
        )

    def _https(self) -> tuple[int, int]:
        sent, received = self._sender.traffic if self._sender else (0, 0)
        return self._link.sent + sent, self._link.received + received

    def _emit(self, draft: event.Event) -> None:
        self._spool.event(draft)
        self._wake.set()

    def _born(self, connection: int, window_s: int) -> bytes:
        desired = self._reporter.desired
        return introduction.born(
            device=self.identity.device,
            boot_id=self.boot_id,
            connection=connection,
            runtimes=self._runtimes,
            states=self._installer.states(),
            spool=self._spool,
            clock=self._clock,
            window_s=window_s,
            desired_rev=desired.rev if desired else 0,
        )

    def _observe(self, sealed: list[tuple[Subject, Window]], rss_mb: float) -> None:
        by_model: dict[str, list[Window]] = {}
        for subject, window in sealed:
            by_model.setdefault(subject.model, []).append(window)
        for model, windows in by_model.items():
            self._installer.observe(Sealed(model, windows, rss_mb))

    def _sample(self) -> None:
        self._sampling.turn(self._reporter.config.samples, room=self._models.may(Step.SAMPLES))
        for model in self.models():
            model.sampler = self._sampling.look if self._sampling.on else None


def _whole(number: int, what: str) -> int:
    """Of numpy's integers, too. What is none must not reach the telemetry thread, which has others' labels in hand."""
    try:
        return operator.index(number)
    except TypeError:
        raise RequestError(f"expected {what}, a whole number, got {repr(number)[:80]}") from None
