"""A writer in a process of its own, for a test to kill: it counts the same reports again and again."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from edgewright_contracts.binning import pack, pack_grid
from edgewright_hub.ingest import device_hours
from edgewright_hub.ingest.messages import Message
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage.telemetry import open_telemetry

from . import wire

BATCHES, SIZE, DEVICES = 60, 10, 7
BEGIN = 1_800_000_000_000


def batch(number: int) -> list[Message]:
    """Reports of a few devices over some hours, some of them a second time."""
    out = []
    for i in range(number * SIZE, (number + 1) * SIZE):
        device, seq = i % DEVICES, i // DEVICES + 1
        grid = np.zeros(401, np.int64)
        grid[100 + i % 50] = i + 1
        at = BEGIN + seq * 5 * 60_000
        body = wire.report_bytes(
            seq, n=i + 1, n_monitored=0, wall_start_ms=at, latency_total=pack_grid(grid), cells=pack([i, 1, 2 * i])
        )
        out.append(wire.message(f"cam-{device}", "report", body, at + 60_000))
    return out + out[:2]


def live(place: Any, first: int, told: Connection) -> None:
    """Count from batch `first` on, and tell of each that is committed, until the end or a kill."""
    engine = open_telemetry(place)
    for number in range(first, BATCHES):
        commit(engine, batch(number), lambda _: "lab")
        told.send(number)
        if number % 5 == 4:
            device_hours.tick(engine)
    while device_hours.tick(engine):
        pass
    engine.dispose()
    told.send(BATCHES)
