"""A circuit breaker: a model that fails again and again is left alone for a while, so that callers learn it at once.

    closed     everything runs; `FAILURES` errors in a row open it
    open       everything is refused until the pause is over
    half-open  one call runs as a probe: success closes, an error opens for twice as long

A probe that never returns blocks nothing: the next one may go a pause later. Cost while closed: one look at `failures`
before a run and one behind it. Source: M. Nygard, Release It!, 2nd edition, "Circuit Breaker".
"""

from __future__ import annotations

import threading
from typing import Final

FAILURES: Final = 5
PAUSE_S: Final = (1.0, 60.0)  # the first and the longest


class Breaker:
    """Of one loaded model; all methods from any thread. Times are monotonic, in nanoseconds."""

    def __init__(self) -> None:
        self.failures = 0  # errors in a row; 0 means that nothing need be asked
        self._pause_s = PAUSE_S[0]
        self._retry_ns = 0
        self._probe = False  # one is under way: what fails beside it began before the breaker opened
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        return self.failures >= FAILURES

    def admits(self, now_ns: int) -> bool:
        """Whether a call may run; one that does while the breaker is open is the probe of this pause."""
        with self._lock:
            if not self.open:
                return True
            if now_ns < self._retry_ns:
                return False
            self._retry_ns = now_ns + int(self._pause_s * 1e9)
            self._probe = True
            return True

    def failed(self, now_ns: int) -> bool:
        """A run threw. True when this one opened the breaker."""
        with self._lock:
            was_open = self.open
            self.failures += 1
            if was_open and self._probe:
                self._pause_s = min(2 * self._pause_s, PAUSE_S[1])
            if self.open and (self._probe or not was_open):
                self._retry_ns = now_ns + int(self._pause_s * 1e9)
            self._probe = False
            return self.open and not was_open

    def succeeded(self) -> bool:
        """A run did not throw. True when this one closed the breaker."""
        with self._lock:
            was_open = self.open
            self.failures, self._pause_s, self._probe = 0, PAUSE_S[0], False
            return was_open

    def retry_s(self, now_ns: int) -> float:
        """Seconds until the next probe may go."""
        return max(0.0, (self._retry_ns - now_ns) / 1e9)
