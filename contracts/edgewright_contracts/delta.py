"""Deltas: where a patch lies that makes a file of a package from the one of an earlier version, and how it is bounded.

A patch is one zstd frame whose dictionary is the old file (`zstd --patch-from`). It is not signed: a device believes
only what comes out, by the signed hash. It keeps the old file and one window in memory, so both sides bound them.
"""

from __future__ import annotations

from typing import Final

from .codec import Sha256
from .manifest import FileRef

PAIR_BYTES: Final = 32 << 20  # of the old and the new file together
SMALLEST: Final = 8 << 10  # of either; asking for less costs as much as it saves
WORTH_PERCENT: Final = 80  # of the whole file that a patch may have


def path(old: Sha256, new: Sha256) -> str:
    """In the repository."""
    return f"deltas/{old}/{new}.zst"


def fits(old: FileRef, new: FileRef) -> bool:
    """Whether a patch is made and looked for between these."""
    return old.sha256 != new.sha256 and min(old.size, new.size) >= SMALLEST and old.size + new.size <= PAIR_BYTES


def most(new: FileRef) -> int:
    """Bytes of the largest patch that is worth having."""
    return new.size * WORTH_PERCENT // 100


def window_log(old_size: int, new_size: int) -> int:
    """Of the frame: the old file must stay within reach to the last byte of the new one."""
    return max(10, max(old_size, new_size).bit_length())
