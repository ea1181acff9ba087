"""What this machine is: read from Linux's own files; what it does not tell stays None."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import numpy as np

from edgewright_runtime.runtime import available

from .evidence import Machine

ROOT: Final = Path("/")
_DOT: Final = ("asimddp", "avx512_vnni", "avx_vnni")  # names of /proc/cpuinfo: SDOT on Arm, VNNI on x86


def describe(root: Path = ROOT) -> Machine:
    """`root` is where /proc and /sys are."""
    cpu = _fields(root / "proc/cpuinfo")
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    board = _text(root / "proc/device-tree/model")
    clock = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    memory = _fields(root / "proc/meminfo").get("MemTotal", "")
    return Machine(
        arch=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpu=cpu.get("model name") or _arm(cpu),
        board=board,
        cores=len(os.sched_getaffinity(0)),
        clock_mhz=int(clock) // 1000 if clock and clock.isdigit() else None,
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        ram_mb=int(memory.split()[0]) // 1024 if memory else None,
        int8_dot=any(name in flags for name in _DOT) if flags else None,
        python=platform.python_version(),
        numpy=np.__version__,
        runtimes=available(),
    )


def celsius(root: Path = ROOT) -> float | None:
    """Of the first thermal zone."""
    raw = _text(root / "sys/class/thermal/thermal_zone0/temp")
    try:
        return int(raw) / 1000 if raw else None
    except ValueError:
        return None


def _arm(cpu: dict[str, str]) -> str:
    """Arm's kernel tells numbers, not names: implementer 0x41 is Arm, part 0xd08 is Cortex-A72."""
    part = cpu.get("CPU part", "")
    return _PARTS.get(part, f"implementer {cpu.get('CPU implementer', '?')} part {part}" if part else "unknown")


_PARTS: Final = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE",
}  # fmt: skip


def _fields(path: Path) -> dict[str, str]:
    """The first value of every `name: value` line; nothing where the file is not."""
    found: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip().strip("\0") or None
    except OSError:
        return None
