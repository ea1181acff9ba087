"""An independent count of what a device did, kept by the driver that called `predict`, outside agent and hub.

A memory-mapped file: it survives a SIGKILL of the process that writes it, because the pages belong to the kernel. One
entry a prediction, its monotonic time in milliseconds, so that a reader can tell which ones fell into a window that a
kill lost. Little-endian int64: [0] predictions, [1] failures, [2] labels, [3..7] spare, then the times.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

_HEADER: Final = 8
CAPACITY: Final = 1 << 20  # predictions; 8 MB, sparse until used


class Tally:
    """One writer; any number of readers by `read`."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(8 * (_HEADER + CAPACITY))
            self._map = mmap.mmap(file.fileno(), 0)
        self._cells: npt.NDArray[np.int64] = np.frombuffer(self._map, np.int64)

    def predicted(self, mono_ms: int) -> None:
        n = int(self._cells[0])
        if n >= CAPACITY:
            raise OverflowError(f"the tally holds {CAPACITY} predictions; start a new one")
        self._cells[_HEADER + n] = mono_ms
        self._cells[0] = n + 1

    def failed(self) -> None:
        self._cells[1] += 1

    def labelled(self) -> None:
        self._cells[2] += 1


def read(path: Path) -> tuple[npt.NDArray[np.int64], int, int]:
    """(times of all predictions in ms, failures, labels) as they stand now."""
    cells = np.fromfile(path, np.int64)
    return cells[_HEADER : _HEADER + int(cells[0])], int(cells[1]), int(cells[2])
