"""The device under measurement: a venv with the agent and one runtime in it and nothing else, and a process of it.

The venv is made once, in .edgewright/venvs; the agent in it is this checkout, compiled as pip leaves a wheel: what a
device compiles at its start costs time and memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from counting_proxy import CountingProxy

from edgewright.demo.fleet import LocalFleet
from edgewright_agent.console import status
from edgewright_contracts.errors import Refused

ROOT: Final = Path(__file__).resolve().parents[2]
EXTRAS: Final = {"litert": "agent-tflite", "onnxruntime": "agent-onnx"}
SOURCES: Final = (
    "contracts/edgewright_contracts", "runtime/edgewright_runtime", "agent/edgewright_agent", "cli/edgewright",
)  # fmt: skip


def venv(runtime: str) -> Path:
    """The Python of a venv with the agent and this runtime only."""
    folder = ROOT / ".edgewright" / "venvs" / EXTRAS[runtime].replace("agent-", "agent-only-")
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"making {folder.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        asked = ["--constraint", ROOT / "constraints.txt", "--editable", f".[agent,{EXTRAS[runtime]}]"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *asked], cwd=ROOT, check=True)
        done.touch()
    packages = next(folder.glob("lib/python*/site-packages"))  # a folder that was copied has stale .pyc files: 4 MB
    subprocess.run([python, "-m", "compileall", "-q", *SOURCES, packages], cwd=ROOT, check=True)
    return python


class Device:
    """The application under measurement: `bare_device.py` in a process of its own."""

    def __init__(self, home: Path, inputs: Path, runtime: str, every_s: float) -> None:
        self.began = time.monotonic()
        self.log = (home / "log.txt").open("ab")
        script = ROOT / "benchmarks" / "bare_device.py"
        command = [venv(runtime), "-P", script, home, "tiny", inputs, runtime, str(every_s)]
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **own},
            text=True,
        )

    def answered(self) -> float:
        """Seconds from exec to the first answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "answered\n", (line, Path(self.log.name).read_text()[-2000:])
        return time.monotonic() - self.began

    def pace(self, every_s: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{every_s}\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=30)
        self.log.close()
        found: dict[str, Any] = json.loads(out)
        return found

    def written(self) -> int:
        io = Path(f"/proc/{self.process.pid}/io").read_text()
        return int(next(line for line in io.splitlines() if line.startswith("write_bytes")).split()[1])


def roll_out(fleet: LocalFleet, digest: str, home: Path, sample: Callable[[], None], model: str = "tiny") -> None:
    """To the device in `home`, a fleet by itself; calls `sample` until it has committed."""
    spec = {
        "model": model, "digest": digest, "fleet": home.name, "stages": ["100%"], "window_s": 0.5,
        "probation": {"windows": 1, "max_s": 60.0},
        "gate": {"error": {"r0": 1.1, "r1": 1.5, "delta": 0.5}, "slow": None, "label": None, "soak_windows": 1},
    }  # fmt: skip
    deadline = time.monotonic() + 40
    while not _begun(fleet, spec):
        time.sleep(0.2)
    while True:
        sample()
        models = status.read(home).models
        running = models[0].running if models else None
        if running and running.digest == digest and models[0].state == "idle":
            return
        fleet.processes.check()
        if time.monotonic() > deadline:
            raise SystemExit(f"the device did not commit {digest[:16]}; it says: {models}")


def _begun(fleet: LocalFleet, spec: dict[str, Any]) -> bool:
    try:
        fleet.roll_out(spec)
    except Refused as error:
        if "is running" not in str(error):  # the one before: its device has committed, and it still watches
            raise
        return False
    return True


def proxied(fleet: LocalFleet, home: Path) -> CountingProxy:
    """A proxy that the device in `home` takes for its broker from its next start on."""
    place, ca = home / "identity" / "hub.json", fleet.hub_data / "ca"
    said = json.loads(place.read_text())
    broker = said["broker"]
    proxy = CountingProxy((broker["host"], broker["port"]), (ca / "server.pem", ca / "server.key"), home / "identity")
    place.write_text(json.dumps({**said, "broker": {**broker, "port": proxy.port}}))
    return proxy
