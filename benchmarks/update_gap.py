"""What an update does to a device that is asked 200 times a second, and how many bytes it takes.

    python benchmarks/update_gap.py [--quick] [--json]

A real hub, and a device in a process of its own on this same machine. Each repetition is `QUIET_S` without an update
and then one whole update: the hub's wish, TUF, the download (patches where the hub has made them), the self-test's
child, the warm-up, the switch, the probation, the commit; at least `QUIET_S` too. The packages are four versions of one
small net (tuned_packages.py), taken in turn, so that no slot holds the next one already.

A gap is the time between two consecutive answers, 5 ms apart when nothing disturbs. `gap_p999_ratio` is the 99.9 %
quantile of the gaps during the update over that just before it: the median over the repetitions, in process and through
the Open Inference Protocol; the worse of the two counts. `dropped` is what was asked and not answered, in all of them.
`update_fraction` is what the update from `base` brings over the link (patches of model, reference counts and
self-test; files whole where no patch is worth its bytes), over the same files whole.

`--quick`: one repetition of 3 s of each; under a minute; results are not written.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import tuned_packages  # noqa: E402
from footprint.device import roll_out  # noqa: E402
from provenance import provenance  # noqa: E402

from edgewright.demo.fleet import LocalFleet, free_port  # noqa: E402
from edgewright.demo.processes import Processes  # noqa: E402
from edgewright_contracts import delta  # noqa: E402
from edgewright_contracts.package import Package  # noqa: E402

EVERY_S: Final = 1 / 200
QUIET_S: Final = 6.0


class Plan(msgspec.Struct, frozen=True):
    quiet_s: float
    in_process: int  # repetitions
    protocol: int


FULL: Final = Plan(QUIET_S, 10, 10)
QUICK: Final = Plan(3.0, 1, 1)

Answers = np.ndarray  # int64[n, 2]: when asked, when answered; monotonic ns
Span = tuple[int, int]


class InProcess:
    """bare_device.py, which asks by itself."""

    def __init__(self, fleet: LocalFleet, home: Path, inputs: Path) -> None:
        self.answers = home / "answers.npy"
        script = ROOT / "benchmarks" / "bare_device.py"
        command = [sys.executable, "-P", script, home, "tuned", inputs, "onnxruntime", str(EVERY_S), self.answers]
        self.log = (fleet.root / "logs" / f"{home.name}.log").open("wb")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "answered\n", Path(self.log.name).read_text()[-2000:]

    def end(self) -> tuple[Answers, list[str]]:
        out, _ = self.process.communicate(timeout=30)
        self.log.close()
        return np.load(self.answers), json.loads(out)["failed"]


class Protocol:
    """`edgewright agent run --listen`, and a client on one connection in this process."""

    def __init__(self, fleet: LocalFleet, home: Path, inputs: Path) -> None:
        self.port, self._stop = free_port(), threading.Event()
        given = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32"}
        images = np.load(inputs)["image"][:200]
        rows = [{"inputs": [{**given, "data": row.reshape(-1).tolist()}]} for row in images]
        self._bodies = [json.dumps(row) for row in rows]
        self.times: list[tuple[int, int]] = []
        self.failed: list[str] = []
        run = ["agent", "run", f"--home={home}", f"--listen=127.0.0.1:{self.port}"]
        fleet.processes.start(home.name, [sys.executable, "-m", "edgewright", *run])
        self._fleet, self._name = fleet, home.name
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def ready(self) -> None:
        deadline = time.monotonic() + 30
        while not self.times:
            if time.monotonic() > deadline:
                raise SystemExit(f"the daemon does not answer:\n{self._fleet.processes.tail(self._name)}")
            time.sleep(0.1)

    def _once(self, connection: http.client.HTTPConnection, i: int) -> bool:
        body = self._bodies[i % len(self._bodies)]
        try:
            connection.request("POST", "/v2/models/tuned/infer", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(repr(error))
            connection.close()
            return False
        if answer.status != 200:
            self.failed.append(said.decode()[:200])
        return answer.status == 200

    def _ask(self) -> None:
        connection, due, i = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5), time.monotonic(), 0
        while not self._stop.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + EVERY_S, time.monotonic() - 0.1)
            began = time.monotonic_ns()
            if self._once(connection, i):
                if not self.times:
                    self.failed.clear()  # there was no package yet
                self.times.append((began, time.monotonic_ns()))
            i += 1
        connection.close()

    def end(self) -> tuple[Answers, list[str]]:
        self._stop.set()
        self._thread.join()
        self._fleet.processes.end(self._name)
        return np.array(self.times, np.int64).reshape(-1, 2), self.failed


def repeat(
    fleet: LocalFleet,
    digests: list[str],
    name: str,
    kind: type[InProcess] | type[Protocol],
    inputs: Path,
    plan: Plan,
    n: int,
) -> dict[str, Any]:
    """Of one device: the gaps of each repetition, and what was not answered."""
    fleet.enrol([name], fleet=name)
    home = fleet.home(name)
    device = kind(fleet, home, inputs)
    roll_out(fleet, digests[0], home, lambda: time.sleep(0.1), model="tuned")
    device.ready()
    time.sleep(2.0)
    spans: list[tuple[Span, Span]] = []
    for i in range(n):
        while any(r["fleet"] == name and r["state"] == "running" for r in fleet.client.get("/api/v1/rollouts")):
            time.sleep(0.2)  # the hub still watches the one before
        began = time.monotonic_ns()
        time.sleep(plan.quiet_s)
        wished = time.monotonic_ns()
        roll_out(fleet, digests[(i + 1) % len(digests)], home, lambda: time.sleep(0.05), model="tuned")
        time.sleep(max(0.0, plan.quiet_s - (time.monotonic_ns() - wished) / 1e9))
        spans.append(((began, wished), (wished, time.monotonic_ns())))
    answers, failed = device.end()
    quiet, update = ([gaps(answers, pair[k]) for pair in spans] for k in (0, 1))
    p999 = [(float(np.quantile(q, 0.999)), float(np.quantile(u, 0.999))) for q, u in zip(quiet, update, strict=True)]
    return {
        "ratio": statistics.median(u / q for q, u in p999),
        "quiet_p999_ms": statistics.median(q for q, _ in p999),
        "update_p999_ms": statistics.median(u for _, u in p999),
        "quiet_longest_ms": max(float(q.max()) for q in quiet),
        "update_longest_ms": max(float(u.max()) for u in update),
        "update_s": statistics.median((b - a) / 1e9 for _, (a, b) in spans),
        "answered": len(answers),
        "dropped": len(failed),
        "why": failed[:3],
    }


def gaps(answers: Answers, span: Span) -> np.ndarray:
    """ms between consecutive answers within the span."""
    at = answers[:, 1]
    return np.diff(at[(at >= span[0]) & (at < span[1])]) / 1e6


def fractions(fleet: LocalFleet, packages: dict[str, Package]) -> dict[str, dict[str, float]]:
    """Of what an update from `base` brings, over the same files whole."""
    base, repo = packages["base"], fleet.hub_data / "repo"
    files = _files(base)
    found: dict[str, dict[str, float]] = {"all": {}, "model": {}}
    for name in ("head", "light", "full"):
        sizes = {file: packages[name].manifest.files[file].size for file in files}
        brought = {file: _brought(repo, base, packages[name], file) for file in files}
        found["all"][name] = round(sum(brought.values()) / sum(sizes.values()), 4)
        found["model"][name] = round(brought[files[0]] / sizes[files[0]], 4)
    return found


def patched(fleet: LocalFleet, packages: dict[str, Package]) -> bool:
    """Whether the hub has tried all patches from `base`, in the background."""
    repo, base = fleet.hub_data / "repo", packages["base"].manifest.files
    pairs = [(base[file], one.manifest.files[file]) for one in packages.values() for file in _files(one)]
    places = [(repo / delta.path(old.sha256, new.sha256), new) for old, new in pairs if delta.fits(old, new)]
    return all(place.exists() or (place.parent / f".{new.sha256}.none").exists() for place, new in places)


def _files(package: Package) -> tuple[str, ...]:
    variant = package.manifest.variants[0]
    return variant.model, variant.baseline, variant.selftest


def _brought(repo: Path, base: Package, package: Package, file: str) -> int:
    old, new = base.manifest.files[file], package.manifest.files[file]
    if old.sha256 == new.sha256:
        return 0
    patch = repo / delta.path(old.sha256, new.sha256)
    return patch.stat().st_size if patch.exists() else new.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter; under a minute; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    (ROOT / ".edgewright").mkdir(exist_ok=True)
    weights = tuned_packages.trained()
    with tempfile.TemporaryDirectory(dir=ROOT / ".edgewright") as folder, Processes(Path(folder)) as processes:
        fleet = LocalFleet(Path(folder), processes)
        fleet.make_owner()
        packages = {
            name: tuned_packages.write(weights[name], f"1.{i}.0", fleet.packages / name)
            for i, name in enumerate(tuned_packages.NAMES)
        }
        inputs = Path(folder) / "inputs.npy"
        images = tuned_packages.rows(11, 500)
        table = np.zeros(len(images), [("image", images.dtype, images.shape[1:])])
        table["image"] = images
        np.save(inputs, table)
        fleet.start_hub("--window-s=60", "--tick-s=0.2", "--ack-interval-s=0.5")  # many updates in a minute
        digests = [fleet.publish(one.root) for one in packages.values()]
        fleet.wait(lambda: patched(fleet, packages), 120, lambda: "the hub's patches")
        fraction = fractions(fleet, packages)
        found = {}
        for label, kind, n in (("in_process", InProcess, plan.in_process), ("protocol", Protocol, plan.protocol)):
            one = found[label] = repeat(fleet, digests, label.replace("_", "-"), kind, inputs, plan, n)
            print(
                f"{label}: p99.9 of the gaps {one['quiet_p999_ms']:.1f} ms, during an update "
                f"{one['update_p999_ms']:.1f} ms (x{one['ratio']:.2f}, {n} repetitions); longest "
                f"{one['quiet_longest_ms']:.1f} and {one['update_longest_ms']:.1f} ms; "
                f"{one['answered']} answered, {one['dropped']} dropped {one['why']}",
                flush=True,
            )
    for label, row in fraction.items():
        print(f"bytes of an update, {label}: " + ", ".join(f"{key} {value:.1%}" for key, value in row.items()))
    result = {
        "gap_p999_ratio": round(max(one["ratio"] for one in found.values()), 3),
        "dropped": sum(one["dropped"] for one in found.values()),
        "update_fraction": fraction["all"],
        "model_fraction": fraction["model"],
    }
    if not arguments.quick:
        target = ROOT / "benchmarks" / "results" / "update_gap.json"
        target.write_text(json.dumps({**result, "runs": found, **provenance()}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
