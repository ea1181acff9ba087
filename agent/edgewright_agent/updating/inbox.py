"""What other threads tell the install thread: what the hub wants, and what was sealed.

Guarantee: a message is kept until it was handled. What the disk refuses is tried again with the next `read`; of two
wishes for one model only the newer is. A bug in a handler loses that message alone, and is told.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from edgewright_contracts.desired import Desired, DesiredModel
from edgewright_contracts.report import Window

from ..unforeseen import Unforeseen

KEPT_N: Final = 1000  # of sealed windows, while a full disk does not take what follows from them


class Wish(NamedTuple):
    """`rev` is of the document that it stands in; `cleared` are digests that may be tried again;
    `held`: nothing shall begin."""

    model: DesiredModel
    cleared: tuple[str, ...]
    rev: int
    held: bool = False


class Registered(NamedTuple):
    """The application has named its preprocessing for this model."""

    model: str


class Cleared(NamedTuple):
    """A person at the device says that this package may be tried again."""

    model: str
    digest: str


class Sealed(NamedTuple):
    """What was sealed together for one model."""

    model: str
    windows: list[Window]
    rss_mb: float


class Inbox:
    """`put` may be called from any thread; all else is the install thread's, on which the handlers run.

    Wishes go before windows.
    """

    def __init__(
        self,
        want: Callable[[Wish], None],
        observed: Callable[[Sealed], None],
        registered: Callable[[Registered], None],
        cleared: Callable[[Cleared], None],
        unforeseen: Unforeseen,
    ) -> None:
        self._want, self._observed, self._registered, self._unforeseen = want, observed, registered, unforeseen
        self._cleared = cleared
        self._queue: queue.SimpleQueue[Desired | Sealed | Registered | Cleared | None] = queue.SimpleQueue()
        self._wishes: dict[str, Wish] = {}
        self._news: dict[str, Registered] = {}
        self._asked: dict[Cleared, None] = {}  # in order
        self._sealed: deque[Sealed] = deque(maxlen=KEPT_N)

    def put(self, message: Desired | Sealed | Registered | Cleared | None) -> None:
        """None only wakes the reader."""
        self._queue.put(message)

    def read_new(self) -> None:
        """`read`, if anything came in."""
        if not self._queue.empty():
            self.read()

    def read(self, wait_s: float = 0.0) -> None:
        """Handle what has come in and what was kept. Raises nothing."""
        try:
            message = self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
            while True:
                if isinstance(message, Desired):
                    self._wishes |= {
                        m.name: Wish(m, message.cleared_digests, message.rev, message.held) for m in message.models
                    }
                elif isinstance(message, Sealed):
                    self._sealed.append(message)
                elif isinstance(message, Registered):
                    self._news[message.model] = message
                elif isinstance(message, Cleared):
                    self._asked[message] = None
                message = self._queue.get_nowait()
        except queue.Empty:
            pass
        for name, wish in list(self._wishes.items()):
            if self.handled(self._want, wish):
                del self._wishes[name]
        for name, news in list(self._news.items()):
            if self.handled(self._registered, news):
                del self._news[name]
        for asked in list(self._asked):
            if self.handled(self._cleared, asked):
                del self._asked[asked]
        while self._sealed and self.handled(self._observed, self._sealed[0]):
            self._sealed.popleft()

    def handled(self, act: Callable[..., None], *given: object) -> bool:
        """False when it shall be tried again: the disk may have room then. A bug would only come again."""
        try:
            act(*given)
        except Exception as error:
            self._unforeseen.tell("install", error)
            return not isinstance(error, OSError)
        return True
