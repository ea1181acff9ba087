"""The demonstration, told as it happens: each step waits for what it claims, and says the figures that it saw.

Order: compile and start the fleet side by side; v1 to everyone; v2 by stages; v3a, which the first device refuses; v3b,
which delayed labels stop; then half of the sensors fail. Nothing here decides anything: hub and agents do, and the
claims are read from the hub's API and from the devices' own tallies.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.console import Console

from edgewright_contracts.errors import EdgewrightError

from . import tally
from .fleet import LocalFleet

T = TypeVar("T")

DEVICES: Final = tuple(f"edge-{i}" for i in range(1, 9))
MODEL: Final = "digits"
FLEET: Final = "demo"
RATE: Final = 60.0  # inferences a second and device
LABELLED: Final = 0.5  # of them, on every device but the last two, which never get a label
WINDOW_S: Final = 2.0
STAGES: Final = (1, "25%", "100%")
SHIFTED: Final = DEVICES[::2]
SHIFT: Final = "sensor-noise+dead-row"
HEALTHY_WINDOWS: Final = 4  # in a row that every device reports after the shift, before the healthy count as healthy

# A fleet of 8 devices and windows of seconds: the margins are wider and the soaks shorter than the defaults, the tests
# are the same. Latency is not judged: eight devices share two cores here.
HUB: Final = ("--tick-s=0.5", "--ack-interval-s=2", f"--window-s={WINDOW_S}")
GATE: Final = {
    "error": {"r0": 1.1, "r1": 1.5, "delta": 0.005},
    "slow": None,
    "label": {"r0": 1.05, "r1": 1.5},
    "soak_windows": 2,
}
PROBATION: Final = {"windows": 2, "max_s": 60.0}


@dataclass(frozen=True, slots=True)
class Claim:
    text: str
    seen: bool


@dataclass
class Story:
    fleet: LocalFleet
    console: Console
    started: float = field(default_factory=time.monotonic)
    claims: list[Claim] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, int] = field(default_factory=dict)
    _v2: dict[str, Any] = field(default_factory=dict)

    def tell(self) -> None:
        """All of it. Raises EdgewrightError when a process ends or what is waited for does not come."""
        self.start()
        self.first_version()
        self.better_version()
        self.wrong_file()
        self.mislabelled()
        self.failing_sensors()
        self.count()

    def start(self) -> None:
        self._title("Start", "compile in the background; a hub and 8 devices, each a process of its own")
        builder = [sys.executable, "-m", "edgewright.demo.builder", f"--out={self.fleet.packages}"]
        self.fleet.processes.start("compiler", builder)
        self.fleet.make_owner()
        self._while("starting the hub", lambda: self.fleet.start_hub(*HUB))
        self._while("enrolling devices", lambda: self.fleet.enrol(list(DEVICES), FLEET))
        for number, device in enumerate(DEVICES):
            labels = LABELLED if number < len(DEVICES) - 2 else 0.0
            runtime = "litert" if number % 4 > 1 else "onnxruntime"
            self.fleet.start_device(device, seed=number, model=MODEL, rate=RATE, labels=labels, runtime=runtime)
        self._say(
            f"owner's keys made; hub on {self.fleet.page}; {len(DEVICES)} devices enrolled, each with its own key"
        )

    def first_version(self) -> None:
        self._title("v1", "compiled, signed, rolled out to all at once: there is nothing to compare it with")
        self._built("v1")
        state = self._rolled_out("v1", stages=("100%",))
        self._while("reports of v1", lambda: self._until(lambda: self._all_on(state), 60, "v1 on every device"))
        self._claim(state["outcome"] == "promoted", f"v1 runs on {len(DEVICES)} of {len(DEVICES)} devices")
        self._while("the devices' own record", lambda: self._until_windows(6))

    def better_version(self) -> None:
        self._title("v2", "distilled from a teacher: one device, then a quarter, then all")
        self._built("v2")
        gained = self._accuracy("v2") - self._accuracy("v1")
        self._claim(gained > 0, f"in the laboratory v2 is {100 * gained:.1f} points better than v1")
        state = self._v2 = self._rolled_out("v2", stages=STAGES)
        self._claim(
            state["outcome"] == "promoted" and state["devices_exposed"] == len(DEVICES),
            f"v2 was promoted through {len(STAGES)} stages to {state['devices_exposed']} devices",
        )

    def wrong_file(self) -> None:
        self._title("v3a", "validly signed, but another model file was packed beside its self-test")
        self._while("v3a to be packed", lambda: self._package("v3a"))
        state = self._rolled_out("v3a", stages=STAGES)
        ran = [row["device"] for row in self._devices() if self._runs(row, state)]
        self._claim(
            state["outcome"] == "refused by self-test" and state["devices_exposed"] == 1 and not ran,
            f"v3a was refused by the self-test of the first device; {len(ran)} devices run it",
        )

    def mislabelled(self) -> None:
        self._title("v3b", "validly signed, passes its self-test, wrong on some classes: mixed-up labels")
        self._built("v3b")
        state = self._rolled_out("v3b", stages=STAGES)
        self._claim(
            state["outcome"] == "rolled back"
            and "wrong labels" in state["reason"]
            and state["devices_exposed"] < len(DEVICES),
            f"v3b was stopped by delayed labels, and {state['devices_exposed']} of {len(DEVICES)} devices had it",
        )
        back = lambda: self._until(lambda: self._all_on(self._v2), 60, "v2 on every device")  # noqa: E731
        self._claim(self._while("v2 on every device again", back), "every device runs v2 again")

    def failing_sensors(self) -> None:
        self._title("Drift", f"{len(SHIFTED)} of {len(DEVICES)} sensors get noisy and lose a row; no label says so")
        self._while("what is normal for each", lambda: self._until(self._learned, 120, "the normal of every device"))
        before = self._flagged()
        self._claim(not before, f"no drift alarm before the shift ({self._blocks()} blocks of counts were tested)")
        for device in SHIFTED:
            self.fleet.feed(device, shift=SHIFT)
        self._while("alarms", lambda: self._until(lambda: set(SHIFTED) <= self._flagged(), 180, "alarms of all four"))
        self._while("the healthy devices", lambda: self._until_windows(HEALTHY_WINDOWS))
        flagged = self._flagged()
        self.drift = {
            "drifted_flagged": len(flagged & set(SHIFTED)),
            "drifted_total": len(SHIFTED),
            "healthy_flagged": len(flagged - set(SHIFTED)),
            "healthy_total": len(DEVICES) - len(SHIFTED),
        }
        for device, channels in sorted(self._moved().items()):
            self._say(f"{device}: {', '.join(channels[:4])}{' …' if len(channels) > 4 else ''}")
        self._claim(
            flagged == set(SHIFTED),
            f"alarms on {self.drift['drifted_flagged']} of {len(SHIFTED)} shifted devices and on "
            f"{self.drift['healthy_flagged']} of {self.drift['healthy_total']} healthy ones",
        )

    def count(self) -> None:
        """Let the devices rest, and compare their drivers' own tallies with what the hub counted."""
        self._title("Counts", "what the drivers of the devices counted, against what the hub was told")
        for device in DEVICES:
            self.fleet.feed(device, paused=True)
        time.sleep(0.5)  # longer than a driver takes to see it
        made = sum(tally.read(self.fleet.home(device) / "tally").predictions for device in DEVICES)
        told = self._while("the last reports", lambda: self._until(lambda: self._told(made), 30, "all counts"))
        self._claim(told == made, f"{made:,} inferences made, {told:,} counted by the hub")
        for device in DEVICES:  # who keeps the demo running sees a fleet that lives
            self.fleet.feed(device, shift=SHIFT if device in SHIFTED else None)

    # What is seen.

    def _built(self, version: str) -> None:
        self._while(f"compiling {version}", lambda: self._package(version))
        for kind in ("fp32", "int8"):
            shown = []
            for name, form in (("ONNX", "onnx"), ("TFLite", "tflite")):
                m = self.figures[version]["variants"][f"{form}-{kind}"]
                shown.append(f"{name} {m['accuracy']:.1%} right, {m['bytes'] / 1000:.1f} kB, {m['p50_us']:.0f} µs")
            self._say(f"{kind}: {'; '.join(shown)}")

    def _package(self, version: str) -> Path:
        package = self.fleet.packages / version
        wanted = "v2" if version == "v3a" else version

        def there() -> bool:
            if not (package / "manifest.json").is_file() or not (self.fleet.packages / "figures.json").is_file():
                return False
            self.figures = json.loads((self.fleet.packages / "figures.json").read_text())
            return wanted in self.figures

        self.fleet.wait(there, 150, lambda: f"{version}; the compiler said: {self.fleet.processes.tail('compiler', 3)}")
        return package

    def _rolled_out(self, version: str, *, stages: tuple[int | str, ...]) -> dict[str, Any]:
        """Publish and roll out, and tell what the hub does until the rollout has ended."""
        digest = self.fleet.publish(self.fleet.packages / version)
        spec = {"model": MODEL, "digest": digest, "fleet": FLEET, "stages": stages, "gate": GATE}
        rollout = self.fleet.roll_out({**spec, "window_s": WINDOW_S, "probation": PROBATION, "device_timeout_s": 120.0})
        start, last = time.monotonic(), ""

        def ended() -> dict[str, Any] | None:
            nonlocal last
            state = self.fleet.rollout(rollout)
            size = state["stages"][min(state["stage"], len(stages) - 1)]["devices"]
            now = f"stage {state['stage'] + 1} of {len(stages)}, {size} of {len(DEVICES)} devices"
            if now != last and state["state"] == "running":
                self._say(f"{time.monotonic() - start:4.0f} s  {now}")
                last = now
            return state if state["outcome"] and state["state"] not in ("running", "rolling-back") else None

        state = self._while(f"{version} on its way", lambda: self._until(ended, 120, f"the end of {version}'s rollout"))
        self._say(f"{time.monotonic() - start:4.0f} s  {state['outcome']}: {state['reason']}")
        package = json.loads((self.fleet.packages / version / "manifest.json").read_text())["version"]
        self.rollouts.append(
            {
                "version": version,
                "package_version": package,
                "outcome": state["outcome"],
                "devices_exposed": state["devices_exposed"],
                "stages": state["stage"] + 1,
                "seconds": round(time.monotonic() - start, 1),
                "reason": state["reason"],
            }
        )
        return dict(state)

    def _accuracy(self, version: str) -> float:
        return float(self.figures[version]["variants"]["onnx-int8"]["accuracy"])

    def _all_on(self, rollout: dict[str, Any]) -> bool:
        return all(self._runs(row, rollout) for row in self._devices())

    def _runs(self, device: dict[str, Any], rollout: dict[str, Any]) -> bool:
        """Whether the newest window of the device was of the package that was rolled out."""
        return bool(device["running"]) and device["running"]["digest"] == rollout["digest"][:16]

    def _devices(self) -> list[dict[str, Any]]:
        return list(self.fleet.client.get("/api/v1/devices"))

    def _until_windows(self, more: int) -> None:
        """Until every device has reported this many windows more."""

        def windows() -> dict[str, int]:
            return {row["device"]: int(row["windows"]) for row in self._devices()}

        before = windows()
        self._until(
            lambda: all(now >= before[device] + more for device, now in windows().items()),
            60,
            f"{more} more windows of every device",
        )

    def _flagged(self) -> set[str]:
        return {row["subject"] for row in self._drift() if row["verdict"] == "alarm"}

    def _learned(self) -> bool:
        """Whether the input of every device is compared with what was normal before."""
        told = [row for row in self._drift() if row["part"] == "input" and row["verdict"] not in ("learning", "ended")]
        return {row["subject"] for row in told} == set(DEVICES)

    def _moved(self) -> dict[str, list[str]]:
        moved: dict[str, list[str]] = {}
        for row in self._drift():
            moved.setdefault(row["subject"], []).extend(c["name"] for c in row["channels"] if row["verdict"] == "alarm")
        return {device: channels for device, channels in moved.items() if channels}

    def _blocks(self) -> int:
        return sum(row["blocks"] for row in self._drift())

    def _drift(self) -> list[dict[str, Any]]:
        return [row for row in self.fleet.client.get("/api/v1/drift") if row["scope"] == "device"]

    def _told(self, at_least: int) -> int:
        """How many inferences the hub knows of; 0 while they are fewer."""
        n = sum(int(row["inferences"]) for row in self._devices())
        return n if n >= at_least else 0

    # How it is told.

    def _title(self, name: str, what: str) -> None:
        self.console.print(f"\n[bold]{name}[/bold]  {what}  [dim]{time.monotonic() - self.started:.0f} s[/dim]")

    def _say(self, text: str) -> None:
        self.console.print(f"   {text}", highlight=False)

    def _claim(self, seen: bool, text: str) -> None:
        self.claims.append(Claim(text, seen))
        mark = "[green]seen[/green]" if seen else "[red]NOT SEEN[/red]"
        self.console.print(f"   {mark} {text}", highlight=False)

    def _while(self, doing: str, work: Callable[[], T]) -> T:
        with self.console.status(f"   {doing} …"):
            return work()

    def _until(self, seen: Callable[[], T | None], seconds: float, what: str) -> T:
        return self.fleet.wait(seen, seconds, lambda: what)


def failure(error: EdgewrightError) -> Claim:
    return Claim(str(error), seen=False)
