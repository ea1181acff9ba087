"""A disk in memory whose power is cut at the n-th call. Implements edgewright_agent.disk.Disk.

What survives a cut is what `edgewright_agent.disk` promises and, of the rest, as little (`keep="least"`) or as much
(`keep="most"`) as a real disk might leave: unsynced data is gone or there, an unsynced name is the old or the new one,
and the write that was cut is torn in the middle.
"""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Literal


class PowerCut(BaseException):
    """Not an Exception: no handler of the program may carry on behind it."""


class File:
    def __init__(self) -> None:
        self.data = b""
        self.durable = b""


class SimDisk:
    def __init__(self) -> None:
        self.names: dict[Path, File] = {}
        self.durable_names: dict[Path, File] = {}
        self.folders: set[Path] = {Path("/")}
        self.calls = 0
        self.cut_at: int | None = None
        self.full = False
        self.written = 0
        self.trace: list[str] = []

    def crash(self, keep: Literal["least", "most"]) -> None:
        """The machine starts again with what survived."""
        if keep == "least":
            self.names = dict(self.durable_names)
            for file in self.names.values():
                file.data = file.durable
        for file in self.names.values():
            file.durable = file.data
        self.durable_names = dict(self.names)
        self.cut_at = None

    def read(self, path: Path) -> bytes:
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self.names[path].data

    def write(self, path: Path, data: bytes) -> None:
        self._put(path, b"", data)

    def append(self, path: Path, data: bytes) -> None:
        self._put(path, self.names[path].data if path in self.names else b"", data)

    def _put(self, path: Path, before: bytes, data: bytes) -> None:
        torn = self._call(f"write {path.name}")
        self._space()
        assert path.parent in self.folders, path
        file = self.names.setdefault(path, File())
        file.data = before + (data[: len(data) // 2] if torn else data)
        self.written += len(data)
        if torn:
            raise PowerCut

    def fsync(self, path: Path) -> None:
        self._cut(f"fsync {path.name}")
        if path in self.folders:
            here = {p: f for p, f in self.names.items() if p.parent == path}
            self.durable_names = {p: f for p, f in self.durable_names.items() if p.parent != path} | here
        else:
            self.names[path].durable = self.names[path].data

    def rename(self, source: Path, target: Path) -> None:
        self._cut(f"rename {source.name} {target.name}")
        self.names[target] = self.names.pop(source)

    def unlink(self, path: Path) -> None:
        self._cut(f"unlink {path.name}")
        self.names.pop(path, None)

    def mkdir(self, path: Path) -> None:
        self.folders |= {path, *path.parents}

    def remove_tree(self, path: Path) -> None:
        self._cut(f"remove {path.name}")
        for name in [p for p in self.names if path in p.parents]:
            del self.names[name]
        self.folders = {f for f in self.folders if f != path and path not in f.parents}

    def list(self, path: Path) -> list[str]:
        found = {p.relative_to(path).parts[0] for p in (*self.names, *self.folders) if path in p.parents}
        return sorted(found)

    def size(self, path: Path) -> int | None:
        return len(self.names[path].data) if path in self.names else None

    def sha256(self, path: Path) -> str:
        return hashlib.sha256(self.read(path)).hexdigest()

    def free(self, path: Path) -> int:
        return 0 if self.full else 1 << 30

    def _call(self, what: str) -> bool:
        self.calls += 1
        self.trace.append(what)
        return self.cut_at is not None and self.calls >= self.cut_at

    def _cut(self, what: str) -> None:
        if self._call(what):
            raise PowerCut

    def _space(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
