"""Machine: did this device itself restart since the agent's last start, or only the agent?

An agent that ended unclean on a machine that went on has crashed; with the machine gone as well, the power was cut,
most likely, and no model is to blame for that. The kernel draws a number at its start that tells the two apart. One
write for each start of the machine.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from ..disk import Disk, atomic_write

FILE: Final = "machine"
BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


def restarted(disk: Disk, home: Path, boot: Path = BOOT) -> bool:
    """To be called once a start. False when nothing is known: of the kernel, or of the start before."""
    try:
        now = boot.read_bytes().strip()
    except OSError:
        return False
    try:
        before = disk.read(home / FILE).strip()
    except OSError:
        before = b""
    if now != before:
        try:
            atomic_write(disk, home / FILE, now + b"\n")
        except OSError as error:  # the next start takes itself for one after a power cut, which blames nobody
            log.warning("the machine's start is not noted: %s", error)
    return bool(before) and now != before
