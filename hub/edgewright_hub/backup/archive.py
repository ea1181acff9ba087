"""The file of a backup: a tar whose last member, `manifest-<its sha256>.json`, names every other with size and hash.

Whatever is cut off, flipped or added is found by `opened`, which reads the whole file once before anybody uses it and
writes nothing. The tar is not compressed (models and histograms do not become smaller) and holds regular files only.
Cost: one pass of sha256 over everything, about 1 s for 500 MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.errors import RequestError

FORMAT: Final = 1
_MANIFEST: Final = "manifest-"
_MANIFEST_BYTES: Final = 256 * 1024**2


class Member(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    made_ms: int
    host: str  # where it was made
    revisions: dict[str, str]  # of the databases' schemas: control, telemetry
    counts: dict[str, int]  # what a person looks for: devices, packages, rollouts, windows, inferences
    files: dict[str, Member]


class Writer:
    """`add` in the order in which it must be read from a running hub; `end` last."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - `end` closes it
        self.files: dict[str, Member] = {}

    def add(self, name: str, place: Path) -> bool:
        """The file as it is when it is opened. False when it is not there any more."""
        try:
            stream = place.open("rb")
        except FileNotFoundError:
            return False
        with stream:
            about = os.fstat(stream.fileno())
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = about.st_size, int(about.st_mtime), about.st_mode & 0o644
            hashed = _Hashed(stream)
            self._tar.addfile(info, hashed)  # type: ignore[arg-type]  # it only reads
        self.files[name] = Member(info.size, hashed.digest.hexdigest())
        return True

    def end(self, manifest: Manifest) -> None:
        body = msgspec.json.encode(manifest)
        info = tarfile.TarInfo(f"{_MANIFEST}{hashlib.sha256(body).hexdigest()}.json")
        info.size, info.mode = len(body), 0o600
        self._tar.addfile(info, io.BytesIO(body))
        self._tar.close()


class _Hashed:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data


class Archive:
    """One that was found whole."""

    def __init__(self, tar: tarfile.TarFile, manifest: Manifest) -> None:
        self._tar, self.manifest = tar, manifest

    def extract(self, folder: Path) -> None:
        """Every file below `folder`, which is new, durably, with no right for others but to read. Raises OSError."""
        for name in self.manifest.files:
            info, place = self._tar.getmember(name), folder / name
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            source = self._tar.extractfile(info)
            assert source is not None
            with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, info.mode & 0o644), "wb") as stream:
                while data := source.read(1 << 20):
                    stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.utime(place, (info.mtime, info.mtime))


@contextlib.contextmanager
def opened(place: Path) -> Iterator[Archive]:
    """Read it whole. Raises RequestError for one that is not whole, or no backup."""
    try:
        with place.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            yield Archive(tar, _checked(place, tar))
    except (tarfile.TarError, EOFError) as error:
        raise _bad(place, f"it is cut off, damaged or another kind of file ({error})") from None
    except FileNotFoundError:
        raise RequestError(f"{place}: expected a file made by `edgewright hub backup`, there is none") from None


def _checked(place: Path, tar: tarfile.TarFile) -> Manifest:
    found: dict[str, Member] = {}
    body: bytes | None = None
    for info in tar:
        if body is not None:
            raise _bad(place, f"{info.name[:100]!r} follows its end")
        if not _plain(info) or info.name in found:
            raise _bad(place, f"it holds {info.name[:100]!r}, which no backup does; nothing of it was used")
        source: Any = tar.extractfile(info)
        if info.name.startswith(_MANIFEST):
            body = source.read(_MANIFEST_BYTES)
            if info.name != f"{_MANIFEST}{hashlib.sha256(body or b'').hexdigest()}.json":
                raise _bad(place, "its list of files is damaged")
            continue
        digest, size = hashlib.sha256(), 0
        while data := source.read(1 << 20):
            digest.update(data)
            size += len(data)
        found[info.name] = Member(size, digest.hexdigest())
    if body is None:
        raise _bad(place, "its end is missing, it is cut off or another kind of file")
    return _fits(place, body, found)


def _fits(place: Path, body: bytes, found: dict[str, Member]) -> Manifest:
    try:
        stated = msgspec.json.decode(body, type=dict[str, Any]).get("format")
        if isinstance(stated, int) and stated > FORMAT:
            raise RequestError(f"{place}: made by a newer release (format {stated}): restore it with that one")
        manifest = msgspec.json.decode(body, type=built(Manifest))
    except msgspec.MsgspecError as error:
        raise _bad(place, f"its list of files cannot be read ({error})") from None
    for name in sorted({*found, *manifest.files}):
        if found.get(name) != manifest.files.get(name):
            said = "missing" if name not in found else "not what was put in" if name in manifest.files else "foreign"
            raise _bad(place, f"{name[:100]!r} is {said}")
    return manifest


def _plain(info: tarfile.TarInfo) -> bool:
    """A regular file below the folder."""
    path = PurePosixPath(info.name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and str(path) == info.name
    return inside and "\0" not in info.name and info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()


def _bad(place: Path, said: str) -> RequestError:
    return RequestError(
        f"{place}: expected a whole backup made by `edgewright hub backup`: {said}. Nothing was written; take another "
        "copy of it, or an earlier backup"
    )
