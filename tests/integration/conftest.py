"""Hubs, brokers and devices as processes, each test with a fleet of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from edgewright.demo.fleet import LocalFleet, free_port
from edgewright.demo.processes import Processes
from edgewright_contracts.package import unpack

DATA = Path(__file__).parents[1] / "data"
HUB = ("--tick-s=0.3", "--ack-interval-s=0.5", "--window-s=1")


class TestFleet(LocalFleet):
    """With the prebuilt packages, and a choice of brokers."""

    __test__ = False  # not a class of tests

    def __init__(self, root: Path, processes: Processes, broker: str) -> None:
        super().__init__(root, processes)
        self.broker = broker
        self._broker_port = free_port()

    def start(self) -> None:
        self.make_owner()
        self.packages.mkdir()
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            unpack(DATA / f"tiny-{version}.ewp", self.packages / version)
        if self.broker == "mosquitto":
            self._configure_mosquitto()
            self.start_mosquitto()
        self.start_again()

    def start_again(self) -> None:
        """The hub, on the data that it has."""
        external = [f"--broker=mqtts://127.0.0.1:{self._broker_port}"] if self.broker == "mosquitto" else []
        self.start_hub(*HUB, *external)

    def start_mosquitto(self) -> None:
        self.processes.start("mosquitto", ["/usr/sbin/mosquitto", "-c", str(self.root / "broker" / "mosquitto.conf")])

    def _configure_mosquitto(self) -> None:
        user = ["--user=root"] if os.geteuid() == 0 else []
        command = [sys.executable, "-m", "edgewright", "hub", "broker-config", str(self.root / "broker"), *user]
        listen = f"--listen=127.0.0.1:{self._broker_port}"
        subprocess.run([*command, f"--data={self.hub_data}", listen], check=True, capture_output=True)


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[[str], TestFleet]]:
    with Processes(tmp_path) as processes:

        def make(broker: str) -> TestFleet:
            fleet = TestFleet(tmp_path, processes, broker)
            fleet.start()
            return fleet

        yield make


@pytest.fixture
def agent_answers(make_fleet: Callable[[str], TestFleet]) -> Callable[[list[str]], dict[str, Any]]:
    """Run `command agent run` as a device of a real hub, roll a package out to it, and ask it over HTTP."""

    def answers(command: list[str]) -> dict[str, Any]:
        fleet = make_fleet("embedded")
        fleet.enrol(["gateway-1"])
        url = f"http://127.0.0.1:{free_port()}"
        run = ["agent", "run", f"--home={fleet.home('gateway-1')}", f"--listen={url.removeprefix('http://')}"]
        fleet.processes.start("gateway-1", [*command, *run])
        digest = fleet.publish(fleet.packages / "1.0.0")
        fleet.roll_out({"model": "tiny", "digest": digest, "fleet": "demo", "stages": ["100%"], "window_s": 1.0})
        image = {"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": [8] * 64}
        http = urllib3.PoolManager(retries=False, timeout=5)

        def answered() -> dict[str, Any] | None:
            try:
                answer = http.request("POST", f"{url}/v2/models/tiny/infer", json={"inputs": [image]})
            except urllib3.exceptions.HTTPError:
                return None  # it does not listen yet
            found: dict[str, Any] = answer.json()
            return found if answer.status == 200 else None

        return fleet.wait(answered, 60, lambda: "an answer of the agent")

    return answers
