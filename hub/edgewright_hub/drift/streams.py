"""What is remembered of streams, a row for each device, and the same as bytes for hub.db. Arrays, pure.

Counts are float32: whole up to 16 million in a cell, close enough above. Memory: about 40 bytes for each cell of a
stream, 700 for all else; as bytes, compressed, a tenth of that.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .detectors import DAY_MS, DELTAS, NOTHING, SCALES_MS
from .measures import Floats

Index = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

SCALES: Final = len(SCALES_MS)
# Rows of `counts`: the open block of each scale; what came since all detectors last were at rest; the own baseline;
# the days after which an alarm may end.
EVIDENCE, OWN, CLEARING = SCALES, SCALES + 1, SCALES + 2
ROWS: Final = SCALES + 3
BASELINES: Final = ("own", "cohort", "training")
UNCHECKED, ALIKE, SKEWED, KNOWN = range(4)  # of `skew`

_NUMBERS: Final[tuple[tuple[str, tuple[int, ...], Any, float], ...]] = (
    ("n", (ROWS,), np.int64, 0),
    ("start_ms", (ROWS,), np.int64, 0),
    ("log_r", (SCALES, len(DELTAS)), np.float64, NOTHING),
    ("before", (SCALES,), np.float64, 0),
    ("pairs", (4,), np.float64, 0),
    ("run", (2,), np.float64, 0),
    ("runs", (3,), np.float64, 0),
    ("ratios", (SCALES, 2), np.float64, 0),
    ("blocks", (), np.int64, 0),
    ("span_ms", (), np.int64, 0),
    ("own_blocks", (), np.int64, 0),
    ("waiting", (), np.int64, 0),
    ("heard_ms", (), np.int64, 0),
    ("p", (), np.float64, np.nan),
    ("tested", (), np.bool_, 0),
    ("alarm", (), np.bool_, 0),
    ("since_ms", (), np.int64, 0),
    ("quiet", (), np.int64, 0),
    ("foreign", (), np.int64, 0),
    ("ended", (), np.bool_, 0),
    ("accepted", (), np.bool_, 0),
    ("young", (), np.bool_, 1),
    ("day", (), np.bool_, 0),
    ("against", (), np.int8, len(BASELINES) - 1),
    ("skew", (), np.int8, UNCHECKED),
    ("hours", (ROWS,), np.int64, 0),
    ("known_hours", (), np.int64, 0),
    ("days", (), np.int64, 0),
    ("arrived_ms", (), np.int64, 0),
    ("sizes", (SCALES, 2), np.float64, 0),
)
_SINCE: Final = 5  # the last of them, which hubs before 22 November 2026 did not store


class Streams:
    counts: npt.NDArray[np.float32]  # [devices, ROWS, channels, cells]
    n: Ints  # rows (of data) in each of `counts`
    start_ms: Ints  # of the first window in each of `counts`; 0 of an empty one
    log_r: Floats  # [devices, SCALES, DELTAS]
    before: Floats  # z-score of the block before, at each scale; 0: there was none
    pairs: Floats  # sums over pairs of blocks in a row (dispersion.rho)
    run: Floats  # length and sum of the open run of whitened z-scores
    runs: Floats  # sums over whole runs (dispersion.memory)
    ratios: Floats  # [devices, SCALES, 2] (dispersion.shares)
    blocks: Ints  # closed so far
    span_ms: Ints  # of all windows
    own_blocks: Ints  # in the own baseline
    waiting: Ints  # blocks in the evidence
    heard_ms: Ints  # end of the last window, by the device's clock
    p: Floats  # of the last block; NaN of one that was not tested
    tested: Bools  # a block at least
    alarm: Bools
    since_ms: Ints  # of the alarm
    quiet: Ints  # clearing days in a row without drift
    ended: Bools  # its device runs another digest
    foreign: Ints  # windows under other channels
    accepted: Bools  # somebody said that its own windows are the normal: it is never compared with others
    young: Bools  # its baseline still grows
    day: Bools  # its baseline knows the day (baselines.complete)
    against: npt.NDArray[np.int8]  # into BASELINES: what the last block was tested with
    skew: npt.NDArray[np.int8]
    hours: Ints  # of the day, that each of `counts` has something of (hours.touched)
    known_hours: Ints  # of running since the last that brought an hour of the day which it had not seen
    days: Ints  # of UTC, in which it was heard since its baseline began
    arrived_ms: Ints  # when a window came last, by the hub's clock
    sizes: Floats  # [devices, SCALES, 2]: closed blocks, and rows in them

    def __init__(self, channels: int, cells: int) -> None:
        self.channels, self.cells = channels, cells
        self.devices: list[str] = []
        self.index: dict[str, int] = {}
        self._resize(0)

    def row(self, device: str) -> int:
        """The row of a device; a new one begins empty."""
        at = self.index.get(device)
        if at is None:
            at = self.index[device] = len(self.devices)
            self.devices.append(device)
            if at >= self.n.shape[0]:
                self._resize(max(4, 2 * at))
        return at

    def _resize(self, size: int) -> None:
        shape = (ROWS, self.channels, self.cells)
        for name, inner, dtype, fill in (("counts", shape, np.float32, 0), *_NUMBERS):
            new = np.full((size, *inner), fill, dtype)
            old = getattr(self, name, None)
            if old is not None:
                new[: len(old)] = old
            setattr(self, name, new)

    def add(self, at: Index, row: int, cells: npt.NDArray[Any], n: Ints, start_ms: Ints, hours: Ints) -> None:
        held = self.start_ms[at, row]
        self.start_ms[at, row] = np.where(self.n[at, row] > 0, np.minimum(held, start_ms), start_ms)
        self.counts[at, row] += cells
        self.n[at, row] += n
        self.hours[at, row] |= hours

    def pour(self, at: Index, row: int, into: int) -> None:
        """Add one row of `counts` to another."""
        self.add(at, into, self.counts[at, row], self.n[at, row], self.start_ms[at, row], self.hours[at, row])

    def empty(self, at: Index, row: int) -> None:
        self.counts[at, row] = 0
        self.n[at, row] = 0
        self.start_ms[at, row] = 0
        self.hours[at, row] = 0

    def rest(self, at: Index) -> None:
        """Begin anew: no alarm, no evidence, nothing open. The baseline stays, and what is known of its blocks."""
        self.forget_alarm(at)
        self.waiting[at] = 0
        for row in (*range(SCALES), EVIDENCE):
            self.empty(at, row)

    def forget_alarm(self, at: Index) -> None:
        """Detectors begin anew; open blocks and what waits stay."""
        self.log_r[at] = NOTHING
        self.before[at] = 0
        self.run[at] = 0
        for name in ("alarm", "since_ms", "quiet"):
            getattr(self, name)[at] = 0
        self.empty(at, CLEARING)

    # As bytes.

    def pack(self, at: Index) -> list[bytes]:
        """Of each of these rows."""
        numbers = [getattr(self, name)[at].reshape(at.size, -1).astype("<f8") for name, *_ in _NUMBERS]
        counts = self.counts[at].astype("<f4", copy=False)
        together = zip(np.concatenate(numbers, axis=1), counts, strict=True)
        return [zlib.compress(mine.tobytes() + cells.tobytes(), 1) for mine, cells in together]

    def unpack(self, at: int, data: bytes) -> bool:
        """False, and nothing changed, when the bytes are of another release."""
        try:
            plain = zlib.decompress(data)
        except zlib.error:
            return False
        for stored in (_NUMBERS, _NUMBERS[:-_SINCE]):
            sizes = [int(np.prod(shape, dtype=np.int64)) for _, shape, _, _ in stored]
            if len(plain) == 8 * sum(sizes) + 4 * self.counts[at].size:
                break
        else:
            return False
        numbers = np.split(np.frombuffer(plain, "<f8", sum(sizes)), np.cumsum(sizes)[:-1])
        for (name, shape, dtype, _), values in zip(stored, numbers, strict=True):
            getattr(self, name)[at] = values.reshape(shape).astype(dtype)
        self.counts[at] = np.frombuffer(plain, "<f4", offset=8 * sum(sizes)).reshape(self.counts[at].shape)
        if stored is not _NUMBERS:  # a day that it knows stays known; else its hours are to be seen from here on
            self.hours[at], self.known_hours[at] = 0, 0
            self.arrived_ms[at] = self.heard_ms[at]
            self.days[at] = 1 + (self.heard_ms[at] - self.start_ms[at, OWN]) // DAY_MS if self.n[at, OWN] else 0
        return True
