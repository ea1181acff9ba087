"""The one seam through which everything persistent goes, so that a simulator can cut the power at each call.

Promises that the agent builds on, and no others: what was written is durable after `fsync` of the file; a new, renamed
or removed name is durable after `fsync` of its directory; `mkdir` is durable at once; `rename` replaces its target in
one step. Anything else may be lost, torn or reordered by a power cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """Every call may raise OSError. Paths are absolute or relative to the process, as the caller likes."""

    written: int  # bytes, since the start

    def read(self, path: Path) -> bytes: ...
    def write(self, path: Path, data: bytes) -> None: ...
    def append(self, path: Path, data: bytes) -> None: ...
    def fsync(self, path: Path) -> None: ...
    def rename(self, source: Path, target: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def mkdir(self, path: Path) -> None: ...
    def remove_tree(self, path: Path) -> None: ...
    def list(self, path: Path) -> list[str]: ...
    def size(self, path: Path) -> int | None: ...
    def sha256(self, path: Path) -> str: ...
    def free(self, path: Path) -> int: ...


class RealDisk:
    """The file system; files that it makes are readable by their owner only."""

    def __init__(self) -> None:
        self.written = 0
        self._counting = threading.Lock()  # several threads write

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def write(self, path: Path, data: bytes) -> None:
        self._put(path, data, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def append(self, path: Path, data: bytes) -> None:
        self._put(path, data, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def fsync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def mkdir(self, path: Path) -> None:
        if not path.is_dir():
            self.mkdir(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
            self.fsync(path.parent)

    def remove_tree(self, path: Path) -> None:
        if path.exists():
            shutil.rmtree(path)

    def list(self, path: Path) -> list[str]:
        """Names in a directory, sorted; none when there is no such directory."""
        return sorted(p.name for p in path.iterdir()) if path.is_dir() else []

    def size(self, path: Path) -> int | None:
        """Bytes of a file, None when there is none."""
        return path.stat().st_size if path.is_file() else None

    def sha256(self, path: Path) -> str:
        """Read in pieces: a model may be larger than the memory that is free."""
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def free(self, path: Path) -> int:
        """Bytes that this process may still write."""
        return shutil.disk_usage(path).free

    def _put(self, path: Path, data: bytes, flags: int) -> None:
        descriptor = os.open(path, flags, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        with self._counting:
            self.written += len(data)


def atomic_write(disk: Disk, path: Path, data: bytes) -> None:
    """After this returns, `path` durably holds `data`; cut anywhere before, it holds what it held."""
    part = path.with_name(path.name + ".new")
    try:
        disk.write(part, data)
        disk.fsync(part)
    except OSError:  # a full disk, most likely: half of it would only keep it full
        with contextlib.suppress(OSError):
            disk.unlink(part)
        raise
    disk.rename(part, path)
    disk.fsync(path.parent)
