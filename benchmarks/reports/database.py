"""What happens in the databases while a fleet grows and a day passes: no broker, the writer and its readers alone."""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts import report, topics
from edgewright_contracts.desired import ACK_S
from edgewright_hub import retention
from edgewright_hub.ingest import device_hours
from edgewright_hub.ingest.messages import Message
from edgewright_hub.ingest.turns import Turns
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import control, sums
from edgewright_hub.storage.telemetry import open_telemetry

from .fleet import BODIES, CELLS, CHANNELS, FLEETS, MINUTE_MS, Bodies, Plan, fleets, name

DAY_MS: Final = 86_400_000


def drift_query(folder: Path, plan: Plan) -> float:
    """Milliseconds of reading and testing, median of 9; the hours of 20 fleets in 3 contexts are in the database."""
    from scipy.stats import chi2

    engine = open_telemetry(folder / "drift.db")
    now = 1_760_000_000_000
    bodies = Bodies()
    known = fleets(plan.devices)
    rng = np.random.default_rng(1)
    for hour in range(30):  # each fleet reports in each hour and context: what 10,000 devices add to is as much
        at = now - (30 - hour) * 3600_000
        some = []
        for fleet in range(FLEETS):
            for turn, context in enumerate(("", "night", "rain")):
                window = msgspec.structs.replace(bodies._windows[int(rng.integers(BODIES))], wall_start_ms=at)
                window = msgspec.structs.replace(window, context=context)
                one = report.Report(spool_id=f"{fleet:016x}", seq=3 * hour + turn + 1, window=window)
                some.append(Message(topics.topic(name(fleet), "report"), msgspec.msgpack.encode(one), at + 61_000))
        commit(engine, some, known)
    expected = np.full((CHANNELS, CELLS), 1 / CELLS)
    took = []
    for _ in range(9):
        begun = time.perf_counter()
        with engine.connect() as connection:
            found = sums.of_span(connection, now - DAY_MS, now)
        for one in found.values():
            assert one.cells is not None
            counts = one.cells.reshape(CHANNELS, CELLS)
            share = np.maximum(counts / counts.sum(1, keepdims=True), 1e-4)
            psi = ((share - expected) * np.log(share / expected)).sum(1)
            wanted = counts.sum(1, keepdims=True) * expected
            p = chi2.sf(((counts - wanted) ** 2 / wanted).sum(1), CELLS - 1)
            assert psi.size == p.size == CHANNELS
        took.append((time.perf_counter() - begun) * 1000)
    assert len(found) == 3 * FLEETS
    engine.dispose()
    return statistics.median(took)


def day(folder: Path, plan: Plan) -> dict[str, float]:
    """24 hours of one report in 5 minutes each, with all that the hub does with them meanwhile."""
    control_engine = control.open_control(folder / "day-hub.db")
    engine = open_telemetry(folder / "day.db")
    with control_engine.begin() as connection:  # drift and rollouts have read everything
        for reader in retention.READERS["windows"] + retention.READERS["events"]:
            connection.execute(control.cursors.insert().values(name=reader, position=2**62))
    known, bodies, turns = fleets(plan.day_devices), Bodies(), Turns(ACK_S)
    begin, rss = 1_760_000_000_000, []
    for step in range(26 * 12):
        at = begin + step * 5 * MINUTE_MS
        for start in range(0, plan.day_devices, 200):
            some = [
                Message(topics.topic(name(i), "report"), bodies.of(i, step + 1, at - MINUTE_MS), at)
                for i in range(start, min(start + 200, plan.day_devices))
            ]
            turns.add(commit(engine, some, known), at / 1000)
        turns.due(at / 1000)
        if step % 12 == 11:
            while device_hours.tick(engine):
                pass
            while retention.shorten(control_engine, engine, at):
                pass
            rss.append(resident_mb())
    size = sum(path.stat().st_size for path in folder.glob("day.db*")) / 1e6
    engine.dispose()
    control_engine.dispose()
    return {"first_mb": rss[2], "last_mb": rss[-1], "growth_mb": rss[-1] - rss[2], "database_mb": size}


def growth(folder: Path, plan: Plan) -> dict[str, dict[str, float]]:
    """Of the writer alone: the second report of each of so many devices, in batches of 200."""
    out = {}
    for devices in plan.growth:
        engine = open_telemetry(folder / f"growth-{devices}.db")
        known, bodies = fleets(devices), Bodies()
        order = np.random.default_rng(3).permutation(devices)
        measured = min(devices, 20_000)
        for seq in (1, 2):
            at = 1_760_000_000_000 + seq * MINUTE_MS
            cpu = 0.0
            for start in range(0, measured if seq == 2 else devices, 200):
                some = [
                    Message(topics.topic(name(i), "report"), bodies.of(i, seq, at - MINUTE_MS), at)
                    for i in order[start : start + 200].tolist()
                ]
                begun = time.process_time()
                commit(engine, some, known)
                cpu += time.process_time() - begun
        reports = devices + measured
        size = sum(path.stat().st_size for path in folder.glob(f"growth-{devices}.db*"))
        out[f"{devices} devices"] = {
            "us_per_report": cpu / measured * 1e6, "bytes_per_report": size / reports, "rss_mb": resident_mb(),
        }  # fmt: skip
        engine.dispose()
    return out


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
