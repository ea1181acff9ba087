"""What was used today: bytes over the link and onto the disk, across restarts and clocks that are wrong.

A day is one of UTC once the clock is believed. Until then, and after a clock went backwards, it is 24 hours of running,
added up over all boots: a device that starts in 1970 every time does not get a new budget with every start, and one
whose clock jumped ahead for a minute gets one too many at most.

Guarantee: what a kill forgets is at most a twentieth of each budget, or half an hour. Cost: at most about 90 writes of
100 bytes a day, and none while no budget is set.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.built import built

from ..disk import Disk, atomic_write

DAY_MS: Final = 86_400_000
DAY_S: Final = 86_400.0
KEEP_S: Final = 1800.0
KEEP_SHARE: Final = 20  # of a budget that is used up since the last write

log = logging.getLogger(__name__)


class Day(msgspec.Struct, frozen=True):
    """`date` counts days since 1970, None before any clock was believed; `run_s` how long the agent ran on it."""

    v: int = 1
    date: int | None = None
    run_s: float = 0.0
    link: int = 0
    written: int = 0

    def left_s(self, wall_ms: int | None) -> float:
        """Until the next one begins, if the clock stays as it is."""
        if wall_ms is not None and self.date == wall_ms // DAY_MS:
            return (DAY_MS - wall_ms % DAY_MS) / 1000
        return max(0.0, DAY_S - self.run_s)


def advance(day: Day, *, run_s: float, wall_ms: int | None, link: int, written: int) -> Day:
    """The day after `run_s` more seconds in which so many bytes were used; a new one begins with nothing used."""
    today = None if wall_ms is None else wall_ms // DAY_MS
    later = today is not None and day.date is not None and today > day.date
    ran = day.run_s + run_s
    if later or (ran >= DAY_S and (today is None or day.date is None or today < day.date)):
        return Day(date=today, link=link, written=written)
    date = today if day.date is None else day.date
    return Day(date=date, run_s=ran, link=day.link + link, written=day.written + written)


class Diary:
    """The day on disk. Of the telemetry thread."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path, self._disk = path, disk
        self.day = self._kept = self._read()
        self._since_keep_s = 0.0

    def add(self, *, run_s: float, wall_ms: int | None, link: int, written: int) -> Day:
        self._since_keep_s += run_s
        self.day = advance(self.day, run_s=run_s, wall_ms=wall_ms, link=link, written=written)
        return self.day

    def keep(self, *, link_budget: int | None, disk_budget: int | None, last: bool = False) -> None:
        """Write the day down when it is time; `last`: the process ends. Raises OSError."""
        if link_budget is None and disk_budget is None:
            return
        day, kept = self.day, self._kept
        turned = day.date != kept.date or day.run_s < kept.run_s
        much = any(
            budget is not None and (now - then) * KEEP_SHARE >= budget
            for now, then, budget in ((day.link, kept.link, link_budget), (day.written, kept.written, disk_budget))
        )
        if (turned or much or last or self._since_keep_s >= KEEP_S) and day != kept:
            atomic_write(self._disk, self._path, msgspec.json.encode(day))
            self._kept, self._since_keep_s = day, 0.0

    def _read(self) -> Day:
        try:
            if self._disk.size(self._path) is None:
                return Day()
            found = msgspec.json.decode(self._disk.read(self._path), type=built(Day))
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("what was used today is not known (%s): counted from now on", error)
            return Day()
        return found if found.v == 1 else Day()
