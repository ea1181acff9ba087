"""What a report costs the process that takes it from the broker, beside a callback that does nothing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Final

from .fleet import Plan
from .processes import Child, mosquitto

EACH: Final = 16  # reports of each device where the price of one is measured


def ratio(folder: Path, plan: Plan, *, packed: bool, rounds: int) -> dict[str, float]:
    """CPU of one report, ours and nobody's, in turns."""
    ours: list[float] = []
    nobodys: list[float] = []
    with mosquitto(folder) as port:
        for turn in range(rounds):
            database = folder / f"ratio-{packed}-{turn}.db"
            devices = plan.reports // EACH  # so that devices are acknowledged meanwhile, as often as they are
            for kind in ("noop", "hub"):
                more = ("hub", folder, database, port, plan.reports, devices)
                consumer = Child(*(("noop", folder, port, plan.reports) if kind == "noop" else more))
                source = Child("pump", folder, port, plan.reports, devices, 0, int(packed))
                source.go()
                us = json.loads(consumer.wait())["us"]
                (nobodys if kind == "noop" else ours).append(us)
                source.end()
                consumer.end()
            print(f"packed {packed}: ours {ours[-1]:.1f} µs, nothing {nobodys[-1]:.1f} µs", flush=True)
    our, nothing = statistics.median(ours), statistics.median(nobodys)
    return {"ours_us": our, "nothing_us": nothing, "ratio": our / nothing}


def share(folder: Path, plan: Plan, *, ours: bool) -> float:
    """Of a core, at 10,000 reports a minute, with mosquitto: ours, or of the callback that does nothing."""
    reports = int(plan.paced_s * 10_000 / 60)
    with mosquitto(folder) as port:
        more = ("hub", folder, folder / "share.db", port, reports, plan.devices)
        consumer = Child(*(more if ours else ("noop", folder, port, reports)))
        source = Child("pump", folder, port, reports, plan.devices, 10_000 / 60, 0)
        source.go()
        found = json.loads(consumer.wait())
        source.end()
        consumer.end()
    return float(found["us"]) * 10_000 / 60 / 1e6


def embedded_share(folder: Path, plan: Plan) -> float:
    """Of a core, with the embedded broker in the process of the consumer."""
    reports = int(plan.paced_s * 10_000 / 60)
    both = Child("embedded", folder, folder / "embedded.db", reports, plan.devices)
    port = json.loads(both.wait())["port"]
    source = Child("devices", folder, port, reports, plan.connections)
    both.go()
    source.go()
    found = json.loads(both.wait())
    source.end()
    both.end()
    return float(found["us"]) * 10_000 / 60 / 1e6
