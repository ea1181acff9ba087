"""The telemetry thread: drains the meter, seals windows, keeps them in the spool, and offers them to the hub.

Order: drain → seal (durable) → number (durable) → publish. A window ends on a multiple of its length by the wall clock
while that is synced, else a length after it began. Everything that the link receives is handled on this thread, so the
spool's rules need no further ordering. Whatever is unacknowledged is offered again after a reconnect, and without one
after `REOFFER_S`, within which a hub acknowledges. A birth is said again until an acknowledgement names it: only then
is the hub known to have heard of the boots that ended unclean.
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
from edgewright_contracts import report
from edgewright_contracts.birth import Unclean
from edgewright_contracts.desired import REOFFER_S, Ack, Command, Config, Desired
from edgewright_contracts.errors import ContractError
from edgewright_contracts.event import Event
from edgewright_contracts.report import Window
from edgewright_contracts.topics import Kind

from .. import clock as clocks
from ..clock import Clock
from ..disk import Disk
from ..limits.device import Device
from ..limits.governor import Step
from ..limits.watch import Watch
from ..telemetry.consumption import Consumption
from ..telemetry.counts import Clocks
from ..telemetry.meter import Meter
from ..telemetry.notices import Notices
from ..telemetry.rows import Subject
from ..unforeseen import Unforeseen
from .mqtt import Transport
from .span import full, length_s, longest_s
from .spool import Spool, Terms
from .wishes import Wishes

LONGEST_WAIT_S: Final = 30.0
COMMANDS_KEPT: Final = 64
AGAIN_S: Final = 5.0  # before a message that the disk did not take is handled again
BIRTH_S: Final = (5.0, 60.0)  # the first and the longest wait before a birth is said again

log = logging.getLogger(__name__)


class Message(NamedTuple):
    kind: Kind | None  # None: a connection was made
    payload: bytes


class Said(NamedTuple):
    """A birth that the hub has not proved to have; `boots` are the unclean ones that it told of."""

    connection: int
    boots: tuple[str, ...]
    again_s: float  # when to say it again
    wait_s: float


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
        received: Callable[[], int],
        unforeseen: Unforeseen,
        errand: Callable[[Command], None] = lambda command: log.warning("command %s has no thread here", command.verb),
    ) -> None:
        self._clock = clock
        self._meter, self._spool, self._transport, self._wake = meter, spool, transport, wake
        self._boot_id, self._subjects, self._hurried = boot_id, subjects, hurried
        self._observe, self._born = observe, born
        self._unforeseen, self._errand = unforeseen, errand
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._pending: list[Window] = []  # sealed, but the disk did not take them yet
        self._unfit = 0  # windows dropped, which the spool has not counted yet
        self._offered: dict[int, float] = {}
        self._commands: list[str] = []
        self._kept: list[Message] = []  # that the disk did not take
        self._said: Said | None = None
        self._connection = 0
        self._trouble: tuple[str, float] | None = None  # why the disk takes nothing, and since when
        device = Device()
        self.notices = Notices(spool.event, clock, boot_id, wake)
        self.watch = Watch(
            home / "day.json", disk=disk, clock=clock, meter=meter, device=device, notices=self.notices,
            consumption=Consumption(disk, transport, received, device),
        )  # fmt: skip
        self._more = 0  # lengths that the open window goes on beyond its first, because it is not full
        self._wishes = Wishes(home / "desired.json", disk, clock, boot_id, desire=desire, emit=spool.event)
        self._since_ms, self._since_wall = clock.monotonic_ns() // 1_000_000, clock.wall_ms()

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

    @property
    def window_s(self) -> float:
        config = self.config
        return min(config.window_s, config.rollout_window_s) if self._hurried() else config.window_s

    @property
    def longest_s(self) -> float:
        return self.window_s if self._hurried() else longest_s(self.config)

    # What the link calls, on its own thread.

    def connected(self, connection: int) -> None:
        self._connection = connection
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
        """One round: messages, rows, the window if it is due, offers."""
        self._receive()
        self.watch.turn(self.asked)
        if self._now_s() >= self._due_s():
            if self._full():
                self.seal()
            else:
                self._more += 1
        self._meter.drain()
        if self._said is not None and self._transport.online and self._now_s() >= self._said.again_s:
            self._say_birth(min(2 * self._said.wait_s, BIRTH_S[1]))
        self._tell_trouble()
        self._offer()

    def seal(self) -> None:
        """End the open window now and begin the next: an inference is counted in the one that it ended in."""
        now_ms, wall = self._clock.monotonic_ns() // 1_000_000, self._clock.wall_ms()
        self._meter.drain(until_ns=now_ms * 1_000_000)
        span_ms = now_ms - self._since_ms
        usage, rss_mb = self.watch.since_last(self.asked, hurried=self._hurried())
        sealed = self._meter.take(
            self._subjects(),
            Clocks(
                boot_id=self._boot_id,
                start_ms=self._since_ms,
                end_ms=now_ms,
                wall_start_ms=None if wall is None else max(0, wall - span_ms),
                clock=clocks.state(self._clock),
                next_due_s=ceil(2 * self.longest_s),
            ),
            usage,
        )
        self._since_ms, self._since_wall, self._more = now_ms, wall, 0
        self._pending = _fewer([*self._pending, *(w for _, w in sealed)]) if self._pending else [w for _, w in sealed]
        try:
            terms = self._terms() if self._transport.online and not self._reports_wait() else None
            try:
                self._spool.seal(self._pending, self.opened(), terms)
            except ContractError:
                self._drop_unfit()
                self._spool.seal(self._pending, self.opened(), terms)
            self._pending = []
            if self._unfit:
                self._spool.lost(self._unfit)
                self._unfit = 0
        except OSError as error:
            log.error("the disk does not take the window; it stays in memory: %s", error)  # noqa: TRY400
        self._observe(sealed, rss_mb)

    def _drop_unfit(self) -> None:
        """A window that no contract allows would stop all that come after it."""
        fit = []
        for window in self._pending:
            try:
                report.encode_window(window)
                fit.append(window)
            except ContractError as error:
                log.error("a window of %d inferences cannot be reported and is dropped: %s", window.n, error)  # noqa: TRY400
                self._unfit += window.span
        self._pending = fit

    def opened(self) -> Unclean:
        return Unclean(boot_id=self._boot_id, open_since_mono_ms=self._since_ms)

    def finish(self) -> None:
        """Seal everything counted, and leave nothing open: when this thread ends, or never began."""
        self._meter.drain()
        self.watch.close(self.asked)
        self.seal()
        if not self._pending:
            self._spool.close()
        self._offer()

    def _due_s(self) -> float:
        synced = self._clock.synced() if self._since_wall is not None else False
        return (
            self._since_ms / 1000
            + self._more * self.window_s
            + length_s(self._since_wall if synced else None, self.window_s)
        )

    def _full(self) -> bool:
        if self._hurried() or not self.config.window_rows:
            return True
        self._meter.drain()
        return full(self.config, self._meter.most(), self._now_s() - self._since_ms / 1000)

    def _wait_s(self) -> float:
        due = self._due_s()
        if self._said is not None and self._transport.online:
            due = min(due, self._said.again_s)
        return max(0.0, min(AGAIN_S if self._kept else LONGEST_WAIT_S, due - self._now_s()))

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    def _post(self, message: Message) -> None:
        self._inbox.put(message)
        self._wake.set()

    def _offer(self) -> None:
        if not self._transport.online or self._reports_wait():
            return
        now = self._now_s()
        offers = self._spool.offer(self._terms())
        for offer in offers:
            before = self._offered.get(offer.seq)
            if (before is None or now - before >= REOFFER_S) and self._transport.publish(offer.kind, offer.payload):
                self._offered[offer.seq] = now
        live = {o.seq for o in offers}
        self._offered = {seq: at for seq, at in self._offered.items() if seq in live}

    def _reports_wait(self) -> bool:
        """The day's bytes are used up: windows stay in the spool, where they merge. An event takes all along."""
        state = self._spool.state
        return not self.watch.may(Step.REPORTS) and not any(
            item.kind == "event" for item in (*state.numbered, *state.unnumbered)
        )

    def _terms(self) -> Terms:
        wall = self._clock.wall_ms()
        offset_ms = None if wall is None else wall - self._clock.monotonic_ns() // 1_000_000
        return Terms(self.config.compress, self._boot_id, offset_ms, clocks.state(self._clock))

    def _tell_trouble(self) -> None:
        """A birth can say at once that the disk takes nothing; an event, which needs the disk, says it afterwards."""
        trouble = self._spool.trouble
        if trouble and self._trouble is None:
            self._trouble = (trouble, self._now_s())
            if self._transport.online:
                self._say_birth(BIRTH_S[0])
        elif self._trouble is not None and not trouble:
            why, since_s = self._trouble
            took = (
                f"for {self._now_s() - since_s:.0f} s the disk took nothing ({why}); what was counted waited in memory"
            )
            self._spool.event(
                Event(
                    spool_id="0" * 16,  # given with the number, when it is offered
                    seq=1,
                    boot_id=self._boot_id,
                    mono_ms=self._clock.monotonic_ns() // 1_000_000,
                    wall_ms=self._clock.wall_ms(),
                    before="spool",
                    after="spool",
                    reason=took[:1024],
                    failure="disk",
                )
            )
            self._trouble = None

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
                self._greet()
            elif message.kind == "ack":
                self._acknowledged(down.decode_ack(message.payload))
            elif message.kind == "desired":
                self._wishes.hear(message.payload)
            elif message.kind == "command":
                self._command(down.decode_command(message.payload))
        except ContractError as error:
            log.warning("ignored a message of the hub: %s", error)

    def _greet(self) -> None:
        """A birth at every connection; what is unacknowledged is offered anew behind it."""
        self._offered.clear()
        self._say_birth(BIRTH_S[0])

    def _say_birth(self, wait_s: float) -> None:
        boots = tuple(u.boot_id for u in self._spool.state.unclean)
        self._said = Said(self._connection, boots, self._now_s() + wait_s, wait_s)
        self._transport.publish("birth", self._born(self._connection, ceil(self.longest_s)))

    def _acknowledged(self, ack: Ack) -> None:
        self._spool.ack(ack)
        if self._said is not None and ack.birth:  # an ack that names no birth may be older than this connection
            boot_id, _, connection = ack.birth.partition(".")
            if boot_id == self._boot_id and int(connection) >= self._said.connection:
                self._spool.declared(self._said.boots)
                if self._said.wait_s > BIRTH_S[0]:  # the first was not heard, nor what was offered behind it
                    self._offered.clear()
                self._said = None

    def _command(self, command: Command) -> None:
        wall = self._clock.wall_ms()
        if command.id in self._commands or (wall is not None and wall > command.expires_at):
            return
        if command.verb == "report_now":
            self.seal()
        elif command.verb == "new_spool":
            self._spool.renumber(command.argument)
            self._offered.clear()
            self._greet()
        else:
            self._errand(command)
        self._commands = [*self._commands, command.id][-COMMANDS_KEPT:]


def _fewer(windows: list[Window]) -> list[Window]:
    """Windows of equal keys merged: what waits for a disk stays bounded."""
    merged: dict[tuple[str, ...], Window] = {}
    apart = []
    for w in windows:
        try:
            merged[w.key] = report.merge(merged[w.key], w) if w.key in merged else w
        except ContractError as error:  # such as a sum beyond its bound
            log.warning("windows that cannot be merged: %s", error)
            apart.append(w)
    return [*merged.values(), *apart]
