"""What the agent itself uses: processor time, memory, bytes over the link and onto the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from edgewright_contracts.report import Gauge, Usage

from ..delivery.mqtt import Transport
from ..disk import Disk


class Consumption:
    """What this process uses, between two calls."""

    def __init__(self, disk: Disk, transport: Transport, received: Callable[[], int]) -> None:
        self._disk, self._transport, self._fetched = disk, transport, received
        self._last = self._totals()
        self._at = time.monotonic()

    def since_last(self) -> tuple[Usage, float]:
        """(usage, RSS in MB)."""
        now, at = self._totals(), time.monotonic()
        cpu_ms, sent, got, written = (a - b for a, b in zip(now, self._last, strict=True))
        permille = int(cpu_ms / max(1e-3, at - self._at))
        self._last, self._at = now, at
        rss_kb = resident_kb()
        usage = Usage(
            rss_kb=Gauge(1, rss_kb, rss_kb),
            cpu_permille=Gauge(1, permille, permille),
            cpu_ms=cpu_ms,
            bytes_sent=sent,
            bytes_received=got,
            bytes_written=written,
        )
        return usage, rss_kb / 1024

    def _totals(self) -> tuple[int, int, int, int]:
        sent, got = self._transport.traffic()
        return int(time.process_time() * 1000), sent, got + self._fetched(), self._disk.written


def resident_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 1024
