"""What the agent itself uses: processor time, memory, bytes as the wire carried them and bytes onto the disk; and how
warm and how empty the device is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from edgewright_contracts.report import Gauge, Usage

from ..disk import Disk
from .device import Device, resident_kb

ZERO_C_DK = 2731.5  # in tenths of a kelvin


class Carrier(Protocol):
    """The link, as far as bytes go: delivery.mqtt.Transport."""

    def traffic(self) -> tuple[int, int]: ...
    def overhead(self) -> tuple[int, int]: ...


class Totals(NamedTuple):
    """Since the start of the process; bytes with what MQTT, TLS, TCP and IP put around them."""

    cpu_ms: int
    sent: int
    received: int
    fetched: int  # by HTTPS: packages and signed metadata, mostly
    written: int


class Consumption:
    """What this process uses, between two calls of `since_last`. Levels are sampled by `sample`, and at the end."""

    def __init__(
        self, disk: Disk, link: Carrier, https: Callable[[], tuple[int, int]], device: Device | None = None
    ) -> None:
        """`https` are the bytes sent and received so far beside the `link`: of packages, and of samples."""
        self._disk, self._link, self._https = disk, link, https
        self._device = device or Device()
        self._highest = Totals(0, 0, 0, 0, 0)
        self._last = self.totals()
        self._at = time.monotonic()
        self._rss = self._temperature = self._discharge = Gauge()

    def sample(self) -> float:
        """Look at the levels once more: RSS in MB."""
        rss_kb = resident_kb()
        self._rss += Gauge(1, rss_kb, rss_kb)
        warm = self._device.temperature_c()
        if warm is not None:
            dk = round(ZERO_C_DK + 10 * warm)
            self._temperature += Gauge(1, dk, dk)
        empty = self._device.discharge_permille()
        if empty is not None:
            self._discharge += Gauge(1, empty, empty)
        return rss_kb / 1024

    def since_last(self) -> tuple[Usage, float]:
        """(usage, RSS in MB)."""
        rss_mb = self.sample()
        now, at = self.totals(), time.monotonic()
        cpu_ms, sent, got, fetched, written = (a - b for a, b in zip(now, self._last, strict=True))
        permille = int(cpu_ms / max(1e-3, at - self._at))
        usage = Usage(
            rss_kb=self._rss,
            cpu_permille=Gauge(1, permille, permille),
            temperature_dk=self._temperature,
            discharge_permille=self._discharge,
            cpu_ms=cpu_ms,
            bytes_sent=sent,
            bytes_received=got + fetched,
            bytes_written=written,
        )
        self._last, self._at = now, at
        self._rss = self._temperature = self._discharge = Gauge()
        return usage, rss_mb

    def totals(self) -> Totals:
        sent, got = self._link.traffic()
        more_sent, more_got = self._link.overhead()
        cpu_ms = int(time.process_time() * 1000)
        put, fetched = self._https()
        now = Totals(cpu_ms, sent + more_sent + put, got + more_got, fetched, self._disk.written)
        # A link that is just being exchanged is counted in two ways; a window that tells of less than nothing is none.
        self._highest = Totals(*map(max, now, self._highest))
        return self._highest
