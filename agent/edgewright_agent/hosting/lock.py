"""One agent in one home: a lock of the kernel's, which ends with the process however that ends.

What this process forks has no part in it: the kernel keeps a lock as long as any child holds its descriptor open, and a
worker that outlives the application would keep its home.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import ClassVar

from edgewright_contracts.errors import RequestError

TRIES, PAUSE_S = 5, 0.05  # whoever looks whether an agent runs holds the lock for an instant


class HomeLock:
    """Raises RequestError when another process has it."""

    _open: ClassVar[set[HomeLock]] = set()  # of this process

    def __init__(self, home: Path) -> None:
        try:
            self._descriptor = os.open(home / "agent.lock", os.O_RDONLY)  # on a disk that became read-only, too
        except FileNotFoundError:
            self._descriptor = os.open(home / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._open.add(self)
        for _ in range(TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(PAUSE_S)
        self.release()
        raise RequestError(f"another agent runs in {home}; stop it first, or give each its own home")

    def release(self) -> None:
        """Safe to repeat; nothing in a child that was forked."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a child between fork and exec has the descriptor, too
            self._forget()

    @classmethod
    def leave(cls) -> None:
        """Those of the process that forked this one stay its own."""
        for lock in list(cls._open):
            lock._forget()

    def _forget(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
        self._open.discard(self)


os.register_at_fork(after_in_child=HomeLock.leave)
