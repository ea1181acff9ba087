"""The kernel's own bound on memory, where the agent is alone in a cgroup that it may write (systemd: Delegate=yes).

`memory.high` slows and reclaims, it does not kill; a bound below what the process needs would slow it, inferences and
all, for good. So it stands a quarter above the limit, which the governor holds, and above what is resident.

RLIMIT_AS bounds addresses, of which a runtime maps gigabytes that it never touches, and RLIMIT_RSS does nothing on
Linux: elsewhere the governor's own measure has to do.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

ABOVE: Final = 1.25

log = logging.getLogger(__name__)


def bound(rss_mb: float | None, *, root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> bool:
    """Set or lift `memory.high`, for a process that may have so much. False where this is not ours to say: a cgroup
    with other processes in it, such as a shell's session, would be slowed with the agent."""
    try:
        line = next(line for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = root / line.removeprefix("0::").lstrip("/")
        if group == root or (group / "cgroup.procs").read_text().split() != [str(os.getpid())]:
            return False
        if not os.access(group / "memory.high", os.W_OK):
            return False
        high = "max" if rss_mb is None else str(int(ABOVE * rss_mb * (1 << 20)))
        (group / "memory.high").write_text(high)
    except (OSError, StopIteration) as error:
        log.debug("no memory bound by the kernel: %s", error)
        return False
    return True
