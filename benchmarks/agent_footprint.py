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
- Bytes of a day, MQTT, TLS and TCP/IP: footprint/wire.py tells how, from shortened windows. The full run also counts
  whole minutes as they are: the bytes of the memory run, with windows of 60 s, as `mqtt_bytes_per_day.60s_direct`.
- `flash_bytes`: what the kernel was given to write (write_bytes of /proc/PID/io: whole pages): for the update, and for
  a day of 300 s windows, from the same shortened windows.

`--quick`: 3 s of memory, sampled twice a second after 1 s; 2 starts; 2 windows of each length. Under a minute; results
are not written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from footprint import memory, wire
from footprint.device import EXTRAS, ROOT, Device, proxied, roll_out, venv
from footprint.install import installed
from provenance import provenance

from edgewright.demo.fleet import LocalFleet
from edgewright.demo.processes import Processes
from edgewright_contracts.package import unpack
from edgewright_models.digits import data

VERSIONS: Final = ("1.0.0", "1.1.0")


class Plan(msgspec.Struct, frozen=True):
    warm_s: float
    watch_s: float
    every_s: float
    starts: int
    windows: int


FULL: Final = Plan(warm_s=300, watch_s=600, every_s=10, starts=7, windows=20)
QUICK: Final = Plan(warm_s=1, watch_s=3, every_s=0.5, starts=2, windows=2)


def measure(fleet: LocalFleet, digests: list[str], runtime: str, inputs: Path, plan: Plan) -> dict[str, Any]:
    """Memory, start and update of one runtime."""
    name = f"device-{runtime}"
    fleet.enrol([name], fleet=name)
    home = fleet.home(name)
    proxy = proxied(fleet, home)
    device = Device(home, inputs, runtime, 1.0)
    roll_out(fleet, digests[0], home, lambda: time.sleep(0.1))
    device.answered()
    device.end()
    least = memory.floor(venv(runtime), runtime)

    starts = []
    for _ in range(plan.starts):
        device = Device(home, inputs, runtime, 1.0)
        starts.append(device.answered())
        if len(starts) < plan.starts:
            device.end()
    time.sleep(plan.warm_s)
    at, began = len(proxy.links[-1].passed), time.monotonic()
    pid = device.process.pid
    steady = memory.steady(pid, plan.watch_s, plan.every_s)
    direct = sum(p.size for p in proxy.links[-1].passed[at:]) * wire.DAY_S / (time.monotonic() - began)
    before, written = memory.shared(pid), device.written()
    highest = [before]

    def watch() -> None:
        highest.append(max(highest.pop(), memory.shared(pid)))
        time.sleep(0.02)

    roll_out(fleet, digests[1], home, watch)
    found = {
        "memory_mb": steady,
        "floor_mb": least,
        "after_update_mb": {"pss": memory.now(pid).pss / 1024},
        "peak_during_update_mb": (highest[0] - before) / 1024,
        "install": installed(venv(runtime)),
        "start_s": statistics.median(starts),
        "flash_per_update": device.written() - written,
        "mqtt_direct": round(direct),
        "proxy": proxy,
    }
    device.end()
    return found


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
        rows = np.zeros(len(images), [("image", images.dtype, images.shape[1:])])
        rows["image"] = images
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, rows)
        fleet.start_hub("--window-s=60", "--tick-s=0.2")
        found = {}
        digests = [fleet.publish(fleet.packages / version) for version in VERSIONS]
        for runtime in runtimes:
            found[runtime] = measure(fleet, digests, runtime, inputs, plan)
            show(runtime, found[runtime])
        fleet.processes.end("hub")
        fleet.start_hub(f"--window-s={wire.WINDOW_S}", f"--ack-interval-s={2 * wire.WINDOW_S}")  # so that some are seen
        home, first = fleet.home(f"device-{runtimes[0]}"), runtimes[0]
        bytes_ = wire.windows_of(fleet, digests[0], home, first, found[first]["proxy"], inputs, plan.windows)
        for one in found.values():
            one["proxy"].close()
    for label, row in bytes_.items():
        print(
            f"{label:>5}: {row['mqtt'] / 1e3:.1f} kB MQTT, {row['tls'] / 1e3:.1f} kB TLS, {row['tcp_ip'] / 1e3:.1f} kB "
            f"TCP/IP a day; a report of {row['n']:g} is {row['report']:g} B, {row['acks']} acks of {row['ack']:g} B, "
            f"{row['pings']} pings (keep-alive {row['keepalive_s']} s); {row['pages'] / 1e3:.0f} kB of pages",
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
