"""What of a window goes out, which windows may become one when space runs short, and what their time means. Pure.

The hub judges the whole time of an inference. Its two parts, the wait and the run, are told on every eighth edge of the
grid, to half of their length: in full, each costs as many bytes as the whole time. The device judges its budgets
before, by the full grids.

Within an hour only windows of one boot merge, into a day those of any: resolution is lost, counts are not. Windows that
have a wall clock go by it, so that a clock that jumps never puts two times into one window; those without go by the
time since their boot began. What spans boots has no monotonic clock of its own: there its times count from the
beginning of the day, and its length stays that of a day.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts import binning, report
from edgewright_contracts.built import built
from edgewright_contracts.report import Clock, Window

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
SPANS: Final = (HOUR_MS, DAY_MS)  # the finer first
STEP_MS: Final = 1000  # of a clock: less is drift
LOWEST: Final = np.arange(0, binning.GRID_CELLS, 8)  # of the cells of the grid that become one


class Heading(msgspec.Struct, array_like=True, frozen=True):
    """The first fields of a window, which say where it belongs: read in a microsecond, all of it takes a hundred."""

    boot_id: str
    mono_start_ms: int
    mono_end_ms: int
    wall_start_ms: int | None
    clock: Clock
    span: int
    next_due_s: int
    digest: str
    variant: str
    context: str
    edge_hash: str
    phase: str
    rollout: str

    @property
    def key(self) -> tuple[str, ...]:
        return (self.digest, self.variant, self.context, self.edge_hash, self.phase, self.rollout)


read_heading: Final = msgspec.msgpack.Decoder(built(Heading)).decode

_SURER: Final[dict[Clock, int]] = {"unknown": 0, "free": 1, "synced": 2}


def told(window: Window) -> Window:
    """The window as it goes into the spool and to the hub."""
    queue, run = _coarse(window.latency_queue), _coarse(window.latency_run)
    return msgspec.structs.replace(window, latency_queue=queue, latency_run=run)


def group(window: Window | Heading, span_ms: int) -> object:
    """Windows of one group may merge."""
    wall = window.wall_start_ms
    time = ("boot", window.mono_start_ms // span_ms) if wall is None else ("wall", wall // span_ms)
    if span_ms >= DAY_MS:
        return (window.key, time)
    return (window.key, time, window.boot_id, window.mono_start_ms // DAY_MS)


def merged(windows: Sequence[Window]) -> Window:
    """One window of a group. Raises ContractError when a sum leaves its bound."""
    starts, ends = [w.mono_start_ms for w in windows], [w.mono_end_ms for w in windows]
    if len({w.boot_id for w in windows}) > 1 or max(ends) - min(starts) > 2 * DAY_MS:
        windows = [_of_day(w) for w in windows]
    total = windows[0]
    for window in windows[1:]:
        total = report.merge(total, window)
    return total


def dated(window: Window, boot_id: str, offset_ms: int | None, clock: Clock) -> Window | None:
    """The window, which was sealed before the clock of its boot was as good as it is now, with the time that it has by
    it; None when nothing better is known. `offset_ms` is the wall clock less the monotonic one."""
    if offset_ms is None or window.boot_id != boot_id or _SURER[window.clock] >= _SURER[clock]:
        return None
    start = window.mono_start_ms + offset_ms
    if start < 0 or (window.wall_start_ms is not None and abs(start - window.wall_start_ms) < STEP_MS):
        return None
    return msgspec.structs.replace(window, wall_start_ms=start, clock="free")


def _coarse(grid: bytes) -> bytes:
    """The same counts, each in the lowest of eight neighbours."""
    counts = binning.unpack_grid(grid)
    out = np.zeros_like(counts)
    out[LOWEST] = np.add.reduceat(counts, LOWEST)
    return binning.pack_grid(out)


def _of_day(window: Window) -> Window:
    start = (window.mono_start_ms if window.wall_start_ms is None else window.wall_start_ms) % DAY_MS
    length = window.mono_end_ms - window.mono_start_ms
    return msgspec.structs.replace(window, boot_id="", mono_start_ms=start, mono_end_ms=start + length)
