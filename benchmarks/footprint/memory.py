"""Memory of a process and its children, from /proc/PID/smaps."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path
from typing import Final

import msgspec

FLOOR: Final = "import numpy, msgspec, sqlite3, ssl, paho.mqtt.client, {0}; print(); input()"
MODULES: Final = {"litert": "ai_edge_litert.interpreter", "onnxruntime": "onnxruntime"}


class Memory(msgspec.Struct, frozen=True):
    """kB; `pss_shared` as the kernel says, `pss` with files that other Pythons of this machine hold, too, whole."""

    pss: int
    private_dirty: int
    pss_shared: int


def steady(pid: int, watch_s: float, every_s: float) -> dict[str, float]:
    """MB: the median of samples every `every_s` over `watch_s`."""
    samples = []
    for _ in range(max(1, round(watch_s / every_s))):
        time.sleep(every_s)
        samples.append(now(pid))
    return {key: statistics.median(getattr(s, key) for s in samples) / 1024 for key in Memory.__struct_fields__}


def now(pid: int) -> Memory:
    """Of the process and its children."""
    parts = [_smaps(one) for one in _family(pid)]
    return Memory(*(sum(column) for column in zip(*(msgspec.structs.astuple(p) for p in parts), strict=True)))


def shared(pid: int) -> int:
    """PSS of the process and its children in kB, at little cost."""
    total = 0
    for one in _family(pid):
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total


def floor(python: Path, runtime: str) -> dict[str, float]:
    """Of the imports alone."""
    command = [python, "-P", "-c", FLOOR.format(MODULES[runtime])]
    bare = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    assert bare.stdout is not None
    bare.stdout.readline()
    found = _smaps(bare.pid)
    bare.communicate(b"\n")
    return {key: getattr(found, key) / 1024 for key in Memory.__struct_fields__}


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
