"""Files that are there whole or not at all: written beside, made durable, then renamed.

A reader sees the old bytes or the new ones, also after a power cut. A write that fails (a full disk) leaves nothing;
what a kill leaves is a hidden `.part`, which `sweep` removes at the next start. Two fsyncs per file.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace(place: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Have `data` at `place`. Raises OSError, and then nothing has changed."""
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
    sync(place.parent)


def sync(path: Path) -> None:
    """Make durable what was written to a file, or what was renamed into a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what writes left that were cut off. Nobody may be writing in `folder`."""
    for part in folder.glob("*.part"):
        part.unlink()
