"""What the agent costs a device: memory, disk, start, bytes on the wire and onto the flash.

    python benchmarks/agent_footprint.py [--quick] [--json] [--runtime litert|onnxruntime]

One real hub (HTTPS, embedded broker) and one agent in a process of its own, in a venv that holds `[agent,agent-tflite]`
or `[agent,agent-onnx]` and nothing else (made once, in .edgewright/venvs). The package is tests/data/tiny-1.0.0.ewp: 22
channels, 1 inference a second on real digits.

- PSS and Private_Dirty (/proc/PID/smaps) summed over the agent's processes: median of samples every 10 s for 10 min
  after 5 min of warm-up, as AWS measures Greengrass lite. A device has no hub on it: what the agent shares with another
  Python here (its library, libssl, the standard library's) is counted whole, as if only the rest of the system shared.
  `floor`: a process of the same venv, measured alike while no agent runs, that only imports numpy, msgspec, sqlite3,
  paho, ssl and the runtime. `pss_shared_mb` is PSS as the kernel divides it on this machine. Nothing else shall run.
- `peak_during_update_mb`: the highest PSS, the self-test's child included, sampled every 20 ms while a rollout of
  tiny-1.1.0 is fetched, tested, loaded and committed; minus that before it.
- `install_mb`: site-packages of the venv as pip left them, less pip and setuptools; of edgewright what is imported.
- `start_s`: from exec to the first answer, with a package on disk: median.
- Bytes: a proxy between agent and broker counts every MQTT packet, the TLS bytes and the TCP segments of real windows,
  whose length is shortened to `WINDOW_S` while the number of inferences in each stays that of 60 s, 300 s or 15 min. A
  day is then: one connection (handshake, subscription, birth, the first `desired`); 86400 / length reports with the
  broker's answers; one acknowledgement for as many windows as the hub waits for (the constants of `contracts.desired`),
  of the size seen; and the pings that the true length asks for by the keep-alive in the agent's CONNECT. What TLS and
  TCP add to a packet is what was seen over the same windows. The full run also counts whole minutes as they are: the
  bytes of the memory run, with windows of 60 s, as `mqtt_bytes_per_day.60s_direct`.
- `flash_bytes`: what the kernel was given to write (write_bytes of /proc/PID/io: whole pages): for the update, and for
  a day of 300 s windows, from the same shortened windows.

`--quick`: 3 s of memory, sampled twice a second after 1 s; 2 starts; 2 windows of each length. Under a minute; results
are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
from counting_proxy import HEADERS, CountingProxy, Link, Packet  # noqa: E402
from provenance import provenance  # noqa: E402

from edgewright.demo.fleet import LocalFleet  # noqa: E402
from edgewright.demo.processes import Processes  # noqa: E402
from edgewright_agent.console import status  # noqa: E402
from edgewright_contracts import desired, report  # noqa: E402
from edgewright_contracts.errors import Refused  # noqa: E402
from edgewright_contracts.package import unpack  # noqa: E402
from edgewright_models.digits import data  # noqa: E402

EXTRAS: Final = {"litert": "agent-tflite", "onnxruntime": "agent-onnx"}
FLOOR: Final = "import numpy, msgspec, sqlite3, ssl, paho.mqtt.client, {0}; print(); input()"
MODULES: Final = {"litert": "ai_edge_litert.interpreter", "onnxruntime": "onnxruntime"}
VERSIONS: Final = ("1.0.0", "1.1.0")
LENGTHS: Final = {"60s": 60, "300s": 300, "15min": 900}  # seconds, and inferences, of a window
WINDOW_S: Final = 1.0  # of the shortened ones
DAY_S: Final = 86400
ONCE: Final = ("connect", "connack", "subscribe", "suback", "status", "desired", "birth", "ack")  # of a connection


class Plan(msgspec.Struct, frozen=True):
    warm_s: float
    watch_s: float
    every_s: float
    starts: int
    windows: int


FULL: Final = Plan(warm_s=300, watch_s=600, every_s=10, starts=7, windows=20)
QUICK: Final = Plan(warm_s=1, watch_s=3, every_s=0.5, starts=2, windows=2)


class Memory(msgspec.Struct, frozen=True):
    """kB; `pss_shared` as the kernel says, `pss` with files that other Pythons of this machine hold, too, whole."""

    pss: int
    private_dirty: int
    pss_shared: int


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
    return python


def installed(python: Path) -> dict[str, Any]:
    """MB on disk, and the biggest parts."""
    site = next(python.parent.parent.glob("lib/python3*/site-packages"))
    sizes = {p.name: _size(p) for p in site.iterdir() if p.is_dir() and not p.name.startswith(("pip", "setuptools"))}
    for part in (
        "contracts/edgewright_contracts",
        "runtime/edgewright_runtime",
        "agent/edgewright_agent",
        "cli/edgewright",
    ):
        sizes["edgewright"] = sizes.get("edgewright", 0) + _size(ROOT / part)
    biggest = sorted(sizes, key=lambda name: -sizes[name])[:6]
    return {
        "total": round(sum(sizes.values()) / 1e6, 1),
        "biggest": {name: round(sizes[name] / 1e6, 1) for name in biggest},
    }


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


class Device:
    """The application under measurement."""

    def __init__(self, python: Path, home: Path, inputs: Path, runtime: str, every_s: float) -> None:
        self.began = time.monotonic()
        self.log = (home / "log.txt").open("ab")
        script = ROOT / "benchmarks" / "bare_device.py"
        command = [python, "-P", script, home, "tiny", inputs, runtime, str(every_s)]
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

    def memory(self) -> Memory:
        """Of the process and its children."""
        parts = [_smaps(pid) for pid in _family(self.process.pid)]
        return Memory(*(sum(column) for column in zip(*(msgspec.structs.astuple(p) for p in parts), strict=True)))

    def shared(self) -> int:
        """PSS of the process and its children in kB, at little cost."""
        total = 0
        for pid in _family(self.process.pid):
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            total += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        return total

    def written(self) -> int:
        io = Path(f"/proc/{self.process.pid}/io").read_text()
        return int(next(line for line in io.splitlines() if line.startswith("write_bytes")).split()[1])


def _family(pid: int) -> list[int]:
    found, tasks = [pid], Path(f"/proc/{pid}/task")
    try:
        for task in list(tasks.iterdir()):
            found += [int(child) for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        pass  # a child's end
    return found


def _smaps(pid: int) -> Memory:
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return Memory(0, 0, 0)
    others, pss, dirty, shared, file = _held(pid), 0, 0, 0, ""
    part: dict[str, int] = {}
    for line in text.splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            file = rest.split(None, 4)[4].strip() if rest.count(" ") >= 4 and "/" in rest else ""
        elif first in ("Rss:", "Pss:", "Private_Dirty:"):
            part[first] = int(rest.split()[0])
            if first == "Private_Dirty:":
                pss += part["Rss:"] if file in others else part["Pss:"]
                shared, dirty = shared + part["Pss:"], dirty + part["Private_Dirty:"]
    return Memory(pss, dirty, shared)


def _held(pid: int) -> set[str]:
    """Files that Pythons which are not of the family of `pid` have mapped."""
    found: set[str] = set()
    family = set(_family(pid))
    for place in Path("/proc").glob("[0-9]*/maps"):
        try:
            if int(place.parent.name) in family or "python" not in (place.parent / "comm").read_text():
                continue
            found |= {line.split(None, 5)[5] for line in place.read_text().splitlines() if "/" in line}
        except (OSError, IndexError):
            continue  # it ended
    return found


def median_memory(sample: Callable[[], Memory], plan: Plan) -> dict[str, float]:
    """MB."""
    samples = []
    for _ in range(max(1, round(plan.watch_s / plan.every_s))):
        time.sleep(plan.every_s)
        samples.append(sample())
    return {key: statistics.median(getattr(s, key) for s in samples) / 1024 for key in Memory.__struct_fields__}


def floor(python: Path, runtime: str) -> dict[str, float]:
    """Of the imports alone."""
    command = [python, "-P", "-c", FLOOR.format(MODULES[runtime])]
    bare = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    assert bare.stdout is not None
    bare.stdout.readline()
    found = _smaps(bare.pid)
    bare.communicate(b"\n")
    return {key: getattr(found, key) / 1024 for key in Memory.__struct_fields__}


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


def measure(fleet: LocalFleet, digests: list[str], runtime: str, inputs: Path, plan: Plan) -> dict[str, Any]:
    """Memory, start and update of one runtime."""
    python = venv(runtime)
    name = f"device-{runtime}"
    fleet.enrol([name], fleet=name)
    home = fleet.home(name)
    proxy = proxied(fleet, home)
    device = Device(python, home, inputs, runtime, 1.0)
    roll_out(fleet, digests[0], home, lambda: time.sleep(0.1))
    device.answered()
    device.end()
    least = floor(python, runtime)

    starts = []
    for _ in range(plan.starts):
        device = Device(python, home, inputs, runtime, 1.0)
        starts.append(device.answered())
        if len(starts) < plan.starts:
            device.end()
    time.sleep(plan.warm_s)
    at, began = len(proxy.links[-1].passed), time.monotonic()
    steady = median_memory(device.memory, plan)
    direct = sum(p.size for p in proxy.links[-1].passed[at:]) * DAY_S / (time.monotonic() - began)
    before, written = device.shared(), device.written()
    highest = [before]

    def watch() -> None:
        highest.append(max(highest.pop(), device.shared()))
        time.sleep(0.02)

    roll_out(fleet, digests[1], home, watch)
    found = {
        "memory_mb": steady,
        "floor_mb": least,
        "after_update_mb": {"pss": device.memory().pss / 1024},
        "peak_during_update_mb": (highest[0] - before) / 1024,
        "install": installed(python),
        "start_s": statistics.median(starts),
        "flash_per_update": device.written() - written,
        "mqtt_direct": round(direct),
        "proxy": proxy,
    }
    device.end()
    return found


def windows_of(
    fleet: LocalFleet, digest: str, home: Path, runtime: str, proxy: CountingProxy, inputs: Path, plan: Plan
) -> dict[str, Any]:
    """Bytes and pages of windows with as many inferences as 60 s, 300 s and 15 min have at 1 a second."""
    proxy.links.clear()
    device = Device(venv(runtime), home, inputs, runtime, 0.1)
    device.answered()
    roll_out(fleet, digest, home, lambda: time.sleep(0.1))  # only a new wish tells the device of shorter windows
    time.sleep(WINDOW_S)
    found = {}
    for label, n in LENGTHS.items():
        device.pace(WINDOW_S / n)
        time.sleep(2 * WINDOW_S)  # windows of two paces, and what was on its way
        link = proxy.links[-1]
        at, tls, segments, pages = len(link.passed), link.tls, link.segments, device.written()
        began = time.monotonic()
        time.sleep(plan.windows * WINDOW_S)
        windows = (time.monotonic() - began) / WINDOW_S
        part = Link(link.passed[at:], link.tls - tls, link.handshake, link.segments - segments, link.keepalive_s)
        found[label] = a_day(n, part, link.passed) | {"pages": round(DAY_S / n * (device.written() - pages) / windows)}
    device.end()
    return found


def a_day(length: int, part: Link, link: list[Packet]) -> dict[str, Any]:
    """86400 s of windows of `length` seconds, from what passed over shortened ones; `link` is the whole connection."""
    sizes: dict[str, list[int]] = {}
    for p in part.passed:
        sizes.setdefault(p.kind, []).append(p.size)
    mean = {kind: statistics.mean(of) for kind, of in sizes.items()}
    rows = [report.decode_report(p.payload).window.n for p in part.passed if p.kind == "report"]
    if not rows:
        raise SystemExit(f"expected reports, got {[(p.kind, p.size) for p in part.passed]}")
    windows = DAY_S / length
    acks = windows / min(desired.ACK_AFTER, -(-desired.ACK_S // length))
    pings = windows * max(0, -(-length // part.keepalive_s) - 1) if part.keepalive_s else 0
    first = {p.kind: p.size for p in reversed(link) if p.kind in ONCE}
    packets = 2 * (windows + acks + pings) + len(first) + 4  # each has an answer; four of a connection are published
    mqtt = sum(first.values()) + 4 * 4 + windows * (mean["report"] + 4) + acks * (first["ack"] + 4) + pings * 4
    in_tls = part.handshake + mqtt + packets * (part.tls - sum(p.size for p in part.passed)) / len(part.passed)
    return {
        "mqtt": round(mqtt),
        "tls": round(in_tls),
        "tcp_ip": round(in_tls + packets * HEADERS * part.segments / len(part.passed)),
        "n": statistics.median(rows),
        "report": round(mean["report"], 1),
        "ack": first["ack"],
        "acks": round(acks),
        "pings": round(pings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter; under a minute; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    parser.add_argument("--runtime", choices=list(EXTRAS), action="append", help="these only; results are not written")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    runtimes = arguments.runtime or list(EXTRAS)
    for runtime in runtimes:
        venv(runtime)
    with tempfile.TemporaryDirectory(dir=ROOT / ".edgewright") as folder, Processes(Path(folder)) as processes:
        fleet = LocalFleet(Path(folder), processes)
        fleet.make_owner()
        fleet.packages.mkdir()
        for version in VERSIONS:
            unpack(ROOT / "tests" / "data" / f"tiny-{version}.ewp", fleet.packages / version)
        images, _ = data.feed(np.random.default_rng(0), 200)
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, image=images)
        fleet.start_hub("--window-s=60", "--tick-s=0.2")
        found = {}
        digests = [fleet.publish(fleet.packages / version) for version in VERSIONS]
        for runtime in runtimes:
            found[runtime] = measure(fleet, digests, runtime, inputs, plan)
            show(runtime, found[runtime])
        fleet.processes.end("hub")
        fleet.start_hub(f"--window-s={WINDOW_S}", f"--ack-interval-s={2 * WINDOW_S}")  # so that some are seen
        home, first = fleet.home(f"device-{runtimes[0]}"), runtimes[0]
        bytes_ = windows_of(fleet, digests[0], home, first, found[first]["proxy"], inputs, plan)
        for one in found.values():
            one["proxy"].close()
    for label, row in bytes_.items():
        print(
            f"{label:>5}: {row['mqtt'] / 1e3:.1f} kB MQTT, {row['tls'] / 1e3:.1f} kB TLS, {row['tcp_ip'] / 1e3:.1f} kB "
            f"TCP/IP a day; a report of {row['n']:g} is {row['report']:g} B, {row['acks']} acks of {row['ack']:g} B, "
            f"{row['pings']} pings; {row['pages'] / 1e3:.0f} kB of pages",
            flush=True,
        )
    result = {
        "pss_mb": {r: round(f["memory_mb"]["pss"], 1) for r, f in found.items()},
        "pss_floor_mb": {r: round(f["floor_mb"]["pss"], 1) for r, f in found.items()},
        "private_dirty_mb": {r: round(f["memory_mb"]["private_dirty"], 1) for r, f in found.items()},
        "private_dirty_floor_mb": {r: round(f["floor_mb"]["private_dirty"], 1) for r, f in found.items()},
        "pss_shared_mb": {r: round(f["memory_mb"]["pss_shared"], 1) for r, f in found.items()},
        "pss_after_update_mb": {r: round(f["after_update_mb"]["pss"], 1) for r, f in found.items()},
        "peak_during_update_mb": {r: round(f["peak_during_update_mb"], 1) for r, f in found.items()},
        "install_mb": {r: f["install"]["total"] for r, f in found.items()},
        "install_biggest_mb": {r: f["install"]["biggest"] for r, f in found.items()},
        "start_s": {r: round(f["start_s"], 2) for r, f in found.items()},
        "mqtt_bytes_per_day": {k: row["mqtt"] for k, row in bytes_.items()}
        | ({} if arguments.quick else {"60s_direct": found[first]["mqtt_direct"]}),
        "tls_bytes_per_day": {k: row["tls"] for k, row in bytes_.items()},
        "tcp_ip_bytes_per_day": {k: row["tcp_ip"] for k, row in bytes_.items()},
        "flash_bytes": {
            "per_update": max(f["flash_per_update"] for f in found.values()),
            "per_day": bytes_["300s"]["pages"],
        },
    }
    if not arguments.quick and not arguments.runtime:
        target = ROOT / "benchmarks" / "results" / "agent_footprint.json"
        target.write_text(json.dumps({**result, "windows": bytes_, **provenance()}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))


def show(runtime: str, one: dict[str, Any]) -> None:
    memory, least = one["memory_mb"], one["floor_mb"]
    print(
        f"{runtime}: PSS {memory['pss']:.1f} MB (imports alone {least['pss']:.1f}), Private_Dirty "
        f"{memory['private_dirty']:.1f} ({least['private_dirty']:.1f}), as shared here {memory['pss_shared']:.1f}; "
        f"update +{one['peak_during_update_mb']:.1f} MB; starts in {one['start_s']:.2f} s; "
        f"installed {one['install']['total']:.0f} MB {one['install']['biggest']}; "
        f"{one['flash_per_update'] / 1e3:.0f} kB of pages an update",
        flush=True,
    )


if __name__ == "__main__":
    main()
