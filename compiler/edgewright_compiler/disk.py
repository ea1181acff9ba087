"""Files that are whole or not there, also after a power cut or on a disk that fills.

A failed write leaves nothing half-written, and its error names the path: the system names none for a full disk.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: beside it, flushed to the disk, renamed. Raises OSError with the path."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def flush(path: Path) -> None:
    """A file or directory to the disk: a name must not outlive a power cut without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(root: Path) -> None:
    """Everything under `root`, and `root`."""
    for path in (*sorted(root.rglob("*")), root):
        flush(path)
