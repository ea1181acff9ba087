"""Exceptions that no step expected.

Guarantee: none of them ends a thread of the agent. Each is logged, and told to the hub once an hour for each kind.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Final

from edgewright_contracts import event as events
from edgewright_contracts.errors import Refused, RequestError, Unavailable

from .clock import Clock
from .draft import draft

TELL_S: Final = 3600.0

log = logging.getLogger(__name__)


def tail(error: Exception) -> str:
    """The traceback that an event carries; "" for what the program foresees."""
    if isinstance(error, Refused | RequestError | Unavailable | OSError):
        return ""
    return "".join(traceback.format_exception(error))[-events.LOG_TAIL_BYTES :]


class Unforeseen:
    """Exceptions outside of every step. `emit` spools an event, and may raise OSError."""

    def __init__(self, emit: Callable[[events.Event], None], clock: Clock, boot_id: str) -> None:
        self._emit, self._clock, self._boot_id = emit, clock, boot_id
        self._told: dict[tuple[str, str], float] = {}

    def tell(self, thread: str, error: Exception) -> None:
        """Called from the thread that goes on behind it."""
        log.error("%s went wrong and goes on: %s", thread, error, exc_info=error if tail(error) else None)
        now, kind = self._clock.monotonic_ns() / 1e9, (thread, type(error).__name__)
        if now - self._told.get(kind, -TELL_S) < TELL_S:
            return
        try:
            self._emit(
                draft(
                    self._clock,
                    self._boot_id,
                    before=thread,
                    after=thread,
                    reason=f"unforeseen: {type(error).__name__}: {error}",
                    failure="disk" if isinstance(error, OSError) else None,
                    log=tail(error),
                )
            )
            self._told[kind] = now
        except OSError as full:  # the likeliest reason of all: the next one is told instead
            log.error("the disk does not take the event either: %s", full)  # noqa: TRY400
