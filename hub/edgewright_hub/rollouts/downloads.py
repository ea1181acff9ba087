"""What devices download of a release: all files, or patches for what they have. Pure.

A device downloads one variant and what goes with every one. Which variant is known of devices that said what they are;
of the others the largest is counted, and a device that has nothing of the model downloads all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from edgewright_contracts.manifest import FileRef, Manifest

from .abilities import Abilities
from .members import Members
from .processes import Floats

Patches = Callable[[str, str], int | None]  # bytes of the patch from a file to another, by their hashes; None: none


class Download(msgspec.Struct, frozen=True):
    """Bytes of one device: all files, and with patches for what it has."""

    full: int
    delta: int


def download(old: Manifest | None, new: Manifest, patch: Patches, variant: str | None = None) -> Download:
    full, least = defaultdict[str, int](int), defaultdict[str, int](int)
    had: Mapping[str, FileRef] = old.files if old else {}
    for path, file in new.files.items():
        of = path.split("/")[1] if path.startswith("variants/") else ""
        before = had.get(path)
        full[of] += file.size
        if before is None:
            least[of] += file.size
        elif before.sha256 != file.sha256:
            small = patch(before.sha256, file.sha256)
            least[of] += file.size if small is None else small
    chosen = (
        variant
        if variant is not None and variant in full
        else max((name for name in full if name), key=full.__getitem__, default="")
    )
    shared = (full[""], least[""]) if chosen else (0, 0)
    return Download(full[chosen] + shared[0], least[chosen] + shared[1])


def expected(members: Members, digest: str, abilities: Abilities, patch: Patches) -> Floats:
    """float64[devices]: bytes that each will download."""
    new = abilities.manifest(digest)
    if new is None:
        return np.zeros(len(members))
    known: dict[tuple[int, str | None], int] = {}
    out = np.zeros(len(members))
    for place, (device, had) in enumerate(zip(members.devices, members.previous.tolist(), strict=True)):
        key = had, abilities.variant(device, digest)
        if key not in known:
            old = abilities.manifest(members.digests[had]) if had >= 0 else None
            known[key] = download(old, new, patch, key[1]).delta
        out[place] = known[key]
    return out
