"""The thread that speaks for the process: it feeds systemd's watchdog, and answers whoever asks how the agent is.

Order: READY once all the agent's threads run; then WATCHDOG three times in each interval that systemd asks for, as long
as none of them has ended; a dead thread stops the feeding, so systemd starts the agent anew. STATUS tells the link.
An inference in the application's own process needs none of this.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from . import live, notify
from .live import Live

STARTING_S: Final = 0.2  # between looks until the agent runs
IDLE_S: Final = 30.0

log = logging.getLogger(__name__)


class Subject(Protocol):
    def dead(self) -> list[str]: ...
    def live(self) -> Live: ...


class Presence:
    def __init__(self, agent: Subject, home: Path, environment: Mapping[str, str]) -> None:
        self._agent, self._home, self._environment = agent, home, environment
        limit = notify.watchdog_s(environment)
        self._every_s = IDLE_S if limit is None else limit / 3
        self._wake, self._waker = socket.socketpair()
        self._ready = False
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="edgewright-presence", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waker.close()
        self._thread.join(5)
        self._wake.close()

    def look(self) -> None:
        """Say what is due."""
        dead = self._agent.dead()
        if not self._ready:
            if dead:
                return  # not started yet
            self._ready = True
            notify.notify("READY=1", self._environment)
        if dead:
            self._say(f"ended, to be started anew: {', '.join(dead)}")
            return
        notify.notify("WATCHDOG=1", self._environment)
        link = self._agent.live().link
        self._say(
            f"connected by {link.way}" if link.online else f"no connection to the hub: {link.trouble or 'none yet'}"
        )

    def _say(self, status: str) -> None:
        if status != self._said:
            self._said = status
            notify.notify("STATUS=" + status.replace("\n", " ")[:200], self._environment)

    def _run(self) -> None:
        try:
            listener = live.listen(self._home)
        except OSError as error:
            log.warning("nobody can ask this agent how it is: %s", error)
            listener = None
        try:
            while self._turn(listener):
                pass
        finally:
            notify.notify("STOPPING=1", self._environment)
            if listener is not None:
                listener.close()
                (self._home / live.NAME).unlink(missing_ok=True)

    def _turn(self, listener: socket.socket | None) -> bool:
        """Wait for a question, the end, or the next time to speak; False at the end."""
        watched = [self._wake] if listener is None else [self._wake, listener]
        asked = select.select(watched, [], [], self._every_s if self._ready else STARTING_S)[0]
        if self._wake in asked:
            return False
        try:
            if listener is not None and listener in asked:
                live.answer(listener, self._agent.live())
            self.look()
        except Exception:  # else the watchdog would end an agent that answers
            log.exception("telling how the agent is went wrong")
        return True
