"""The last lines that the agent logged: in memory, and on the disk where a later boot can read why this one ended.

Bound: 200 lines of 400 characters. Written at most every ten minutes and only behind a warning: 12 MB a day at worst,
nothing on a good one.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Final

from ..clock import Clock
from ..disk import Disk, atomic_write

LINES: Final = 200
LINE: Final = 400
WRITE_S: Final = 600.0
FILE: Final = "log.tail"


class LogTail(logging.Handler):
    def __init__(self, disk: Disk, home: Path, clock: Clock) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._disk, self._path, self._clock = disk, home / FILE, clock
        self._lines: deque[str] = deque(maxlen=LINES)
        self._warned = False
        self._written_s = -WRITE_S

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).splitlines()
        except Exception:  # a message that does not fit its arguments must not end the thread that logs
            self.handleError(record)
            return
        self._lines.extend(line[:LINE] for line in lines)
        self._warned = self._warned or record.levelno >= logging.WARNING

    def text(self) -> str:
        return "\n".join(list(self._lines))

    def keep(self, *, last: bool = False) -> None:
        """Write it, if there is a warning to be kept and the last write was long ago. Raises OSError."""
        now_s = self._clock.monotonic_ns() / 1e9
        if self._warned and (last or now_s - self._written_s >= WRITE_S):
            self._written_s = now_s  # a disk that does not take it is not asked again at once
            atomic_write(self._disk, self._path, self.text().encode())
            self._warned = False
