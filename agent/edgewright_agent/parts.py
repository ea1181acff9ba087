"""How the parts of an agent hang together: which of them know each other, and by what.

Order: what counts and tells before what installs, and errands last; each is made once. None of them does or writes
anything before `Agent.__enter__`.
"""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

from edgewright_contracts import event
from edgewright_contracts.report import Window
from edgewright_runtime.runtime import available, probe

from . import introduction, tls
from .clock import Clock
from .console import status
from .console.errands import Errands
from .console.logtail import LogTail
from .console.verbs import verbs
from .delivery.mqtt import MqttTransport, Transport
from .delivery.nohub import NoHub
from .delivery.reporter import Reporter
from .delivery.spool import Spool
from .disk import Disk
from .following import Following
from .hosting.lock import HomeLock
from .limits.governor import Step
from .models import Models
from .renewal import Renewal
from .samples.sampling import Sampling
from .samples.sending import Sender
from .telemetry.meter import Meter
from .telemetry.notices import Notice
from .telemetry.rows import Subject
from .unforeseen import Unforeseen
from .updating.fetch import Link
from .updating.install import Installer, Sealed
from .updating.pace import Ration
from .updating.sideload import Sideloads


class Parts:
    """Those of one agent, in one home, which they hold alone. Raises as `Agent` does."""

    def __init__(
        self, home: Path, runtimes: Sequence[str] | None, transport: Transport | None, disk: Disk, clock: Clock
    ) -> None:
        self.home, self.boot_id = home, secrets.token_hex(8)
        self.identity = status.of(home)
        self._disk, self._clock = disk, clock
        self._began_ns = clock.monotonic_ns()
        self._lock = HomeLock(home)
        try:
            self._build(runtimes, transport)
        except BaseException:
            self._lock.release()
            raise

    def dead(self) -> list[str]:
        """Threads that ended although the agent was not closed: nothing foreseen does that."""
        link = [self._transport.thread] if isinstance(self._transport, MqttTransport) else []
        return [thread.name for thread in (*self._threads, *link) if not thread.is_alive()]

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
            boot_id=self.boot_id,
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
                answering=lambda: [m.name for m in self._models.all() if m.active is not None],
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
        for model in self._models.all():
            model.sampler = self._sampling.look if self._sampling.on else None
