"""One agent in one home: a lock of the kernel's, which ends with the process however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from edgewright_contracts.errors import RequestError

TRIES, PAUSE_S = 5, 0.05  # whoever looks whether an agent runs holds the lock for an instant


class HomeLock:
    """Raises RequestError when another process has it."""

    def __init__(self, home: Path) -> None:
        try:
            self._descriptor = os.open(home / "agent.lock", os.O_RDONLY)  # on a disk that became read-only, too
        except FileNotFoundError:
            self._descriptor = os.open(home / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(PAUSE_S)
        self.release()
        raise RequestError(f"another agent runs in {home}; stop it first, or give each its own home")

    def release(self) -> None:
        """Safe to repeat."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
