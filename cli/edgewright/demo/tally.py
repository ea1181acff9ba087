"""An independent count of what a device did, kept by the driver that called `predict`, outside agent and hub.

A memory-mapped file: it survives a SIGKILL of the process that writes it, because the pages belong to the kernel.
Little-endian int64: [0] entries, [1] failures, [2] labels, [3..7] spare, then the entries: the monotonic time of each
prediction in milliseconds, and, negative, that of each start of the driver. So a reader can tell which predictions fell
into a window that a kill lost.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

_HEADER: Final = 8
CAPACITY: Final = 1 << 20  # entries; 8 MB, sparse until used

Times = npt.NDArray[np.int64]


class Tally:
    """One writer; any number of readers by `read`."""

    def __init__(self, path: Path, *, mono_ms: int) -> None:
        with path.open("a+b") as file:
            file.truncate(8 * (_HEADER + CAPACITY))
            self._map = mmap.mmap(file.fileno(), 0)
        self._cells: Times = np.frombuffer(self._map, np.int64)
        self._append(-mono_ms)

    def predicted(self, mono_ms: int) -> None:
        self._append(mono_ms)

    def failed(self) -> None:
        self._cells[1] += 1

    def labelled(self) -> None:
        self._cells[2] += 1

    def _append(self, entry: int) -> None:
        n = int(self._cells[0])
        if n >= CAPACITY:
            raise OverflowError(f"the tally holds {CAPACITY} entries; start a new one")
        self._cells[_HEADER + n] = entry
        self._cells[0] = n + 1


@dataclass(frozen=True, slots=True)
class Reading:
    entries: Times
    failures: int
    labels: int

    @property
    def predictions(self) -> int:
        return int((self.entries > 0).sum())

    def since(self, mono_ms: int) -> int:
        """Predictions from `mono_ms` to the end of the driver that ran then."""
        starts = np.flatnonzero(self.entries < 0)
        later = starts[-self.entries[starts] > mono_ms]
        end = int(later[0]) if later.size else self.entries.size
        return int((self.entries[:end] >= mono_ms).sum())


def read(path: Path) -> Reading:
    """As it stands now."""
    cells = np.fromfile(path, np.int64)
    return Reading(cells[_HEADER : _HEADER + int(cells[0])], int(cells[1]), int(cells[2]))
