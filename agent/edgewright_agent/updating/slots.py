"""Two slots per model on disk, a and b, and the one file that says which of them runs.

    models/<name>/state.json      pointer, slots, update record, blocked digests; replaced atomically
    models/<name>/committed.json  the slot that was committed last: what runs when state.json cannot be read
    models/<name>/a/  b/          manifest.json and the files of one variant
    models/<name>/parts/<sha256>  downloads

Guarantee: `state.json` names a slot only while that slot is whole and durable. It is forgotten there before the first
byte of it is overwritten. A state.json that is damaged, lost, or of a later agent costs the update that was under way,
and not the model that answers (`recovery`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from edgewright_contracts.codec import Name, Sha256, Version, decode
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest, Variant, VariantId, decode_manifest, digest
from edgewright_contracts.package import Package
from edgewright_runtime.golden import GOLDEN_FILE

from ..disk import Disk, atomic_write
from . import proof
from .quality import PrePeriod
from .update import Record

STATE_BYTES: Final = 1 << 20
VERSION: Final = 2  # 2: shadow runs, held updates; 1 is read

Side = Literal["a", "b"]
SIDES: Final[tuple[Side, Side]] = ("a", "b")


class Damaged(ContractError):
    """What lies in a slot is not what was signed and put there: flash rots, and the model is not to blame."""


class Slot(msgspec.Struct, frozen=True):
    digest: Sha256
    version: Version
    variant: VariantId
    runtime: str


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    active: Side | None = None
    a: Slot | None = None
    b: Slot | None = None
    record: Record = Record()
    blocked: dict[Sha256, str] = {}  # digest → reason
    history: PrePeriod = PrePeriod()  # of what runs: what the next package will be judged against

    @property
    def running(self) -> Slot | None:
        return self.slot(self.active) if self.active else None

    @property
    def spare(self) -> Side:
        """The side that is staged into; the previous package, while it is kept."""
        return "b" if self.active == "a" else "a"

    def slot(self, side: Side) -> Slot | None:
        return self.a if side == "a" else self.b

    def with_slot(self, side: Side, slot: Slot | None) -> ModelState:
        return msgspec.structs.replace(self, a=slot) if side == "a" else msgspec.structs.replace(self, b=slot)


class Committed(msgspec.Struct, frozen=True):
    """`committed.json`; slots are verified before they are loaded, so that this may be older than they are."""

    side: Side
    slot: Slot


class Store:
    """The slots of one model. Not thread-safe: the install thread owns it."""

    def __init__(self, disk: Disk, models: Path, name: Name, state: ModelState | None = None) -> None:
        """`state` takes the place of a file that cannot be read; else raises ContractError for such a file."""
        self.disk, self.name = disk, name
        self.root = models / name
        disk.mkdir(self.root)
        self.state = load(disk, self.root) if state is None else state

    def commit(self) -> None:
        """What is active now is the good one. May be repeated."""
        side, slot = self.state.active, self.state.running
        if side is None or slot is None:
            return
        data = msgspec.json.encode(Committed(side, slot))
        if committed(self.disk, self.root) != Committed(side, slot):
            atomic_write(self.disk, self.root / "committed.json", data)

    def save(self, state: ModelState) -> None:
        atomic_write(self.disk, self.root / "state.json", msgspec.json.encode(state, order="deterministic"))
        self.state = state

    def side(self, side: Side) -> Path:
        return self.root / side

    def part(self, sha256: str) -> Path:
        self.disk.mkdir(self.root / "parts")
        return self.root / "parts" / sha256

    def to_download(self, manifest: Manifest, variant: Variant) -> int:
        """Bytes that are still missing to run `variant`."""
        refs = [manifest.files[file] for file in files(manifest, variant)]
        return sum(max(0, r.size - (self.disk.size(self.root / "parts" / r.sha256) or 0)) for r in refs)

    def stage(self, manifest_bytes: bytes, slot: Slot) -> None:
        """Move downloaded parts into the spare slot. May be cut anywhere and done again after another fetch."""
        side = self.state.spare
        manifest = decode_manifest(manifest_bytes)
        folder = self.side(side)
        self.save(self.state.with_slot(side, None))
        self.disk.remove_tree(folder)
        for file in files(manifest, manifest.variant(slot.variant)):
            target = folder / file
            self.disk.mkdir(target.parent)
            self.disk.rename(self.part(manifest.files[file].sha256), target)
            self.disk.fsync(target.parent)
        atomic_write(self.disk, folder / "manifest.json", manifest_bytes)
        self.save(self.state.with_slot(side, slot))
        self.disk.remove_tree(self.root / "parts")

    def package(self, side: Side) -> Package:
        """The package in a slot, its manifest checked against the digest. Raises Damaged, OSError."""
        slot = self.state.slot(side)
        if slot is None:
            raise Damaged(f"{self.root.name}/{side}", "a package", "an empty slot")
        folder = self.side(side)
        try:
            data = self.disk.read(folder / "manifest.json")
        except FileNotFoundError:
            raise Damaged(str(folder), "manifest.json", "none") from None
        if digest(data) != slot.digest:
            raise Damaged(str(folder / "manifest.json"), f"digest {slot.digest}", digest(data))
        return Package(decode_manifest(data), data, slot.digest, folder)

    def verified(self, side: Side) -> Package:
        """`package`, and every file of the slot's variant is what was signed. Raises Damaged, OSError."""
        package, slot = self.package(side), self.state.slot(side)
        assert slot is not None
        intact(self.disk, package, package.manifest.variant(slot.variant))
        return package


def load(disk: Disk, root: Path) -> ModelState:
    """Reads only. Raises ContractError when state.json is damaged, lost, or of a later agent."""
    path = root / "state.json"
    try:
        data = disk.read(path)
    except FileNotFoundError:
        tested = any(disk.size(root / side / proof.FILE) is not None for side in SIDES)
        if committed(disk, root) is None and not tested:
            return ModelState()
        raise Damaged(str(path), "a file, as something was installed here", "none") from None
    except OSError as error:
        raise Damaged(str(path), "a file that can be read", str(error)) from error
    return msgspec.structs.replace(decode(ModelState, data, name=str(path), limit=STATE_BYTES, wire="json"), v=VERSION)


def committed(disk: Disk, root: Path) -> Committed | None:
    """What is known of it without `state.json`; None when nothing was, or that is damaged as well."""
    try:
        data = disk.read(root / "committed.json")
        return decode(Committed, data, name="committed.json", limit=STATE_BYTES, wire="json")
    except (ContractError, OSError):
        return None


def intact(disk: Disk, package: Package, variant: Variant) -> None:
    """Every file of `variant` is what was signed. Raises Damaged, OSError."""
    for file in files(package.manifest, variant):
        path, ref = package.root / file, package.manifest.files[file]
        size = disk.size(path)
        if size != ref.size:
            raise Damaged(str(path), f"{ref.size} bytes", f"{size}")
        got = disk.sha256(path)
        if got != ref.sha256:
            raise Damaged(str(path), f"sha256 {ref.sha256}", got)


def needed(variant: Variant) -> tuple[str, ...]:
    """What every device downloads beside the manifest."""
    return (variant.model, variant.baseline, variant.selftest)


def files(manifest: Manifest, variant: Variant) -> tuple[str, ...]:
    """`needed`, and the vectors that an application's own preprocessing is checked by."""
    return (*needed(variant), *([GOLDEN_FILE] if manifest.preprocess == "host" else []))
