"""The agent under qemu-user: `scripts/test_arm64.sh` (`make test-arm64`) makes the root and calls this.

    python scripts/test_arm64.py requirements      what the root's venv needs beside edgewright
    python scripts/test_arm64.py run ROOT          the test; docs/arm64.md holds its log

A real hub runs here; one device with each runtime runs in ROOT, where every process, the self-test's child among them,
is an aarch64 one. Each device takes tests/data/tiny-1.0.0.ewp through all states of an update, over TUF, TLS and MQTT.
Then its file answers 200 rows there and here, and the answers are compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np

from edgewright.demo.fleet import LocalFleet
from edgewright.demo.processes import Processes
from edgewright_agent.console import status
from edgewright_contracts.package import read_package, unpack
from edgewright_models.digits import data

HERE = Path(__file__).resolve().parent.parent
EXTRAS = ("agent", "agent-tflite", "agent-onnx", "agent-delta")
RUNTIMES = ("litert", "onnxruntime")
PATIENCE_S = 240.0
ANSWER = """
import platform, sys
import numpy as np
from pathlib import Path
from edgewright_contracts.package import read_package
from edgewright_runtime.runtime import open_session
package = read_package(Path(sys.argv[1])); m = package.manifest; v = m.variant(sys.argv[2])
session = open_session(package.root / v.model, sys.argv[3], inputs=m.inputs, outputs=m.outputs)
rows = np.load(sys.argv[4])["image"][:200]
found = [session.run({"image": row[None]}) for row in rows]
np.savez(sys.argv[5], **{k: np.concatenate([f[k] for f in found]) for k in found[0]})
print(platform.machine())
"""


def requirements() -> list[str]:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(one for extra in EXTRAS for one in extras[extra])]


def run(root: Path) -> None:
    place = root / "fleet"
    subprocess.run(["rm", "-rf", place], check=True)
    place.mkdir(parents=True)
    with Processes(place) as processes:
        fleet = LocalFleet(place, processes)
        fleet.make_owner()
        unpack(HERE / "tests" / "data" / "tiny-1.0.0.ewp", fleet.packages / "1.0.0")
        images, labels = data.feed(np.random.default_rng(0), 200)
        np.savez(place / "inputs.npz", image=images)
        (place / "bare_device.py").write_bytes((HERE / "benchmarks" / "bare_device.py").read_bytes())
        fleet.start_hub("--tick-s=0.5", "--window-s=2")
        fleet.enrol(list(RUNTIMES))
        began = time.monotonic()
        environment = ["/usr/bin/env", "-i", "HOME=/root", "PATH=/usr/bin:/bin", "OMP_NUM_THREADS=1"]
        inside = ["nice", "chroot", str(root), *environment, "/device/bin/python", "-P"]
        feeds = []
        for runtime in RUNTIMES:
            command = [
                *inside,
                "/fleet/bare_device.py",
                f"/fleet/devices/{runtime}",
                "tiny",
                "/fleet/inputs.npz",
                runtime,
                "0.5",
            ]
            log = (place / "logs" / runtime).open("wb")
            feeds.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log))
        try:
            digest = fleet.publish(fleet.packages / "1.0.0")
            spec = {
                "model": "tiny", "digest": digest, "fleet": "demo", "stages": ["100%"], "window_s": 2.0,
                "probation": {"windows": 1, "max_s": 600.0}, "gate": {"slow": None, "label": None, "soak_windows": 1},
            }  # fmt: skip
            fleet.roll_out(spec)
            for runtime in RUNTIMES:
                follow(fleet, runtime, digest, began)
            devices = {d["device"]: d for d in fleet.client.get("/api/v1/devices")}
            for runtime in RUNTIMES:
                born = devices[runtime]["birth"]
                print(f"{runtime}: the hub knows it as {born['hardware']['arch']} with {born['runtimes']}")
                assert born["hardware"]["arch"] == "aarch64"
                assert devices[runtime]["inferences"] > 0
        finally:
            for feed in feeds:
                feed.communicate(timeout=120)
        for runtime in RUNTIMES:
            for variant in read_package(fleet.packages / "1.0.0").manifest.variants:
                if (variant.format == "onnx") == (runtime == "onnxruntime"):
                    compare(root, inside, variant.id, runtime, labels)


def follow(fleet: LocalFleet, runtime: str, digest: str, began: float) -> None:
    """Say each state as it is seen, until the package is committed."""
    seen: list[str] = []

    def committed() -> bool:
        models = status.read(fleet.home(runtime)).models
        if models and (not seen or seen[-1] != models[0].state):
            seen.append(models[0].state)
        if models and models[0].failure:
            raise SystemExit(f"{runtime}: {models[0].state}: {models[0].reason}")
        running = models[0].running if models else None
        return running is not None and running.digest == digest and models[0].state == "idle"

    fleet.wait(
        committed, PATIENCE_S, lambda: f"{runtime}: {seen}; {(fleet.root / 'logs' / runtime).read_text()[-1500:]}"
    )
    slot = status.read(fleet.home(runtime)).models[0].running
    assert slot is not None
    print(f"{runtime}: committed {slot.variant} on {slot.runtime} after {time.monotonic() - began:.0f} s; seen {seen}")


def compare(root: Path, inside: list[str], variant: str, runtime: str, labels: np.ndarray) -> None:
    """The same file, rows and script on both processors."""
    script, fleet = root / "fleet" / "answer.py", root / "fleet"
    script.write_text(ANSWER)
    there = [variant, runtime, "/fleet/inputs.npz", "/fleet/there.npz"]
    said = subprocess.run(
        [*inside, "/fleet/answer.py", "/fleet/packages/1.0.0", *there], check=True, capture_output=True
    )
    here = [variant, runtime, fleet / "inputs.npz", fleet / "here.npz"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, fleet / "packages" / "1.0.0", *here]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    with np.load(fleet / "there.npz") as a, np.load(fleet / "here.npz") as b:
        apart = {k: float(np.abs(a[k] - b[k]).max()) for k in a.files}
        same = float(np.mean(a["probabilities"].argmax(1) == b["probabilities"].argmax(1)))
        right = [float(np.mean(x["probabilities"].argmax(1) == labels)) for x in (a, b)]
    limit = 1e-4 if variant.endswith("fp32") else 0.05
    print(
        f"{variant} on {runtime}, {said.stdout.decode().strip()} against here: largest difference "
        + ", ".join(f"{k} {v:.2g}" for k, v in apart.items())
        + f"; same class {same:.1%}; right {right[0]:.1%} there, {right[1]:.1%} here"
    )
    assert apart["probabilities"] <= limit or same >= 0.99


if __name__ == "__main__":
    if sys.argv[1] == "requirements":
        print("\n".join(requirements()))
    else:
        run(Path(sys.argv[2]).resolve())
