"""Pace: how fast, and how much in a day, a device may download.

Guarantee: in any t seconds at most `bytes_per_s` · (t + ½) bytes are read, and in one day at most `bytes_per_day` and
what one read brought too much. The day's count survives restarts, kills and clocks: what may be used is written down
before it is used, so a kill can only lose from the ration, never add to it.

A day is a UTC day while the device has a clock; without one, or with one that was set back, it is 24 hours of running.
Cost: a small durable file 16 times a ration, or each 256 KiB; nothing is written while there is no ration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.codec import KIB, Count, decode
from edgewright_contracts.errors import ContractError

from ..clock import Clock
from ..disk import Disk, atomic_write

DAY_S: Final = 86_400
GRANT: Final = (4 * KIB, 256 * KIB)  # least and most of the ration that is written down at once; else a 16th of it
SMALLEST_READ: Final = 64
SHORTEST_S: Final = 0.001  # a wait that no clock rounds away


class Bucket:
    """Tokens for bytes: `rate` of them come in each second, and at most half a second's worth is kept.

    What was received without being asked for (headers) is taken as well, and the debt is waited for.
    """

    def __init__(self, rate: int, now_s: float) -> None:
        self.rate = rate
        self.read = max(SMALLEST_READ, rate // 4)  # bytes at a time: four reads a second do not burst
        self._tokens, self._then_s = float(self.read), now_s

    def wait_s(self, now_s: float) -> float:
        """Until `read` bytes may be read; 0 when they may be read now."""
        self._tokens = min(2.0 * self.read, self._tokens + (now_s - self._then_s) * self.rate)
        self._then_s = now_s
        missing = self.read - self._tokens
        return max(missing / self.rate, SHORTEST_S) if missing > 0 else 0.0

    def take(self, n: int) -> None:
        self._tokens -= n


class Day(msgspec.Struct, frozen=True):
    """download.json. `number` counts days since 1970; None: the device had no clock since this day began."""

    number: Count | None
    used: Count
    ran_s: float  # of this day, with the agent running


class Ration:
    """The day's count, in the file `place`. Of one thread."""

    def __init__(self, disk: Disk, place: Path, clock: Clock) -> None:
        self._disk, self._place, self._clock = disk, place, clock
        self._day: Day | None = None
        self._since_s = 0.0  # when `ran_s` was true
        self._granted = 0  # written down as used, and not used yet

    def left(self, limit: int) -> int:
        """Bytes that may still be downloaded today; some of them are written down as used. Raises OSError."""
        day = self._today()
        if self._granted == 0 and day.used < limit:
            grant = min(max(limit // 16, GRANT[0]), GRANT[1], limit - day.used)
            self._keep(msgspec.structs.replace(day, used=day.used + grant))
            self._granted = grant
        return self._granted

    def take(self, n: int) -> None:
        """`n` bytes came in. What is above the grant is written down with the next one."""
        over = max(0, n - self._granted)
        self._granted -= n - over
        if over:
            day = self._today()
            self._day = msgspec.structs.replace(day, used=day.used + over)

    def settle(self) -> None:
        """Give back what was granted and not used: a download has ended. Raises OSError."""
        if self._granted:
            day = self._today()
            self._keep(msgspec.structs.replace(day, used=day.used - self._granted))
            self._granted = 0

    def next_s(self) -> float:
        """Seconds until another day begins, at the latest."""
        day, wall = self._today(), self._clock.wall_ms()
        running = DAY_S - day.ran_s
        return running if wall is None else min(running, DAY_S - wall / 1000 % DAY_S)

    def _today(self) -> Day:
        now_s, wall = self._clock.monotonic_ns() / 1e9, self._clock.wall_ms()
        number = None if wall is None else wall // 1000 // DAY_S
        if self._day is None:
            self._day, self._since_s = self._read() or Day(number, 0, 0.0), now_s
        day = msgspec.structs.replace(self._day, ran_s=self._day.ran_s + now_s - self._since_s)
        later = number is not None and day.number is not None and number > day.number
        if later or day.ran_s >= DAY_S:
            day = Day(number, self._granted, 0.0)
        elif day.number is None and number is not None:
            day = msgspec.structs.replace(day, number=number)  # a clock that appears begins no new day
        self._day, self._since_s = day, now_s
        return day

    def _keep(self, day: Day) -> None:
        atomic_write(self._disk, self._place, msgspec.json.encode(day))
        self._day = day

    def _read(self) -> Day | None:
        try:
            return decode(Day, self._disk.read(self._place), name=self._place.name, limit=KIB, wire="json")
        except FileNotFoundError:
            return None
        except ContractError:
            return None  # a damaged count limits nothing; the next download writes a good one
