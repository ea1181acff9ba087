"""What the agent has to say that is no step of an update: a breaker that opened, a limit that holds something back.

Guarantee: `note` may be called on the thread of an inference; it writes nothing. The telemetry thread spools what was
noted, of each kind once in `TELL_S`: whatever flaps must not use up the link or the flash. What the disk does not take
is tried again; of more than `WAITING`, the oldest are lost.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from edgewright_contracts import event as events

from ..clock import Clock
from ..draft import draft
from .rows import Subject

TELL_S: Final = 600.0
WAITING: Final = 64

log = logging.getLogger(__name__)


class Notice(NamedTuple):
    """`before` and `after` as an event has them, at most 32 characters."""

    before: str
    after: str
    reason: str
    subject: Subject | None = None


class Notices:
    def __init__(self, emit: Callable[[events.Event], None], clock: Clock, boot_id: str, wake: threading.Event) -> None:
        """`emit` spools an event, and may raise OSError."""
        self._emit, self._clock, self._boot_id, self._wake = emit, clock, boot_id, wake
        self._waiting: deque[Notice] = deque(maxlen=WAITING)
        self._told: dict[tuple[str, str, str], float] = {}

    def note(self, notice: Notice) -> None:
        """From any thread; waits for nothing."""
        self._waiting.append(notice)
        self._wake.set()

    def spool(self) -> None:
        """Of the telemetry thread."""
        while self._waiting:
            notice = self._waiting[0]
            subject, now_s = notice.subject, self._clock.monotonic_ns() / 1e9
            kind = (subject.digest if subject else "", notice.before, notice.after)
            if now_s - self._told.get(kind, -TELL_S) >= TELL_S:
                log.warning("%s%s", f"{subject.model}: " if subject else "", notice.reason)
                try:
                    self._emit(self._event(notice))
                except OSError as full:
                    log.error("the disk does not take this event; it is tried again: %s", full)  # noqa: TRY400
                    return
                self._told[kind] = now_s
            if self._waiting and self._waiting[0] is notice:  # else so many came meanwhile that it was pushed out
                self._waiting.popleft()

    def _event(self, notice: Notice) -> events.Event:
        subject = notice.subject
        return draft(
            self._clock,
            self._boot_id,
            model=subject.model if subject else "",
            digest=subject.digest if subject else "",
            variant=subject.variant.id if subject else "",
            rollout=subject.rollout if subject else "",
            before=notice.before,
            after=notice.after,
            reason=notice.reason,
        )
