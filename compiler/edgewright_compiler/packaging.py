"""Writing a package: deterministic bytes, all or nothing.

Guarantee: equal files and equal facts give an equal manifest, so an equal digest; the directory appears whole under its
name or not at all, also after a power cut. `evidence.json` is written beside the manifest and is no part of the digest.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgewright_contracts import durable
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import FileRef, Manifest, encode_manifest
from edgewright_contracts.package import EVIDENCE, MANIFEST, Package, read_package

from .disk import flush_tree

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_package(out: Path, facts: Mapping[str, Any], files: Mapping[str, bytes], evidence: bytes | None) -> Package:
    """Make the directory `out` of `files` and a manifest of `facts` (every field of Manifest but `files`).

    Raises RequestError when `out` exists, also when another makes it meanwhile, ContractError when the facts are no
    manifest, OSError from the disk, with the path that it did not take.
    """
    if _there(out):
        raise _overtaken(out)
    refs = {name: FileRef(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    manifest = encode_manifest(Manifest(**facts, files=refs))
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, data in {
            **files,
            MANIFEST: manifest,
            **({EVIDENCE: evidence} if evidence is not None else {}),
        }.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        read_package(stage).verify()
        stage.chmod(0o755)
        flush_tree(stage)
        _renamed(stage, out)
        durable.sync(out.parent)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, OSError):
            error.filename = str(out)  # the stage is gone, and nobody knows its name
        raise
    return read_package(out)


def _renamed(stage: Path, out: Path) -> None:
    try:
        stage.rename(out)
    except OSError:
        if _there(out):
            raise _overtaken(out) from None
        raise


def _there(out: Path) -> bool:
    return out.exists() or out.is_symlink()


def _overtaken(out: Path) -> RequestError:
    """Whoever compiles has asked for `absent` before the work, and finds this after it."""
    return RequestError(
        f"{out} exists already: another compilation made it meanwhile, and it stays as it is. Compile again with "
        "another --out or --version (finished steps are found again), or remove it"
    )


def absent(out: Path) -> None:
    """Raises RequestError when `out` exists (a package is never overwritten), or cannot be made where it shall be."""
    if _there(out):
        raise RequestError(f"{out} exists already: remove it, or choose another --out or --version")
    writable(out.parent)


def writable(folder: Path) -> None:
    """Raises RequestError unless files can be made in `folder`; folders that are missing on the way there will be made.

    Found out by making a directory, because rights are not all that can be in the way, and taking it out again.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
    if not there.is_dir():
        raise RequestError(f"{there} is a file: expected a folder to make the package in; choose another --out")
    try:
        Path(tempfile.mkdtemp(prefix=".edgewright-", dir=there)).rmdir()
    except OSError as error:
        raise RequestError(
            f"{there}: expected a folder that files can be made in, got {error.strerror}; choose another --out"
        ) from None


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """What `write_package` takes, from an existing manifest; change what differs."""
    facts = msgspec.structs.asdict(manifest)
    del facts["files"]
    return facts


def npz(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """What np.savez writes, uncompressed and without its clock: equal arrays give equal bytes. Never pickles."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            body = io.BytesIO()
            np.lib.format.write_array(body, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, body.getvalue())
    return out.getvalue()
