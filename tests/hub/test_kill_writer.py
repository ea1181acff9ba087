"""A writer that is killed anywhere, again and again: all sums are those of a counter that was never killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_contracts.binning import unpack_grid
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.histograms import cells_of, latency_of
from edgewright_hub.storage.places import Places
from edgewright_hub.storage.telemetry import open_telemetry
from sim.writer import BATCHES, DEVICES, SIZE, live

KILLS = 4
pytestmark = pytest.mark.process


def test_killed_anywhere_it_counts_every_report_once(stores: Places, processes: Any) -> None:
    rng = random.Random(str(stores.telemetry)[-1])
    counted = -1  # the last batch that it told us of; what is behind it comes again
    open_telemetry(stores.telemetry).dispose()
    for turn in range(KILLS + 1):
        ear, mouth = processes.Pipe(duplex=False)
        child = processes.Process(target=live, args=(stores.telemetry, max(0, counted - 1), mouth))
        child.start()
        mouth.close()
        last = counted + rng.randint(3, 12) if turn < KILLS else BATCHES
        while counted < last:
            counted = max(counted, ear.recv())
        if turn < KILLS:
            end = time.perf_counter() + rng.random() * 0.02
            while time.perf_counter() < end:  # into the middle of the next one
                pass
            child.kill()
        child.join(60)
        ear.close()
    numbers = range(BATCHES * SIZE)
    n = Counter({f"cam-{device}": sum(i + 1 for i in numbers if i % DEVICES == device) for device in range(DEVICES)})
    cells = [sum(numbers), len(numbers), 2 * sum(numbers)]
    engine = open_telemetry(stores.telemetry)
    w, d, r = telemetry.windows.c, telemetry.devices.c, telemetry.rollups.c
    with engine.connect() as connection:
        counts = connection.execute(sa.select(w.device, sa.func.sum(w.n), sa.func.count()).group_by(w.device)).all()
        assert {device: total for device, total, _ in counts} == n
        assert sum(number for *_, number in counts) == len(numbers)
        reported = connection.execute(sa.select(d.device, d.inferences)).all()
        assert {row.device: row.inferences for row in reported} == n
        for tier_s in (60, 300, 3600):
            rows = connection.execute(sa.select(telemetry.rollups).where(r.tier_s == tier_s)).all()
            assert sum(row.n for row in rows) == sum(n.values())
            assert np.sum([cells_of(row.cells) for row in rows], axis=0).tolist() == cells
            assert sum(int(latency_of(row.latency_total).sum()) for row in rows) == sum(n.values())
        hours = connection.execute(sa.select(telemetry.device_hours)).all()
        assert Counter({device: sum(row.n for row in hours if row.device == device) for device in n}) == n
        assert sum(int(unpack_grid(row.latency_total).sum()) for row in hours) == sum(n.values())
        assert sum(row.windows for row in hours) == len(numbers)
    engine.dispose()
