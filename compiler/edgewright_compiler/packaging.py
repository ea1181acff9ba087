"""Writing a package: deterministic bytes, all or nothing.

Guarantee: equal files and equal facts give an equal manifest, so an equal digest; the directory appears whole under its
name or not at all. `evidence.json` is written beside the manifest and is no part of the digest.
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

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import FileRef, Manifest, encode_manifest
from edgewright_contracts.package import EVIDENCE, MANIFEST, Package, read_package

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_package(out: Path, facts: Mapping[str, Any], files: Mapping[str, bytes], evidence: bytes | None) -> Package:
    """Make the directory `out` of `files` and a manifest of `facts` (every field of Manifest but `files`).

    Raises RequestError when `out` exists, ContractError when the facts are no manifest, OSError from the disk.
    """
    absent(out)
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
        stage.rename(out)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    return read_package(out)


def absent(out: Path) -> None:
    """Raises RequestError when `out` exists: a package is never overwritten."""
    if out.exists():
        raise RequestError(f"{out} exists already: remove it, or choose another --out or --version")


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
