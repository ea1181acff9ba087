"""Bench: load time, latency and memory of the installed model on this device, in a process of its own.

It may run beside an agent that answers, and then says what is left for it. Cost: at most 4 s of one core for a small
model. `python -m edgewright_agent.console.bench HOME MODEL` prints one JSON object.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts.built import built
from edgewright_contracts.errors import Unavailable

from ..updating.measurement import resident_mb, restart_peak
from .sideline import installed, opened

RUNS: Final = 1000
RUN_S: Final = 3.0
WARM_UP: Final = 3
LONGEST_S: Final = 120.0


class Bench(msgspec.Struct, frozen=True):
    """Milliseconds of one sample, wall time; `rss_mb` is the peak of the process, `base_mb` before it had a model."""

    model: str
    version: str
    digest: str
    variant: str
    runtime: str
    runs: int
    p50_ms: float
    p95_ms: float
    max_ms: float
    load_ms: float
    rss_mb: float
    base_mb: float


def bench(home: Path, name: str) -> Bench:
    """Measure in a child. Raises RequestError for a model that is not installed, Unavailable when the child fails."""
    installed(home, name)
    command = [sys.executable, "-m", "edgewright_agent.console.bench", str(home), name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} is not measured after {LONGEST_S:.0f} s; the device is busy, or it hangs") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise Unavailable(f"measuring {name} failed (exit {done.returncode}): {said[0][:500]}")
    return msgspec.json.decode(done.stdout, type=built(Bench))


def measure(home: Path, name: str) -> Bench:
    """In this process."""
    package, slot = installed(home, name)
    manifest = package.manifest
    variant = manifest.variant(slot.variant)
    with np.load(io.BytesIO(package.read(variant.selftest)), allow_pickle=False) as arrays:
        row = {t.name: arrays[f"input:{t.name}"][:1] for t in manifest.inputs}
    restart_peak()
    base = resident_mb("VmRSS")
    start = time.perf_counter()
    session = opened(package, slot)
    load = time.perf_counter() - start
    for _ in range(WARM_UP):
        session.run(row)
    took: list[float] = []
    end = time.perf_counter() + RUN_S
    while len(took) < RUNS and (time.perf_counter() < end or len(took) < WARM_UP):
        start = time.perf_counter()
        session.run(row)
        took.append((time.perf_counter() - start) * 1e3)
    took.sort()
    return Bench(
        model=name,
        version=manifest.version,
        digest=package.digest,
        variant=slot.variant,
        runtime=slot.runtime,
        runs=len(took),
        p50_ms=round(took[len(took) // 2], 4),
        p95_ms=round(took[int(0.95 * (len(took) - 1))], 4),
        max_ms=round(took[-1], 4),
        load_ms=round(load * 1e3, 2),
        rss_mb=round(resident_mb("VmHWM"), 1),
        base_mb=round(base, 1),
    )


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(measure(Path(sys.argv[1]), sys.argv[2])).decode() + "\n")
