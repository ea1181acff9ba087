"""Errands: the thread for what nobody waits for. It looks for packages that were brought by hand, keeps the log's tail
and the samples, and does what the hub commands: `bench`, `collect`, `resample`.

Guarantee: nothing here delays an inference, telemetry or an update; what goes wrong is told, and the rest goes on. A
command is answered with one event, whose `log` is at most 20 kB; of commands that wait, more than eight are refused.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Callable, Mapping
from typing import Final

from edgewright_contracts import event as events
from edgewright_contracts.desired import Command
from edgewright_contracts.errors import EdgewrightError

from ..clock import Clock
from ..draft import draft
from ..unforeseen import Unforeseen

POLL_S: Final = 2.0
WAITING: Final = 8

log = logging.getLogger(__name__)


class Errands:
    """`rounds` are called one after another, every two seconds; `verbs` answer commands with a text."""

    def __init__(
        self,
        emit: Callable[[events.Event], None],
        clock: Clock,
        boot_id: str,
        unforeseen: Unforeseen,
        rounds: tuple[Callable[[], None], ...],
        verbs: Mapping[str, Callable[[], str]],
    ) -> None:
        """`emit` spools an event, and may raise OSError."""
        self._emit, self._clock, self._boot_id = emit, clock, boot_id
        self._unforeseen, self._rounds, self._verbs = unforeseen, rounds, verbs
        self._commands: queue.Queue[Command | None] = queue.Queue(WAITING)
        self._stopping = False

    def ask(self, command: Command) -> None:
        """From any thread; waits for nothing."""
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            log.warning("command %s is refused: %d others wait", command.verb, WAITING)

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopping:
            try:
                command = self._commands.get(timeout=POLL_S)
            except queue.Empty:
                command = None
            if command is not None:
                self._obey(command)
            elif not self._stopping:
                self.turn()

    def turn(self) -> None:
        for one in self._rounds:
            try:
                one()
            except Exception as error:  # the next round may do better, and the others must not wait for this one
                self._unforeseen.tell("errands", error)

    def stop(self) -> None:
        self._stopping = True
        with contextlib.suppress(queue.Full):  # then the thread is awake anyway
            self._commands.put_nowait(None)

    def _obey(self, command: Command) -> None:
        verb = command.verb
        try:
            text, reason = self._verbs[verb](), f"answer to command {command.id}"
        except EdgewrightError as error:
            text, reason = "", f"command {command.id} failed: {error}"
        except Exception as error:
            self._unforeseen.tell("errands", error)
            text, reason = "", f"command {command.id} went wrong: {type(error).__name__}: {error}"
        try:
            self._emit(
                draft(
                    self._clock,
                    self._boot_id,
                    before=verb,
                    after=verb,
                    reason=reason,
                    log=text[: events.LOG_TAIL_BYTES],
                )
            )
        except OSError as full:
            log.error("the disk does not take the answer to %s: %s", verb, full)  # noqa: TRY400
