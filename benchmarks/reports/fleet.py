"""How large the fleet is that reports, and what its devices send."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from edgewright_contracts import report
from edgewright_contracts.binning import grid_index, pack, pack_grid
from edgewright_contracts.codec import REPORT_BYTES, encode
from edgewright_contracts.packing import pack as compress
from edgewright_hub.ingest.ingest import Known
from edgewright_hub.registry.edges import Layout

FLEETS: Final = 20
CHANNELS, CELLS = 22, 13  # of each channel: 11 quantiles, under or over, missing
INFERENCES: Final = 60
BODIES: Final = 500  # different ones
MINUTE_MS: Final = 60_000


class Plan(msgspec.Struct, frozen=True):
    devices: int
    reports: int  # of one round
    rounds: int
    paced_s: float
    connections: int  # to the embedded broker
    day_devices: int
    day_reports: int  # of each of them in an hour
    growth: tuple[int, ...]


FULL: Final = Plan(10_000, 16_000, 3, 40.0, 200, 300, 12, (1_000, 3_000, 10_000, 30_000, 100_000))
QUICK: Final = Plan(1_000, 3_000, 1, 4.0, 20, 20, 4, (1_000, 3_000))


class Bodies:
    """Reports that differ in what they counted; `of` gives each its spool and number."""

    def __init__(self, number: int = BODIES, *, packed: bool = False) -> None:
        rng = np.random.default_rng(5)
        self._windows = [_window(rng) for _ in range(number)]
        self._packed = packed

    def of(self, device: int, seq: int, at_ms: int) -> bytes:
        window = msgspec.structs.replace(self._windows[(device * 7 + seq) % len(self._windows)], wall_start_ms=at_ms)
        one = report.Report(spool_id=f"{device:016x}", seq=seq, window=window)
        raw = msgspec.msgpack.encode(one)
        return compress(raw) if self._packed else raw


def _window(rng: np.random.Generator) -> report.Window:
    cells = rng.multinomial(INFERENCES, np.full(CELLS, 1 / CELLS), CHANNELS).ravel()

    def took(ms: float) -> bytes:
        ns = rng.lognormal(np.log(ms * 1e6), 0.15, INFERENCES).astype(np.int64)
        return pack_grid(np.bincount(grid_index(ns), minlength=401).astype(np.int64))

    level = report.Gauge(1, 52_000, 52_000)
    window = report.Window(
        boot_id="b" * 16, mono_start_ms=0, mono_end_ms=MINUTE_MS, wall_start_ms=1, clock="synced", next_due_s=60,
        digest="d" * 16, variant="onnx-int8", edge_hash="e" * 16, n=INFERENCES, n_monitored=INFERENCES,
        latency_run=took(5), latency_total=took(6), cells=pack(cells), usage=report.Usage(rss_kb=level, cpu_ms=200),
        errors={"timeout": 1},
    )  # fmt: skip
    encode(window, name="window", limit=REPORT_BYTES, wire="msgpack")  # raises when it is none
    return window


def name(device: int) -> str:
    return f"dev-{device}"


def fleets(number: int) -> Known:
    of = {name(i): f"fleet-{i % FLEETS}" for i in range(number)}
    known = {("d" * 16, "onnx-int8"): Layout("e" * 16, CHANNELS * CELLS, CHANNELS)}
    return Known(of.__getitem__, lambda digest, variant: known.get((digest, variant)))
