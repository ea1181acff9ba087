"""A disk in memory whose power is cut at the n-th call. Implements edgewright_agent.disk.Disk.

What survives a cut is what `edgewright_agent.disk` promises and, of the rest, what an image leaves:

    least   nothing: unsynced data is gone, an unsynced name is the old one
    most    all of it; the write that was cut is torn in the middle
    names   unsynced names without their unsynced data, as of a rename that overtakes what it renames
    data    unsynced data without unsynced names
    torn    of each file some prefix, perhaps with its last page zeroed; of each name the old or the new one
"""

from __future__ import annotations

import errno
import hashlib
import random
from pathlib import Path
from typing import Final, Literal, get_args

Keep = Literal["least", "most", "names", "data", "torn"]
KEEPS: Final[tuple[Keep, ...]] = get_args(Keep)
PAGE: Final = 4096


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

    def crash(self, keep: Keep, seed: int = 0) -> None:
        """The machine starts again with what survived; `seed` says which of the torn images it is."""
        rng = random.Random(seed)
        if keep in ("least", "data"):
            self.names = dict(self.durable_names)
        elif keep == "torn":
            for path in sorted(self.names.keys() | self.durable_names.keys()):
                old = self.durable_names.get(path)
                if old is not self.names.get(path) and rng.random() < 0.5:
                    self.names.pop(path, None)
                    self.names |= {path: old} if old else {}
        for _, file in sorted(self.names.items()):
            if keep in ("least", "names"):
                file.data = file.durable
            elif keep == "torn" and file.data != file.durable:
                file.data = _torn(file, rng)
        for file in self.names.values():
            file.durable = file.data
        self.durable_names = dict(self.names)
        self.cut_at = None

    def copy(self) -> SimDisk:
        """Another disk that holds the same; contents are shared."""
        other = SimDisk()
        twins: dict[File, File] = {}
        for file in (*self.names.values(), *self.durable_names.values()):
            if file not in twins:
                twin = twins[file] = File()
                twin.data, twin.durable = file.data, file.durable
        other.names = {path: twins[file] for path, file in self.names.items()}
        other.durable_names = {path: twins[file] for path, file in self.durable_names.items()}
        other.folders = set(self.folders)
        return other

    def image(self) -> dict[Path, bytes]:
        """What a restart finds."""
        return {path: file.data for path, file in self.names.items()}

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


def _torn(file: File, rng: random.Random) -> bytes:
    """A prefix of what is not synced behind what is; where the file was written anew, what was synced may be gone."""
    kept = len(file.durable) if file.data.startswith(file.durable) else 0
    end = rng.randint(kept, len(file.data))
    torn = file.data[:end]
    if rng.random() < 0.5:  # the size reached the disk, the last page did not
        hole = max(kept, end - end % PAGE)
        torn = torn[:hole] + bytes(end - hole)
    return torn
