"""Files that are whole or not there, also after a power cut or on a disk that fills.

A failed write leaves nothing half-written, and its error names the path: the system names none for a full disk.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from edgewright_contracts import durable

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: beside it, flushed to the disk, renamed. Raises OSError with the path."""
    try:
        durable.replace(path, data)
    except OSError as error:
        error.filename = str(path)
        raise


def flush_tree(root: Path) -> None:
    """Everything under `root`, and `root`."""
    for path in (*sorted(root.rglob("*")), root):
        durable.sync(path)
