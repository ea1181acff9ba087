"""Power cuts of everything, in the middle of a rollout: nothing is doubled, nothing but what births declare is lost.

The count that decides is the drivers' own (demo/tally.py): a memory-mapped file that no kill of its process can lose.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgewright.demo import tally

DEVICES = ("edge-1", "edge-2", "edge-3")
SPEC = {
    "model": "tiny",
    "fleet": "demo",
    "gate": {"error": {"r0": 1.1, "r1": 1.5, "delta": 0.02}, "slow": None, "label": None, "soak_windows": 2},
    "window_s": 1.0,
    "probation": {"windows": 2, "max_s": 60.0},
    "device_timeout_s": 60.0,
}


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(("broker", "seed"), [("embedded", 7), ("mosquitto", 11), ("embedded", 12)])
def test_kills_lose_only_what_the_next_birth_declares(broker: str, seed: int, make_fleet: Callable[[str], Any]) -> None:
    fleet = make_fleet(broker)
    fleet.enrol(list(DEVICES))
    for device in DEVICES:
        start(fleet, device)
    first = fleet.publish(fleet.packages / "1.0.0")
    promoted(fleet, fleet.roll_out({**SPEC, "digest": first, "stages": ["100%"]}))

    second = fleet.publish(fleet.packages / "1.1.0")
    rollout = fleet.roll_out({**SPEC, "digest": second, "stages": [1, "100%"]})
    dice = random.Random(seed)
    for kill in range(5):
        time.sleep(dice.uniform(0.2, 2.5))  # the moment of a power cut is what this test is about
        if kill == 2:
            fleet.processes.kill("hub")
            fleet.start_again()
        elif kill == 4 and broker == "mosquitto":
            fleet.processes.kill("mosquitto")
            fleet.start_mosquitto()
        elif kill == 4:
            fleet.processes.kill("hub")  # and the embedded broker with it
            fleet.start_again()
        else:
            device = dice.choice(DEVICES)
            fleet.processes.kill(device)
            start(fleet, device)

    promoted(fleet, rollout)
    fleet.wait(lambda: running(fleet) == {second[:16]}, 60, lambda: "1.1.0 everywhere")
    for device in DEVICES:
        fleet.feed(device, paused=True)
    fleet.wait(lambda: not differences(fleet), 40, lambda: f"equal counts; hub minus driver: {differences(fleet)}")


def promoted(fleet: Any, rollout: str) -> None:
    fleet.wait(lambda: fleet.rollout(rollout)["outcome"] == "promoted", 120, lambda: f"{fleet.rollout(rollout)}")


def start(fleet: Any, device: str) -> None:
    fleet.start_device(device, seed=DEVICES.index(device), model="tiny", rate=60, labels=0.2, runtime="litert")


def running(fleet: Any) -> set[str]:
    return {row["running"]["digest"] if row["running"] else "" for row in fleet.client.get("/api/v1/devices")}


def differences(fleet: Any) -> dict[str, int]:
    """What the hub counted, less what the driver did, where they differ; declared losses are taken off the driver's."""
    found = {}
    for row in fleet.client.get("/api/v1/devices"):
        made = tally.read(fleet.home(row["device"]) / "tally")
        lost = sum(made.since(gap["open_since_mono_ms"]) for gap in row["interruptions"])
        if row["inferences"] != made.predictions - lost:
            found[row["device"]] = int(row["inferences"] - (made.predictions - lost))
    return found
