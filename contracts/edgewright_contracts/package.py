"""A package on disk: a directory, or the same as one `.ewp` (a zip, for carrying by hand). Read, verify, pack, unpack.

Guarantee: every byte handed out was checked against the size and sha256 that the manifest names, and the manifest
against nothing but its own digest: whoever signs, signs that. A broken or hostile package ends in a ContractError that
names the file. `evidence.json` lies beside the manifest, outside the digest, and carries no promise; `signature.json`
may (signature.py).

An `.ewp` is deterministic: entries sorted, stored uncompressed, dated 1980; equal packages give equal archives. So an
archive never unpacks to more than its own size, and an entry that claims otherwise is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from . import durable
from .errors import ContractError, RequestError
from .manifest import MANIFEST_BYTES, Manifest, decode_manifest, digest
from .signature import SIGNATURE_BYTES

MANIFEST: Final = "manifest.json"
EVIDENCE: Final = "evidence.json"
SUFFIX: Final = ".ewp"
SIGNATURE: Final = "signature.json"
EVIDENCE_BYTES: Final = 1024 * 1024


class Package(msgspec.Struct, frozen=True):
    """`root` is the package's directory, or its `.ewp`; `manifest_bytes` are kept as they came."""

    manifest: Manifest
    manifest_bytes: bytes
    digest: str
    root: Path

    def read(self, file: str) -> bytes:
        """The bytes of one file that the manifest names. Raises ContractError: not named, absent, or not the same."""
        ref = self.manifest.files.get(file)
        if ref is None:
            raise ContractError(file, "a file that the manifest names", "one that it does not name")
        data = self._bytes(file, ref.size)
        if len(data) != ref.size:
            raise ContractError(file, f"{ref.size} bytes", "more" if len(data) > ref.size else f"{len(data)} bytes")
        got = hashlib.sha256(data).hexdigest()
        if got != ref.sha256:
            raise ContractError(file, f"sha256 {ref.sha256}", got)
        return data

    def verify(self) -> None:
        """Reads every file once. Raises ContractError for the first that is not what the manifest says."""
        for file in sorted(self.manifest.files):
            self.read(file)

    def evidence(self) -> bytes | None:
        """What was measured when the package was made; None when it was left out. Not covered by the digest."""
        return self._beside(EVIDENCE, EVIDENCE_BYTES)

    def signature(self) -> bytes | None:
        """The owner's signature as it lies there, not verified; None when there is none."""
        return self._beside(SIGNATURE, SIGNATURE_BYTES)

    def _beside(self, file: str, limit: int) -> bytes | None:
        try:
            data = self._bytes(file, limit)
        except ContractError:
            return None
        return data if len(data) <= limit else None

    def _bytes(self, file: str, size: int) -> bytes:
        """At most size + 1 bytes of `file`, so that a longer one is noticed and never read whole."""
        if self.root.is_dir():
            return _read_file(self.root / file, file, size)
        from . import archive

        with archive.opened(self.root) as entries:
            return archive.read(entries, file, size)


def read_package(path: Path) -> Package:
    """The package in directory or `.ewp` `path`; its files are checked when they are read.

    Raises RequestError when nothing is there, ContractError when it is not a package.
    """
    if not path.exists():
        raise RequestError(f"no package at {path}: expected a directory with {MANIFEST}, or a file *{SUFFIX}")
    if path.is_dir():
        if not (path / MANIFEST).is_file():
            raise ContractError(str(path), f"a package directory, which holds {MANIFEST}", "a directory without one")
        data = _read_file(path / MANIFEST, MANIFEST, MANIFEST_BYTES)
    else:
        from . import archive

        with archive.opened(path) as entries:
            data = archive.read(entries, MANIFEST, MANIFEST_BYTES)
    return Package(decode_manifest(data), data, digest(data), path)


def write_ewp(path: Path, out: Path, signature: bytes | None = None) -> None:
    """Pack the package at `path` into `out`: to a sibling first, then renamed, so `out` is whole or absent, also after
    a power cut, and may be `path` itself. With `signature`, it carries that one.

    Raises ContractError when the package is not what its manifest says, OSError when the disk refuses.
    """
    from . import archive

    package = read_package(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with archive.new(part) as entries:
            archive.add(entries, MANIFEST, package.manifest_bytes)
            for file in sorted(package.manifest.files):
                archive.add(entries, file, package.read(file))
            evidence = package.evidence()
            if evidence is not None:
                archive.add(entries, EVIDENCE, evidence)
            signature = signature or package.signature()
            if signature is not None:
                archive.add(entries, SIGNATURE, signature)
        durable.sync(part)
        part.replace(out)
        durable.sync(out.parent)
    finally:
        part.unlink(missing_ok=True)


def unpack(ewp: Path, into: Path) -> Package:
    """Unpack `ewp` into the new directory `into`, every file verified; nothing is left behind on failure.

    Only what the manifest names is written, under names that a manifest allows (relative, lower case, no dots in
    front), so no entry can leave `into`. Raises RequestError when `into` exists, ContractError, OSError.
    """
    if into.exists():
        raise RequestError(f"{into} exists already: name a new directory, or remove it first")
    package = read_package(ewp)
    into.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.parent))
    try:
        for file in sorted(package.manifest.files):
            target = stage / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(package.read(file))
        evidence = package.evidence()
        if evidence is not None:
            (stage / EVIDENCE).write_bytes(evidence)
        (stage / MANIFEST).write_bytes(package.manifest_bytes)
        stage.chmod(0o755)
        stage.rename(into)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    return Package(package.manifest, package.manifest_bytes, package.digest, into)


def _read_file(path: Path, file: str, size: int) -> bytes:
    if not path.is_file():  # opening a pipe would wait for ever
        raise ContractError(file, "a file of the package", "none")
    with path.open("rb") as stream:
        return stream.read(size + 1)
