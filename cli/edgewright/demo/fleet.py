"""A fleet on this machine: an owner's keys, a hub and devices, each a real process, in one directory.

    owner/     signing keys        hub/       the hub's data        packages/   what was compiled
    devices/   one home each       logs/      one file a process

Order: `make_owner`, `start_hub`, `enrol`, `start_device`; then `publish`, `roll_out`. Integration tests use it too.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from edgewright_agent.disk import RealDisk
from edgewright_agent.enrolling.enroll import enroll
from edgewright_compiler.keys import init_keys
from edgewright_compiler.publish import publish
from edgewright_contracts.errors import Unavailable

from ..hub_client import HubClient, path, read_token
from .processes import Processes

T = TypeVar("T")

POLL_S: Final = 0.1
HUB_READY_S: Final = 60.0


class LocalFleet:
    def __init__(self, root: Path, processes: Processes) -> None:
        self.root = root
        self.processes = processes
        self.hub_data = root / "hub"
        self.packages = root / "packages"
        self._ports: dict[str, int] = {}

    def make_owner(self) -> None:
        init_keys(self.root / "owner", now=datetime.now(UTC))

    def start_hub(self, *options: str) -> None:
        """Start the hub and wait until it says that it is ready; a hub that is started again keeps its ports."""
        for name in ("https", "page", "mqtt"):
            self._ports.setdefault(name, free_port())
        ready = self.hub_data / "hub.json"
        ready.unlink(missing_ok=True)
        listen = [f"--{name}=127.0.0.1:{self._ports[name]}" for name in ("https", "page")]
        if not any(option.startswith("--broker") for option in options):
            listen.append(f"--mqtt=127.0.0.1:{self._ports['mqtt']}")
        trust = self.root / "owner" / "hub"
        serve = [sys.executable, "-m", "edgewright", "hub", "serve", f"--data={self.hub_data}", f"--trust={trust}"]
        self.processes.start("hub", [*serve, *listen, *options])
        self.wait(ready.is_file, HUB_READY_S, lambda: f"the hub; its log ends:\n{self.processes.tail('hub')}")

    @property
    def page(self) -> str:
        """Where a browser on this machine finds the hub."""
        return f"http://127.0.0.1:{self._ports['page']}/"

    @property
    def client(self) -> HubClient:
        return HubClient(self._https, ca=self.hub_data / "ca.pem", token=self._token)

    def enrol(self, devices: list[str], fleet: str = "demo") -> None:
        token = self.client.post("/api/v1/tokens", {"uses": len(devices), "expires_s": 600, "fleet": fleet})["token"]
        for device in devices:
            self.home(device).mkdir(parents=True, exist_ok=True)
            enroll(RealDisk(), self.home(device), hub=self._https, token=token, device=device)

    def home(self, device: str) -> Path:
        return self.root / "devices" / device

    def start_device(self, device: str, *, seed: int, model: str, rate: float, labels: float, runtime: str) -> None:
        """`rate` in inferences a second, `labels` the share of them that get a label a second later."""
        place = [f"--home={self.home(device)}", f"--model={model}", f"--runtime={runtime}"]
        drive = [f"--seed={seed}", f"--rate={rate}", f"--labels={labels}"]
        self.processes.start(device, [sys.executable, "-m", "edgewright.demo.device", *place, *drive])

    def feed(self, device: str, *, shift: str | None = None, paused: bool = False) -> None:
        """What the device's sensor sees from now on, and whether its application asks at all."""
        part = self.home(device) / "feed.json.part"
        part.write_text(json.dumps({"shift": shift, "paused": paused}))
        part.replace(self.home(device) / "feed.json")

    def publish(self, package: Path) -> str:
        """Sign, publish, and return the digest."""
        owner, ca = self.root / "owner", self.hub_data / "ca.pem"
        return publish(package, self._https, owner, self._token, ca, now=datetime.now(UTC)).digest

    def roll_out(self, spec: dict[str, Any]) -> str:
        """Create a rollout and return its id."""
        return str(self.client.post("/api/v1/rollouts", spec)["id"])

    def rollout(self, identifier: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(path("rollouts", identifier))
        return found

    def wait(self, seen: Callable[[], T | None], seconds: float, what: Callable[[], str]) -> T:
        """Poll until `seen` gives something true; raises Unavailable when it does not, or a process has ended."""
        deadline = time.monotonic() + seconds
        while True:
            found = seen()
            if found:
                return found
            self.processes.check()
            if time.monotonic() > deadline:
                raise Unavailable(f"waited {seconds:g} s in vain for {what()}")
            time.sleep(POLL_S)

    @property
    def _https(self) -> str:
        return f"https://127.0.0.1:{self._ports['https']}"

    @property
    def _token(self) -> str:
        return read_token(self.hub_data / "admin.token")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
