"""What the kernel says of the device and of this process. Thin: no decision is taken here.

Every reading may be None, because the device does not have it. Cost: about 20 µs for all of them.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

PLAUSIBLE_C: Final = (-60.0, 200.0)  # zones without a sensor say 0 K or 2^31
OURS: Final = ("edgewright-", "paho-mqtt-")  # names of threads that do what is not inference
SERVING: Final = "edgewright-http"  # which waits for inference
TICK_NS: Final = 10**9 // os.sysconf("SC_CLK_TCK")


def resident_kb() -> int:
    """Of this process. Raises OSError where /proc is not there: nothing here runs without it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 1024


class Device:
    def __init__(self, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._zones = sorted(sys.glob("class/thermal/thermal_zone*/temp"))
        self._batteries = [
            supply / "capacity"
            for supply in sorted(sys.glob("class/power_supply/*"))
            if _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"  # that is a mouse's
        ]

    def temperature_c(self) -> float | None:
        """Of the hottest zone."""
        said = [n / 1000 for zone in self._zones if (n := _number(zone)) is not None]
        return max((c for c in said if PLAUSIBLE_C[0] < c < PLAUSIBLE_C[1]), default=None)

    def discharge_permille(self) -> int | None:
        """1000 - the level of the emptiest battery."""
        said = [n for battery in self._batteries if (n := _number(battery)) is not None]
        return 1000 - 10 * min(100, max(0, min(said))) if said else None

    def threads(self) -> int:
        """Of this process, those of runtimes and of the application among them."""
        try:
            return sum(1 for _ in (self._proc / "self/task").iterdir())
        except OSError:
            return 0

    def background_ns(self) -> dict[int, int]:
        """Processor time of each thread of the agent that does not serve inference, by its id; children under 0.

        A runtime's own threads have no name that tells a candidate's from the active model's, and are left out: a
        shadow run rests for each core that its package may keep busy, so that its share holds all the same."""
        found = {0: int(sum(os.times()[2:4]) * 1e9)}
        for thread in threading.enumerate():
            if thread.native_id and thread.name.startswith(OURS) and not thread.name.startswith(SERVING):
                fields = _text(self._proc / f"self/task/{thread.native_id}/stat").rpartition(")")[2].split()
                if len(fields) > 12:
                    found[thread.native_id] = (int(fields[11]) + int(fields[12])) * TICK_NS
        return found


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    """ "" when there is nothing to read: sensors come and go, and some fail while they sleep."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
