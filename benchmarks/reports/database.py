"""What happens in the databases while a fleet grows and a day passes: no broker, the writer and the chores alone."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np

from edgewright_contracts import topics
from edgewright_contracts.desired import ACK_S
from edgewright_hub import retention
from edgewright_hub.ingest import device_hours
from edgewright_hub.ingest.consumer import settle
from edgewright_hub.ingest.messages import Message
from edgewright_hub.ingest.turns import Turns
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import control
from edgewright_hub.storage.telemetry import open_telemetry

from .fleet import MINUTE_MS, Bodies, Plan, fleets, name


def day(folder: Path, plan: Plan) -> dict[str, float]:
    """Some reports of each device in an hour, for 26 hours, with all that the hub does with them meanwhile."""
    settle()
    control_engine = control.open_control(folder / "day-hub.db")
    engine = open_telemetry(folder / "day.db")
    with control_engine.begin() as connection:  # drift and rollouts have read everything
        for reader in retention.READERS["windows"] + retention.READERS["events"]:
            connection.execute(control.cursors.insert().values(name=reader, position=2**62))
    known, bodies, turns = fleets(plan.day_devices), Bodies(), Turns(ACK_S)
    begin, rss = 1_760_000_000_000, []
    for step in range(26 * plan.day_reports):
        at = begin + step * 60 // plan.day_reports * MINUTE_MS
        for start in range(0, plan.day_devices, 200):
            some = [
                Message(topics.topic(name(i), "report"), bodies.of(i, step + 1, at - MINUTE_MS), at)
                for i in range(start, min(start + 200, plan.day_devices))
            ]
            turns.add(commit(engine, some, known), at / 1000)
        turns.due(at / 1000)
        if (step + 1) % plan.day_reports == 0:
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
    settle()
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
