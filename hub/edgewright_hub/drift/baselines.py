"""What the devices of a part are compared with: their own past, their fleet's, else training. Arrays.

A device's own blocks, once there are enough of them; until then the sum of those of its fleet; else the reference of
the package.

A baseline knows the day when each hour of the day was seen, a day after its first block or later: time that passed
without a window, between a test on the bench and the site or over a weekend, taught nothing. Of a device that rests
each day, when its own hours came again: more hours of running in a row without a new one than it has, `RESTS` at
least. And when it grows no more, after `learn_ms` in days in which it was heard, it knows all that it will.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from . import hours
from .detectors import DAY_MS, HOUR_MS
from .measures import Floats
from .streams import EVIDENCE, OWN, Bools, Index, Ints, Streams

RESTS: Final = 12  # hours


class Baselines:
    """`training`: reference counts [channels, cells]; a device's own are in `streams`."""

    def __init__(self, streams: Streams, training: Floats, *, blocks: int, rows: int, learn_ms: int) -> None:
        self.training = training
        self._streams = streams
        self._blocks, self._rows = blocks, rows  # from which a past may be used
        self._learn_ms = learn_ms
        self._fleets: list[str] = []
        self._fleet_at: list[int] = []  # of each device, into `_fleets`
        self._sums = np.zeros((0, *training.shape))  # of the own baselines of each fleet
        self._held = np.zeros(0, np.int64)  # blocks in them

    def enter(self, device: str, fleet: str) -> int:
        """The row of a device that belongs to that fleet now."""
        if fleet not in self._fleets:
            self._fleets.append(fleet)
            self._sums = np.concatenate((self._sums, np.zeros((1, *self.training.shape))))
            self._held = np.append(self._held, 0)
        at, fleet_at = self._streams.row(device), self._fleets.index(fleet)
        if at == len(self._fleet_at):
            self._fleet_at.append(fleet_at)
        elif self._fleet_at[at] != fleet_at:
            self._fleet_at[at] = fleet_at
            self.pool()
        return at

    def pool(self) -> None:
        """Sum those of each fleet anew: after a device moved, or a baseline was replaced."""
        self._sums[:], self._held[:] = 0, 0
        used = len(self._fleet_at)
        np.add.at(self._sums, self._of(slice(used)), self._streams.counts[:used, OWN])
        np.add.at(self._held, self._of(slice(used)), self._streams.own_blocks[:used])

    def ready(self, at: Index) -> Bools:
        """Whether the own baselines of these are large enough to be tested against."""
        s = self._streams
        return np.asarray((s.own_blocks[at] >= self._blocks) & (s.n[at, OWN] >= self._rows))

    def nearest(self, at: Index) -> tuple[npt.NDArray[np.int8], Floats]:
        """What these devices are compared with: (into BASELINES, counts float64[m, channels, cells])."""
        s = self._streams
        own, mine = self.ready(at) | s.accepted[at], self._of(at)
        fleet = (self._held[mine] >= self._blocks) & (self._sums[mine, 0].sum(1) >= self._rows)
        which = np.where(own, 0, np.where(fleet, 1, 2)).astype(np.int8)
        wide = which[:, None, None]
        pooled = np.where(wide == 1, self._sums[mine], self.training)
        return which, np.where(wide == 0, s.counts[at, OWN].astype(np.float64), pooled)

    def grow(self, at: Index) -> None:
        """By what waits as evidence, which is emptied by nobody here."""
        s = self._streams
        s.pour(at, EVIDENCE, OWN)
        s.own_blocks[at] += s.waiting[at]
        mine = self._of(at)
        np.add.at(self._sums, mine, s.counts[at, EVIDENCE])
        np.add.at(self._held, mine, s.waiting[at])

    def hear(self, at: Index, start_ms: Ints, end_ms: Ints) -> None:
        """Windows come, of which nothing was counted yet: when was it running?"""
        s, heard = self._streams, self._streams.heard_ms[at]
        new = hours.touched(start_ms, end_ms) & ~self._seen(at)
        s.known_hours[at] = np.where(new, 0, s.known_hours[at] + hours.later(start_ms, end_ms, heard, HOUR_MS))
        s.days[at] += hours.later(start_ms, end_ms, heard, DAY_MS)
        s.heard_ms[at] = np.maximum(heard, end_ms)

    def complete(self, at: Index) -> Bools:
        """Whose baseline knows the day, with what waits to enter it."""
        s, seen = self._streams, self._seen(at)
        whole = (seen == hours.ALL) & (s.heard_ms[at] - s.start_ms[at, OWN] >= DAY_MS)
        again = s.known_hours[at] > np.maximum(hours.count(seen), RESTS)
        return np.asarray((s.n[at, OWN] > 0) & (whole | again) | self.old(at))

    def old(self, at: Index) -> Bools:
        """Whose baseline grows no more."""
        s = self._streams
        return np.asarray((s.n[at, OWN] > 0) & (s.days[at] * DAY_MS > self._learn_ms))

    def _seen(self, at: Index) -> Ints:
        held = self._streams.hours[at]
        return np.asarray(held[:, 0] | held[:, EVIDENCE] | held[:, OWN])

    def _of(self, at: Index | slice) -> Index:
        return np.asarray(self._fleet_at, np.intp)[at]
