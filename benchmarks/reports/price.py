"""What a report costs the process that takes it from the broker, beside a callback that does nothing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Final

from .fleet import Plan
from .processes import Child, mosquitto

RATE: Final = 10_000 / 60  # reports a second
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
                consumer = ("noop", folder, port, plan.reports) if kind == "noop" else more
                us = _spent_us(consumer, ("pump", folder, port, plan.reports, devices, 0, int(packed)))
                (nobodys if kind == "noop" else ours).append(us)
            print(f"packed {packed}: ours {ours[-1]:.1f} µs, nothing {nobodys[-1]:.1f} µs", flush=True)
    our, nothing = statistics.median(ours), statistics.median(nobodys)
    return {"ours_us": our, "nothing_us": nothing, "ratio": our / nothing}


def share(folder: Path, plan: Plan, *, ours: bool) -> float:
    """Of a core, at 10,000 reports a minute, with mosquitto: ours, or of the callback that does nothing."""
    reports = int(plan.paced_s * RATE)
    with mosquitto(folder) as port:
        more = ("hub", folder, folder / "share.db", port, reports, plan.devices)
        consumer = more if ours else ("noop", folder, port, reports)
        return _share(_spent_us(consumer, ("pump", folder, port, reports, plan.devices, RATE, 0)))


def embedded_share(folder: Path, plan: Plan) -> float:
    """Of a core, with the embedded broker in the process of the consumer."""
    reports = int(plan.paced_s * RATE)
    both = Child("embedded", folder, folder / "embedded.db", reports, plan.devices)
    port = json.loads(both.wait("{"))["port"]
    source = Child("devices", folder, port, reports, plan.connections)
    source.wait("ready")
    both.go()
    source.go()
    us = json.loads(both.wait("{"))["us"]
    source.end()
    both.end()
    return _share(us)


def _spent_us(consumer: tuple[object, ...], source: tuple[object, ...]) -> float:
    """By the one process for each report that the other one sends."""
    to, of = Child(*consumer), Child(*source)
    to.wait("ready")
    of.wait("ready")
    of.go()
    us = json.loads(to.wait("{"))["us"]
    of.end()
    to.end()
    return float(us)


def _share(us: float) -> float:
    return us * RATE / 1e6
