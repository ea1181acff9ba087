"""Deltas: a file made of the one that already runs here and a patch, instead of downloaded whole.

Nobody signs a patch (contracts.delta), and nobody has to: what comes out is checked against the signed hash, and
whatever goes wrong (no such patch, no zstandard here, a damaged one, one that unpacks to more) the file is downloaded
whole. A file that is the same in both packages is copied.

Cost: memory of the old file and a window of the larger one; disk of the patch besides.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

from edgewright_contracts import delta
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import FileRef
from edgewright_contracts.package import Package

from ..disk import Disk
from .fetch import CHUNK, Link, etag_of
from .refusals import Absent, WrongBytes
from .slots import Store

log = logging.getLogger(__name__)


class Unfit(Exception):
    """What the patch makes of the old file is not the new one."""


class Downloads:
    """`repo` ends in a slash."""

    def __init__(self, disk: Disk, link: Link, repo: str) -> None:
        self._disk, self._link, self._repo = disk, link, repo

    def file(self, file: str, ref: FileRef, store: Store, base: Package | None, interrupt: Callable[[], None]) -> int:
        """Have the file `ref` in its part in `store`, which goes on from what it holds. `base` runs here, and is used
        while the part holds nothing.

        Returns the bytes that needed no download. Raises as `Link.blob`.
        """
        part, saved = store.part(ref.sha256), 0
        try:
            if base is not None and self._disk.size(part) is None:
                saved = self._short(file, ref, part, base, interrupt)
            url = f"{self._repo}blobs/{ref.sha256}"
            self._link.blob(self._disk, url, part, ref.size, ref.sha256, interrupt)
        finally:
            self._link.settle()
        return saved

    def _short(self, file: str, ref: FileRef, part: Path, base: Package, interrupt: Callable[[], None]) -> int:
        """Bytes saved; 0 when the file must be downloaded whole, and then `part` is begun."""
        old = base.manifest.files.get(file)
        if old is None or self._disk.size(base.root / file) != old.size:
            return 0
        if old.sha256 == ref.sha256 and ref.size <= delta.PAIR_BYTES:
            data = self._disk.read(base.root / file)
            if hashlib.sha256(data).hexdigest() != old.sha256:
                return 0
            self._disk.write(part, data)
            return ref.size
        if not delta.fits(old, ref) or importlib.util.find_spec("zstandard") is None:
            return 0
        if self._disk.free(part.parent) < ref.size + delta.most(ref):
            return 0
        return self._patched(old, base.root / file, ref, part, interrupt)

    def _patched(self, old: FileRef, place: Path, ref: FileRef, part: Path, interrupt: Callable[[], None]) -> int:
        url = self._repo + delta.path(old.sha256, ref.sha256)
        patch, made = part.with_name(part.name + ".zst"), part.with_name(part.name + ".made")
        try:
            self._link.unsigned(self._disk, url, patch, delta.most(ref), interrupt)
            size = self._disk.size(patch) or 0
            apply(self._disk, self._disk.read(place), self._disk.read(patch), made, ref)
        except (Absent, WrongBytes, Unfit) as error:
            log.info("no delta for %s: %s", part.name[:16], error)
            for rest in (made, patch, etag_of(patch)):
                self._disk.unlink(rest)
            self._disk.write(part, b"")  # begun, so that a restart does not try the same patch again
            return 0
        self._disk.rename(made, part)
        for rest in (patch, etag_of(patch)):
            self._disk.unlink(rest)
        return ref.size - size


def running(store: Store) -> Package | None:
    """The package that answers; None when there is none that could be built on."""
    try:
        return store.package(store.state.active) if store.state.active else None
    except (ContractError, OSError):
        return None


def apply(disk: Disk, old: bytes, patch: bytes, target: Path, ref: FileRef) -> None:
    """Write into `target` what `patch` makes of `old`. Raises Unfit, and never writes more than `ref.size` bytes."""
    import zstandard

    window = 1 << delta.window_log(len(old), ref.size)
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    digest, size = hashlib.sha256(), 0
    disk.write(target, b"")
    try:
        with zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=window).stream_reader(patch) as reader:
            while chunk := reader.read(CHUNK):
                size += len(chunk)
                if size > ref.size:
                    raise Unfit(f"expected a patch that makes {ref.size} bytes, got one that makes more")
                digest.update(chunk)
                disk.append(target, chunk)
    except (zstandard.ZstdError, MemoryError) as error:
        raise Unfit(f"the patch cannot be unpacked: {error}") from None
    if digest.hexdigest() != ref.sha256:
        raise Unfit(f"expected a patch that makes sha256 {ref.sha256}, got {size} bytes with {digest.hexdigest()}")
