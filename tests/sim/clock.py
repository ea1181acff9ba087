"""A clock that stands still until it is moved. Implements edgewright_agent.clock.Clock."""

from __future__ import annotations


class SimClock:
    def __init__(self, wall_ms: int | None = 1_800_000_000_000, *, synced: bool = True) -> None:
        self.mono_ns = 1_000_000_000
        self._wall_ms = wall_ms
        self._synced = synced

    def advance(self, seconds: float) -> None:
        self.mono_ns += round(seconds * 1e9)
        if self._wall_ms is not None:
            self._wall_ms += round(seconds * 1000)

    def set_wall(self, wall_ms: int | None, *, synced: bool = True) -> None:
        self._wall_ms, self._synced = wall_ms, synced

    def monotonic_ns(self) -> int:
        return self.mono_ns

    def wall_ms(self) -> int | None:
        return self._wall_ms

    def synced(self) -> bool:
        return self._synced and self._wall_ms is not None
