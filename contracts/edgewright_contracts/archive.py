"""An `.ewp` as a zip file: its entries, stored as they are, read within bounds and written alike everywhere.

Guarantee: nothing is ever inflated, and whatever hostile bytes make zipfile throw is a ContractError that names the
file; a disk that fails stays an OSError. A module of its own, because zipfile takes 0.4 MB, and a device reads an
archive only when one was carried to it.
"""

from __future__ import annotations

import errno
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from .errors import ContractError

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold
_CHUNK: Final = 1 << 20


def opened(path: Path) -> zipfile.ZipFile:
    """To be read and closed. Raises ContractError, OSError."""
    with _damage_is(path.name, "a whole .ewp archive", "a file that is cut short or not a zip"):
        return zipfile.ZipFile(path)


def new(path: Path) -> zipfile.ZipFile:
    """To be filled by `add`, in the order of the entries, and closed. Raises OSError."""
    return zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)


def add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    info.create_system = 3  # otherwise the byte depends on the platform
    archive.writestr(info, data)


def read(archive: zipfile.ZipFile, file: str, size: int) -> bytes:
    """At most size + 1 bytes of one entry. Raises ContractError, OSError."""
    try:
        info = archive.getinfo(file)
    except KeyError:
        # an archive that is cut behind a self-test still ends like a zip, and is read as that self-test
        raise ContractError(file, "an entry of a whole .ewp archive", "none: cut short, or no package") from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ContractError(file, "an entry stored as it is", "a compressed or encrypted one")
    with _damage_is(file, "an entry that can be read whole", "a damaged one"), archive.open(info) as stream:
        return _bounded(stream, size + 1)


@contextmanager
def _damage_is(field: str, expected: str, got: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error):
        raise ContractError(field, expected, got) from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the archive points to before its own beginning
            raise
        raise ContractError(field, expected, got) from None


def _bounded(stream: IO[bytes], limit: int) -> bytes:
    """Up to `limit` bytes; zipfile returns short reads at chunk borders."""
    out = bytearray()
    while len(out) < limit:
        chunk = stream.read(min(_CHUNK, limit - len(out)))
        if not chunk:
            break
        out += chunk
    return bytes(out)
