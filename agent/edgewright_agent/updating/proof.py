"""Proof: what passed the self-test in a slot, with which runtime on which CPU, and the files made of it there.

    <slot>/proof.json     written behind the self-test, in one step
    <slot>/optimised/     made by the self-test's process, synced before the proof; only what the proof names counts

Guarantee: what is loaded is byte for byte what the self-test ran, on the same version of the runtime and the same CPU.
Another wheel, or the SD card in another board, leaves the proof behind, and so do damaged files; `proving` then makes a
new one before the slot answers. Without a proof the package's own file is loaded, as it was signed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.codec import Sha256, Text, decode
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import FileRef, Variant
from edgewright_contracts.package import Package
from edgewright_runtime.runtime import probe

from ..disk import Disk, atomic_write

FILE: Final = "proof.json"
FOLDER: Final = "optimised"
BYTES: Final = 16 << 10
# Of /proc/cpuinfo: what code is chosen by, and not what changes from one look to the next.
_FIELDS: Final = ("model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part")


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    model: Sha256
    runtime: str
    version: str
    cpu: str
    files: dict[str, FileRef] = {}  # of FOLDER; the first of them by name is what is loaded. Empty: the package's own
    doubt: Text = ""  # why the self-test did not pass, and the slot answers all the same: nothing better was there


def cpu(text: str | None = None) -> str:
    """16 hex digits of what this CPU can do; `text` is that of /proc/cpuinfo. Raises OSError."""
    lines = (Path("/proc/cpuinfo").read_text(errors="replace") if text is None else text).splitlines()
    pairs = (line.partition(":") for line in lines)
    told = sorted({f"{key.strip()}:{value.strip()}" for key, _, value in pairs if key.strip() in _FIELDS})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def make(package: Package, variant: Variant, runtime: str, files: dict[str, FileRef], doubt: str = "") -> Proof:
    """Of this device as it is now."""
    return Proof(
        model=package.manifest.files[variant.model].sha256,
        runtime=runtime,
        version=probe(runtime),
        cpu=cpu(),
        files=files,
        doubt=doubt[:1000],
    )


def write(disk: Disk, folder: Path, proof: Proof) -> None:
    """Durable afterwards, with the files that it names. Raises OSError."""
    made = folder / FOLDER
    if proof.files:
        for path in (*(made / name for name in sorted(proof.files)), made):
            disk.fsync(path)
        disk.fsync(folder)
    atomic_write(disk, folder / FILE, msgspec.json.encode(proof, order="deterministic"))


def read(disk: Disk, package: Package, variant: Variant, runtime: str) -> Proof | None:
    """The proof of this package in its folder, if it holds here and now and its files are whole.

    One that cannot be read is none. Raises Unavailable when the runtime does not work here.
    """
    try:
        proof = kept(disk, package.root)
        if proof != make(package, variant, runtime, proof.files, proof.doubt):
            return None
        for name, ref in proof.files.items():
            path = package.root / FOLDER / name
            if disk.size(path) != ref.size or disk.sha256(path) != ref.sha256:
                return None
    except (OSError, ContractError):
        return None
    return proof


def kept(disk: Disk, folder: Path) -> Proof:
    """As it lies there, whether it still holds or not. Raises ContractError, OSError."""
    return decode(Proof, disk.read(folder / FILE), name=FILE, limit=BYTES, wire="json")


def to_load(package: Package, variant: Variant, proof: Proof | None) -> tuple[Path, bool]:
    """(file, whether it is an optimised one)."""
    if proof is None or not proof.files:
        return package.root / variant.model, False
    return package.root / FOLDER / min(proof.files), True
