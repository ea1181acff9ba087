"""Deltas for devices that run an earlier version, made in the background from what the owner signs now.

    repo/deltas/<old sha256>/<new sha256>.zst      a patch; `.<new sha256>.none` beside it: none is worth its bytes

Guarantee: there are patches only between versions that are signed now, from at most `OLDER` versions published before
each, and only those that save at least a fifth; all others are removed. Nobody need trust them (`contracts.delta`).
Cost: one patch at a time, about 100 MB of memory and a second per MB; a publisher never waits for it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import sqlalchemy as sa
import zstandard

from edgewright_contracts import delta, durable
from edgewright_contracts.built import built
from edgewright_contracts.manifest import FileRef, Manifest

from ..storage import control
from .repository import Repository

OLDER: Final = 3  # versions; what runs longer than that downloads whole files
LEVEL: Final = 19  # lower ones lose sight of a dictionary of some megabytes
EVERY_S: Final = 5.0
_CHUNK: Final = 256 << 10  # between two looks at `stop`

_LOG = logging.getLogger(__name__)


class Pair(NamedTuple):
    old: FileRef
    new: FileRef


class Deltas:
    """`stop` says that the hub ends, and breaks off what is being made."""

    def __init__(self, repository: Repository, engine: sa.Engine, stop: Callable[[], bool]) -> None:
        self._folder, self._blobs = repository.folder / "deltas", repository.blobs
        self._engine, self._stop = engine, stop
        self._done: list[tuple[str, str]] | None = None  # what was signed when nothing was left to do

    def tick(self) -> bool:
        """Make one patch that is missing; True when there may be more to make. Raises OSError, SQLAlchemyError."""
        signed = self._signed()
        if signed == self._done:
            return False
        pairs = {self._place(pair): pair for pair in self._pairs(dict(signed))}
        missing = [place for place in pairs if not place.exists() and not _none(place).exists()]
        if missing:
            self._make(missing[0], pairs[missing[0]])
            return not self._stop()
        self._sweep({file for place in pairs for file in (place, _none(place))})
        self._done = signed
        return False

    def _place(self, pair: Pair) -> Path:
        return self._folder.parent / delta.path(pair.old.sha256, pair.new.sha256)

    def _signed(self) -> list[tuple[str, str]]:
        """(digest, name) of what the owner signs now, in the order in which it was published."""
        table = control.packages.c
        found = sa.select(table.digest, table.name).where(table.state == "allowed")
        with self._engine.connect() as connection:
            rows = connection.execute(found.order_by(table.published_ms, table.version))
            return [(row.digest, row.name) for row in rows]

    def _pairs(self, signed: dict[str, str]) -> Iterator[Pair]:
        """Newest versions first: those are what is rolled out."""
        table = control.packages.c
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(table.digest, table.manifest).where(table.digest.in_(signed))).all()
        manifests = {row.digest: msgspec.convert(row.manifest, built(Manifest)) for row in rows}
        order = [digest for digest in signed if digest in manifests]
        for at in reversed(range(len(order))):
            new = order[at]
            older = [digest for digest in order[:at] if signed[digest] == signed[new]][-OLDER:]
            for digest in reversed(older):
                yield from _between(manifests[digest], manifests[new])

    def _make(self, place: Path, pair: Pair) -> None:
        patch = make(*(((self._blobs / ref.sha256).read_bytes()) for ref in pair), stop=self._stop)
        if patch is None:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        worth = len(patch) <= delta.most(pair.new)
        _LOG.info("delta %s: %d of %d bytes", place.name[:16], len(patch), pair.new.size)
        durable.replace(place if worth else _none(place), patch if worth else b"")

    def _sweep(self, wanted: set[Path]) -> None:
        for file in self._folder.glob("*/*"):
            if file not in wanted:
                file.unlink()
        for folder in self._folder.glob("*"):
            with contextlib.suppress(OSError):  # still used
                folder.rmdir()


def make(old: bytes, new: bytes, *, stop: Callable[[], bool] = lambda: False) -> bytes | None:
    """The patch that makes `new` of `old`; None when `stop` came first."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=delta.window_log(len(old), len(new)), enable_ldm=True
    )
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compressobj(
        size=len(new)
    )
    out = bytearray()
    for at in range(0, len(new), _CHUNK):
        if stop():
            return None
        out += compressor.compress(new[at : at + _CHUNK])
    return bytes(out + compressor.flush())


def _between(old: Manifest, new: Manifest) -> Iterator[Pair]:
    """Files of the same role in the same variant."""
    for file, ref in new.files.items():
        before = old.files.get(file)
        if file.startswith("variants/") and before is not None and delta.fits(before, ref):
            yield Pair(before, ref)


def _none(place: Path) -> Path:
    return place.with_name(f".{place.stem}.none")
