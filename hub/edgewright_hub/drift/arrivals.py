"""Windows of one part as they arrive, put into turns that arrays can take: each device once in a turn. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple


class Window(NamedTuple):
    at: int
    cells: Any
    n: int
    start_ms: int
    length_ms: int
    arrived_ms: int


def turns(windows: Iterable[Window]) -> list[list[Window]]:
    """The windows in turns: each device at most once in a turn, its windows in their order."""
    found: list[list[Window]] = []
    seen: dict[int, int] = defaultdict(int)
    for window in windows:
        if seen[window.at] == len(found):
            found.append([])
        found[seen[window.at]].append(window)
        seen[window.at] += 1
    return found
