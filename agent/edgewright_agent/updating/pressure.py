"""Memory pressure: who ended a process that died of SIGKILL?

A model cannot send itself that signal, so it is never its word: either the kernel ran out of memory, and counted it, or
somebody outside the device's software did it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_OOM: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills(root: Path = Path("/")) -> dict[str, int]:
    """Path → processes that the kernel killed for want of memory: of the machine, and of this process's cgroups.

    `root` holds proc and sys; what a kernel does not tell is left out.
    """
    found = {}
    for path in (root / "proc/vmstat", *_of_cgroups(root)):
        try:
            counted = _OOM.search(path.read_text())
        except OSError:
            continue
        if counted:
            found[str(path)] = int(counted[1])
    return found


def rose(before: dict[str, int], after: dict[str, int]) -> bool:
    return any(after.get(path, count) > count for path, count in before.items())


def _of_cgroups(root: Path) -> list[Path]:
    """Version 2 has one line `0::/path`; version 1 one for each controller, `4:memory:/path`."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    places = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            places.append(root / "sys/fs/cgroup" / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            places.append(root / "sys/fs/cgroup/memory" / path.lstrip("/") / "memory.oom_control")
    return places
