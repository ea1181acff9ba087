"""A hub that is lost and made again from a backup: what it had counted is there, and real agents take its next release.

Between the backup and the loss everything goes on: reports, settings, a release that the owner published.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from edgewright.demo import tally
from edgewright_agent.console import status
from edgewright_contracts.package import read_package

DEVICES = ("edge-1", "edge-2")
SPEC = {
    "model": "tiny",
    "fleet": "demo",
    "stages": ["100%"],
    "gate": {"error": {"r0": 1.1, "r1": 1.5, "delta": 0.02}, "slow": None, "label": None, "soak_windows": 2},
    "window_s": 1.0,
    "probation": {"windows": 2, "max_s": 60.0},
    "device_timeout_s": 60.0,
}


@pytest.mark.process
@pytest.mark.slow
def test_a_restored_hub_counts_on_and_no_device_refuses_its_next_update(make_fleet: Callable[[str], Any]) -> None:
    fleet = make_fleet("embedded")
    fleet.enrol(list(DEVICES))
    for seed, device in enumerate(DEVICES):
        fleet.start_device(device, seed=seed, model="tiny", rate=60, labels=0.2, runtime="litert")
    released(fleet, "1.0.0")
    paused(fleet, dict.fromkeys(DEVICES, 0))
    before = counted(fleet)
    command = [sys.executable, "-m", "edgewright", "hub"]
    archive = fleet.root / "hub.tar"
    subprocess.run([*command, "backup", str(archive), f"--data={fleet.hub_data}"], check=True, capture_output=True)

    resumed(fleet)
    second = released(fleet, "1.1.0")
    for seconds in (2, 3):
        settings = {"settings": {"window_s": float(seconds)}, "fleet": "demo", "reason": "a test"}
        fleet.client.post("/api/v1/config", settings)
    held = {device: status.read(fleet.home(device)).desired_rev for device in DEVICES}
    paused(fleet, dict.fromkeys(DEVICES, 0))
    lost = {device: made(fleet, device) - before[device] for device in DEVICES}

    fleet.processes.kill("hub")
    shutil.rmtree(fleet.hub_data)
    fleet.hub_data = fleet.root / "another-machine"
    subprocess.run([*command, "restore", str(archive), f"--data={fleet.hub_data}"], check=True, capture_output=True)
    fleet.start_again()
    assert counted(fleet) == before
    told = {device: lambda device=device: status.read(fleet.home(device)).desired_rev for device in DEVICES}
    fleet.wait(lambda: all(told[d]() > held[d] for d in DEVICES), 60, lambda: f"more than {held}")
    assert running(fleet) == {second}, "the hub wants 1.0.0 again, and signs a list that is older than they have seen"

    resumed(fleet)
    assert fleet.publish(fleet.packages / "1.1.0") == second  # the owner brings its list again
    released(fleet, "1.2.0")
    paused(fleet, lost)


def released(fleet: Any, version: str) -> str:
    """Publish it and have every device run it."""
    digest = fleet.publish(fleet.packages / version)
    assert digest == read_package(fleet.packages / version).digest
    rollout = fleet.roll_out({**SPEC, "digest": digest})
    fleet.wait(lambda: fleet.rollout(rollout)["outcome"] == "promoted", 120, lambda: f"{fleet.rollout(rollout)}")
    fleet.wait(lambda: running(fleet) == {digest}, 30, lambda: f"{version} everywhere, not {running(fleet)}")
    return str(digest)


def running(fleet: Any) -> set[str]:
    """What the devices themselves say."""
    found = (status.read(fleet.home(device)).models[0].running for device in DEVICES)
    return {slot.digest if slot else "" for slot in found}


def counted(fleet: Any) -> dict[str, int]:
    return {row["device"]: row["inferences"] for row in fleet.client.get("/api/v1/devices")}


def made(fleet: Any, device: str) -> int:
    """The driver's own count, which no hub has a part in."""
    return tally.read(fleet.home(device) / "tally").predictions


def resumed(fleet: Any) -> None:
    for device in DEVICES:
        fleet.feed(device)


def paused(fleet: Any, lost: dict[str, int]) -> None:
    """Until nothing waits on a device, and the hub's sums are the driver's, less what only the lost hub counted."""
    for device in DEVICES:
        fleet.feed(device, paused=True)

    def well() -> bool:
        held = [status.read(fleet.home(device)) for device in DEVICES]
        empty = all(one.unacknowledged + one.sealed == 0 for one in held)
        return empty and counted(fleet) == {device: made(fleet, device) - lost[device] for device in DEVICES}

    fleet.wait(well, 60, lambda: f"{counted(fleet)} to be {[made(fleet, d) - lost[d] for d in DEVICES]}")
