"""Recovery: what is taken for a model's state while its state.json is damaged, lost, or of a later agent. Reads only.

Guarantee: what can answer goes on answering. In this order:

- what was committed last. A package that was on trial beside it is not taken for good: the record that would judge it
  is lost;
- what ran, by as much of state.json as every version says in the same words;
- what lies whole in a slot and passed its self-test on this device. It is on trial again, for nobody knows how far it
  was, and if it takes the process down it must be left again.
"""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from edgewright_contracts.codec import Sha256, decode
from edgewright_contracts.desired import DesiredModel
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import decode_manifest, digest
from edgewright_contracts.package import Package

from ..disk import Disk
from . import proof
from .choice import release
from .slots import SIDES, STATE_BYTES, ModelState, Side, Slot, committed, intact
from .update import Record, State


class Lasting(msgspec.Struct, frozen=True):
    """What every version of `state.json` says in the same words."""

    active: Side | None = None
    a: Slot | None = None
    b: Slot | None = None
    blocked: dict[Sha256, str] = {}


def recover(disk: Disk, root: Path) -> ModelState:
    """Of a model whose `slots.load` raises."""
    known, good = _lasting(disk, root), committed(disk, root)
    if known is None and good is None:
        return _on_trial(disk, root)
    known = known or Lasting()
    state = ModelState(active=known.active, a=known.a, b=known.b, blocked=known.blocked)
    if good is not None and good.slot.digest not in known.blocked:
        state = msgspec.structs.replace(state.with_slot(good.side, good.slot), active=good.side)
    return state


def _lasting(disk: Disk, root: Path) -> Lasting | None:
    try:
        return decode(Lasting, disk.read(root / "state.json"), name="state.json", limit=STATE_BYTES, wire="json")
    except (ContractError, OSError):
        return None


def _on_trial(disk: Disk, root: Path) -> ModelState:
    """The newest of the packages in the slots; what was wanted last, most likely."""
    found = {side: slot for side in SIDES if (slot := _whole(disk, root, side)) is not None}
    if not found:
        return ModelState()
    active = max(found, key=lambda side: release(found[side].version))
    record = Record(
        state=State.PROBATION,
        wanted=DesiredModel(name=root.name, digest=found[active].digest),
        attempt=1,
        reason="what ran here is not known any more: on trial again",
    )
    return ModelState(active=active, a=found.get("a"), b=found.get("b"), record=record)


def _whole(disk: Disk, root: Path, side: Side) -> Slot | None:
    """What lies in this slot, by its own manifest and proof, if every file of it is what was signed."""
    folder = root / side
    try:
        data, passed = disk.read(folder / "manifest.json"), proof.kept(disk, folder)
        manifest = decode_manifest(data)
        package = Package(manifest, data, digest(data), folder)
        for variant, runtime in manifest.ranked(platform.machine().lower(), (passed.runtime,)):
            if manifest.name == root.name and manifest.files[variant.model].sha256 == passed.model:
                intact(disk, package, variant)
                return Slot(package.digest, manifest.version, variant.id, runtime)
    except (ContractError, OSError):
        pass  # not whole, so it cannot answer
    return None
