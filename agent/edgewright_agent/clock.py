"""Time as the agent sees it: a monotonic clock that always runs, and a wall clock that a device may not have.

A wall clock counts as synced when the kernel says that something disciplines it (adjtimex, as NTP daemons and chrony
set it), as free when it shows a plausible date, and as absent before that: small devices start in 1970.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Final, Protocol

from edgewright_contracts import report

PLAUSIBLE_MS: Final = 1_735_689_600_000  # 2025-01-01: no clock of this software was ever right before it

SYNC_S: Final = 10.0  # how old the kernel's word may be

_UNSYNCHRONISED: Final = 0x40  # STA_UNSYNC of struct timex
_STATUS_OFFSET: Final = 40  # bytes before `status` in struct timex on 64-bit Linux
_TIMESYNCD: Final = Path("/run/systemd/timesync/synchronized")


class Clock(Protocol):
    def monotonic_ns(self) -> int: ...

    def wall_ms(self) -> int | None:
        """UTC milliseconds, None while the device has no idea."""

    def synced(self) -> bool: ...


class SystemClock:
    """`synced` asks the kernel every 10 s at most: it is looked at with every round of the telemetry."""

    monotonic_ns = staticmethod(time.monotonic_ns)

    def __init__(self) -> None:
        self._asked_s = -SYNC_S
        self._synced = False

    def wall_ms(self) -> int | None:
        now = time.time_ns() // 1_000_000
        return now if now >= PLAUSIBLE_MS else None

    def synced(self) -> bool:
        now = time.monotonic()
        if now - self._asked_s >= SYNC_S:
            self._asked_s, self._synced = now, _timesyncd() or _disciplined()
        return self._synced and self.wall_ms() is not None


def state(clock: Clock) -> report.Clock:
    if clock.wall_ms() is None:
        return "unknown"
    return "synced" if clock.synced() else "free"


def _timesyncd() -> bool:
    try:
        return _TIMESYNCD.exists()
    except OSError:  # a folder that this user may not look into
        return False


def _disciplined() -> bool:
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return False
    timex = ctypes.create_string_buffer(512)  # larger than any libc's struct; all zero: read, change nothing
    if adjtimex(timex) < 0:
        return False
    status = int.from_bytes(timex.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little")
    return not status & _UNSYNCHRONISED
