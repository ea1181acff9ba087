"""The kernel's own bound on memory, where the agent is alone in a cgroup that it may write (systemd: Delegate=yes).

`memory.high` slows and reclaims, it does not kill. RLIMIT_AS bounds addresses, of which a runtime maps gigabytes that
it never touches, and RLIMIT_RSS does nothing on Linux: elsewhere the governor's own measure has to do.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def bound(rss_mb: float | None, *, root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> bool:
    """Set or lift `memory.high`; False where this is not ours to say. A cgroup with other processes in it is not: a
    shell's session would be slowed with the agent."""
    try:
        line = next(line for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = root / line.removeprefix("0::").lstrip("/")
        if group == root or (group / "cgroup.procs").read_text().split() != [str(os.getpid())]:
            return False
        if not os.access(group / "memory.high", os.W_OK):
            return False
        (group / "memory.high").write_text("max" if rss_mb is None else str(int(rss_mb * (1 << 20))))
    except (OSError, StopIteration) as error:
        log.debug("no memory bound by the kernel: %s", error)
        return False
    return True
