"""The telemetry thread: hears the hub, watches the device, counts, seals windows (`windows`), and offers them
(`offers`).

Order: messages → limits → the window if it is due → rows → offers. Everything that the link receives is handled on this
thread, so the spool's rules need no further ordering. It keeps the priority of the process: a thread that holds the
interpreter while others of the machine go first would make every inference wait for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple

from edgewright_contracts import desired as down
from edgewright_contracts.desired import Command, Config, Desired
from edgewright_contracts.errors import ContractError
from edgewright_contracts.report import Window
from edgewright_contracts.topics import Kind

from ..clock import Clock
from ..disk import Disk
from ..limits.consumption import Consumption
from ..limits.device import Device
from ..limits.governor import Step
from ..limits.watch import Watch
from ..telemetry.meter import Meter
from ..telemetry.notices import Notices
from ..telemetry.rows import Subject
from ..unforeseen import Unforeseen
from .mqtt import Transport
from .offers import Offers
from .spool import Spool
from .windows import Windows
from .wishes import Wishes

LONGEST_WAIT_S: Final = 30.0
COMMANDS_KEPT: Final = 64
AGAIN_S: Final = 5.0  # before a message that the disk did not take is handled again

log = logging.getLogger(__name__)


class Message(NamedTuple):
    kind: Kind | None  # None: a connection was made
    payload: bytes


class Reporter:
    """`subjects` are the packages that answer now; `observe` hears what was sealed; `born` gives a birth's bytes."""

    def __init__(
        self,
        home: Path,
        *,
        disk: Disk,
        clock: Clock,
        meter: Meter,
        spool: Spool,
        transport: Transport,
        wake: threading.Event,
        boot_id: str,
        subjects: Callable[[], list[Subject]],
        hurried: Callable[[], bool],
        observe: Callable[[list[tuple[Subject, Window]], float], None],
        desire: Callable[[Desired], None],
        born: Callable[[int, int], bytes],
        https: Callable[[], tuple[int, int]],
        unforeseen: Unforeseen,
        errand: Callable[[Command], None] = lambda command: log.warning("command %s has no thread here", command.verb),
    ) -> None:
        self._clock, self._meter, self._wake = clock, meter, wake
        self._unforeseen, self._errand = unforeseen, errand
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._kept: list[Message] = []  # that the disk did not take
        self._commands: list[str] = []
        self._stopping = threading.Event()
        self._wishes = Wishes(home / "desired.json", disk, clock, boot_id, desire=desire, emit=spool.event)
        device = Device()
        self.notices = Notices(spool.event, clock, boot_id, wake)
        self.watch = Watch(
            home / "day.json", disk=disk, clock=clock, meter=meter, device=device, notices=self.notices,
            consumption=Consumption(disk, transport, https, device),
        )  # fmt: skip
        self._offers = Offers(
            clock=clock, spool=spool, transport=transport, boot_id=boot_id,
            born=lambda connection: born(connection, ceil(self.windows.promise_s / 2)),
            reports=lambda: self.watch.may(Step.REPORTS) or self.windows.parting, compress=lambda: self.config.compress,
        )  # fmt: skip
        self.windows = Windows(
            clock=clock, meter=meter, spool=spool, watch=self.watch, boot_id=boot_id, subjects=subjects,
            hurried=hurried, observe=observe, asked=lambda: self.asked, terms=self._offers.terms,
        )  # fmt: skip

    @property
    def desired(self) -> Desired | None:
        return self._wishes.desired

    @property
    def asked(self) -> Config:
        """What the hub asks for."""
        return self.desired.config if self.desired else Config()

    @property
    def config(self) -> Config:
        """What is done of it, within what the device has left."""
        return self.watch.config(self.asked)

    # What the link calls, on its own thread.

    def connected(self, connection: int) -> None:
        self._offers.connection = connection
        self._post(Message(None, b""))

    def disconnected(self, reason: str) -> None:
        log.warning("the hub is gone (%s); reports wait on the disk", reason)

    def received(self, kind: Kind, payload: bytes) -> None:
        self._post(Message(kind, payload))

    def run(self) -> None:
        """Until `stop`; then everything counted is sealed."""
        while not self._stopping.is_set():
            try:
                self._wake.wait(self._wait_s())
                self._wake.clear()
                self.turn()
            except Exception as error:  # telemetry must not end because one message or one disk write went wrong
                self._unforeseen.tell("telemetry", error)
                self._stopping.wait(1)
        try:
            self.finish()
        except Exception as error:  # the spool tells the next birth that this end was not clean
            self._unforeseen.tell("telemetry", error)

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def turn(self) -> None:
        """One round."""
        self._receive()
        self.watch.turn(self.asked)
        self.windows.turn()
        self._meter.drain()
        self._offers.turn()

    def finish(self) -> None:
        """Seal everything counted, and leave nothing open: when this thread ends, or never began."""
        self.windows.close()
        self._offers.offer()

    def _wait_s(self) -> float:
        due = min(self.windows.due_s, self._offers.due_s()) - self._clock.monotonic_ns() / 1e9
        return max(0.0, min(AGAIN_S if self._kept else LONGEST_WAIT_S, due))

    def _post(self, message: Message) -> None:
        self._inbox.put(message)
        self._wake.set()

    def _receive(self) -> None:
        """Handle what came, and again what the disk did not take. An ack is not kept: the hub says it again."""
        messages, self._kept = self._kept, []
        while not self._inbox.empty():
            messages.append(self._inbox.get())
        for message in messages:
            try:
                self._handle(message)
            except OSError as error:
                log.error("the disk does not take what the hub says (%s): %s", message.kind, error)  # noqa: TRY400
                if message.kind in ("desired", "command"):
                    self._kept = [*self._kept, message][-COMMANDS_KEPT:]

    def _handle(self, message: Message) -> None:
        try:
            if message.kind is None:
                self._offers.greet()
            elif message.kind == "ack":
                self._offers.acknowledged(down.decode_ack(message.payload))
            elif message.kind == "desired":
                self._wishes.hear(message.payload)
            elif message.kind == "command":
                self._command(down.decode_command(message.payload))
        except ContractError as error:
            log.warning("ignored a message of the hub: %s", error)

    def _command(self, command: Command) -> None:
        if command.id in self._commands:
            return
        wall = self._clock.wall_ms()
        if wall is not None and self._clock.synced() and wall > command.expires_at:  # another clock may just be wrong
            log.warning("command %s is ignored: its time is over", command.verb)
            return
        if command.verb == "report_now":
            self.windows.seal()
        elif command.verb == "new_spool":
            self._offers.renumber(command.argument)
        else:
            self._errand(command)
        self._commands = [*self._commands, command.id][-COMMANDS_KEPT:]
