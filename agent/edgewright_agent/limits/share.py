"""The share of a core that the agent's own work had, over the last minute. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

SLIDE_S: Final = 60.0


class Share:
    """Fed with the processor time of each thread; threads come and go, and what one used stays counted."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._total_ns = 0
        self._past: deque[tuple[float, int]] = deque()

    def permille(self, now_s: float, used_ns: Mapping[int, int]) -> float | None:
        """Over `SLIDE_S` at most, None before there are two readings. The first reading of a thread counts from 0 when
        others were read before: it began since."""
        if self._past:
            self._total_ns += sum(max(0, ns - self._last.get(thread, 0)) for thread, ns in used_ns.items())
        self._last = dict(used_ns)
        self._past.append((now_s, self._total_ns))
        while len(self._past) > 2 and now_s - self._past[1][0] >= SLIDE_S:
            self._past.popleft()
        then_s, then_ns = self._past[0]
        return (self._total_ns - then_ns) / 1e6 / (now_s - then_s) if now_s > then_s else None
