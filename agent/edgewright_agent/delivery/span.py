"""How long a window lasts. Pure.

A window ends on a wall-clock multiple of its length while the clock is synced, else a length after it began. With
`Config.window_rows` it goes on from there, length by length, until it holds that many inferences or the next length
would take it beyond `window_max_s`: a quiet device sends few windows that say something, rather than many that do not.
"""

from __future__ import annotations

from typing import Final

from edgewright_contracts.desired import Config

LATE: Final = 0.1  # of a length: how late a turn may come without costing the window a whole length


def length_s(wall_ms: int | None, window_s: float) -> float:
    """Seconds from `wall_ms` to the next multiple of the window's length; the whole length without a synced clock."""
    if wall_ms is None:
        return window_s
    return window_s - (wall_ms / 1000) % window_s


def full(config: Config, rows: int, lasted_s: float) -> bool:
    """Whether a window of `rows` inferences ends at the end of a length, having lasted so long."""
    if not config.window_rows or rows >= config.window_rows:
        return True
    return lasted_s + (1 - LATE) * config.window_s > config.window_max_s


def longest_s(config: Config) -> float:
    """How long a window may last: what `next_due_s` must promise."""
    return max(config.window_s, config.window_max_s) if config.window_rows else config.window_s
