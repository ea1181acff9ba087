"""Consent: the word of the device's owner, a file on the device that no hub can write. Without it there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.codec import KIB, decode
from edgewright_contracts.errors import ContractError

from ..disk import Disk, atomic_write

FILE: Final = "consent.json"


class Consent(msgspec.Struct, frozen=True):
    samples: bool = False


def read(disk: Disk, home: Path) -> Consent:
    """A damaged word is none."""
    try:
        return decode(Consent, disk.read(home / FILE), name=FILE, limit=KIB, wire="json")
    except (FileNotFoundError, ContractError):
        return Consent()


def write(disk: Disk, home: Path, consent: Consent) -> None:
    """Taking it back removes what was kept. Raises OSError."""
    atomic_write(disk, home / FILE, msgspec.json.encode(consent))
    if not consent.samples:
        disk.remove_tree(home / "samples")
