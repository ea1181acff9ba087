"""The demonstration's claims, with assertions, on both brokers: promote, refuse, roll back, detect, count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewright.demo import tally
from edgewright.demo.builder import wrong_file
from edgewright.demo.fleet import LocalFleet
from edgewright_contracts.errors import Refused
from edgewright_contracts.package import read_package

DEVICES = ("edge-1", "edge-2", "edge-3", "edge-4")
GATE = {
    "error": {"r0": 1.1, "r1": 1.5, "delta": 0.01},
    "slow": None,
    "label": {"r0": 1.05, "r1": 1.5},
    "soak_windows": 2,
}


def spec(version: str, stages: list[int | str]) -> dict[str, Any]:
    return {
        "model": "tiny",
        "version": version,
        "fleet": "demo",
        "stages": stages,
        "gate": GATE,
        "window_s": 1.0,
        "probation": {"windows": 2, "max_s": 60.0},
        "device_timeout_s": 60.0,
    }


def ended(fleet: LocalFleet, rollout: str) -> dict[str, Any]:
    def seen() -> dict[str, Any] | None:
        state = fleet.rollout(rollout)
        return state if state["state"] in ("done", "rolled-back", "aborted") else None

    return fleet.wait(seen, 90, lambda: f"the end of {fleet.rollout(rollout)}")


def roll_out(fleet: LocalFleet, package: Path, stages: list[int | str]) -> dict[str, Any]:
    fleet.publish(package)
    return ended(fleet, fleet.roll_out(spec(read_package(package).manifest.version, stages)))


def flagged(fleet: LocalFleet) -> set[str]:
    rows = fleet.client.get("/api/v1/drift")
    return {row["subject"] for row in rows if row["scope"] == "device" and row["verdict"] == "alarm"}


def learned(fleet: LocalFleet, digest: str) -> bool:
    """Whether every device's input is compared with what was normal before."""
    rows = [r for r in fleet.client.get("/api/v1/drift") if r["scope"] == "device" and r["digest"] == digest]
    known = {row["subject"] for row in rows if row["part"] == "input" and row["verdict"] != "learning"}
    return known == set(DEVICES)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("broker", ["embedded", "mosquitto"])
def test_the_whole_loop(broker: str, make_fleet: Callable[[str], LocalFleet]) -> None:
    fleet = make_fleet(broker)
    fleet.enrol(list(DEVICES))
    for seed, device in enumerate(DEVICES):
        runtime = "litert" if seed % 2 else "onnxruntime"
        fleet.start_device(device, seed=seed, model="tiny", rate=80, labels=0.6, runtime=runtime)

    first = roll_out(fleet, fleet.packages / "1.0.0", ["100%"])
    assert (first["outcome"], first["devices_exposed"]) == ("promoted", 4)

    better = roll_out(fleet, fleet.packages / "1.1.0", [1, "50%", "100%"])
    assert (better["outcome"], better["devices_exposed"], better["stage"]) == ("promoted", 4, 2)

    broken = wrong_file(
        read_package(fleet.packages / "1.1.0"), read_package(fleet.packages / "1.0.0"), fleet.packages / "wrong"
    )
    refused = roll_out(fleet, broken.root, [1, "100%"])
    assert (refused["outcome"], refused["devices_exposed"]) == ("refused by self-test", 1)
    with pytest.raises(Refused, match="blocked"):
        fleet.roll_out(spec(broken.manifest.version, ["100%"]))

    worse = roll_out(fleet, fleet.packages / "1.2.0", [1, "50%", "100%"])
    assert worse["outcome"] == "rolled back"
    assert "wrong labels" in worse["reason"]
    assert worse["devices_exposed"] < len(DEVICES)
    good = better["digest"][:16]
    fleet.wait(
        lambda: all(row["running"]["digest"] == good for row in fleet.client.get("/api/v1/devices")),
        30,
        lambda: "1.1.0 on every device again",
    )

    fleet.wait(lambda: learned(fleet, good), 150, lambda: "what is normal for every device")
    assert flagged(fleet) == set()
    for device in DEVICES[:2]:
        fleet.feed(device, shift="sensor-noise+dead-row")
    fleet.wait(lambda: set(DEVICES[:2]) <= flagged(fleet), 60, lambda: f"two alarms; there are {flagged(fleet)}")
    assert flagged(fleet) == set(DEVICES[:2])

    for device in DEVICES:
        fleet.feed(device, paused=True)

    def counted() -> bool:
        told = {row["device"]: row["inferences"] for row in fleet.client.get("/api/v1/devices")}
        return told == {device: tally.read(fleet.home(device) / "tally").predictions for device in DEVICES}

    fleet.wait(counted, 30, lambda: "the hub's counts to be the drivers' own")
    states = {row["device"]: row["birth"]["slots"] for row in fleet.client.get("/api/v1/devices")}
    assert json.dumps(states)  # births say what is in the slots
