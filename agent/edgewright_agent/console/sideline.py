"""One prediction from what a home has installed, beside a running agent and without counting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewright_contracts.errors import ContractError, RequestError, Unavailable
from edgewright_contracts.package import Package
from edgewright_runtime.runtime import Array, Session, open_session

from ..disk import RealDisk
from ..inference.checks import checker
from ..updating import proof, slots
from ..updating.recovery import recover
from . import status


def installed(home: Path, name: str) -> tuple[Package, slots.Slot]:
    """What answers. Raises RequestError, Unavailable, ContractError."""
    status.of(home)
    disk = RealDisk()
    known = disk.list(home / "models")
    if name not in known:
        raise RequestError(f"expected an installed model among {', '.join(known) or 'none'}, got {name!r}")
    try:
        store = slots.Store(disk, home / "models", name)
    except ContractError:  # as the agent does
        store = slots.Store(disk, home / "models", name, recover(disk, home / "models" / name))
    slot, side = store.state.running, store.state.active
    if slot is None or side is None:
        raise Unavailable(f"model {name} has no package yet ({store.state.record.state}: {store.state.record.reason})")
    return store.package(side), slot


def opened(package: Package, slot: slots.Slot) -> Session:
    """The very file that passed the self-test, as the agent loads it. Raises RequestError, Unavailable, OSError."""
    manifest = package.manifest
    variant = manifest.variant(slot.variant)
    package.read(variant.model)  # verified
    file, optimised = proof.to_load(package, variant, proof.read(RealDisk(), package, variant, slot.runtime))
    return open_session(
        file,
        slot.runtime,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        options=variant.options,
        optimised=optimised,
    )


def predict(home: Path, name: str, x: Array) -> dict[str, Any]:
    """`x` is one sample of a model with one input. Raises RequestError, Rejected, Unavailable, ContractError."""
    package, slot = installed(home, name)
    manifest = package.manifest
    if len(manifest.inputs) != 1:
        raise RequestError(f"expected a model with one input, {name} has {len(manifest.inputs)}; use the Python API")
    session, tensor = opened(package, slot), manifest.inputs[0]
    found = session.run({tensor.name: checker(tensor)({tensor.name: x})})
    return {
        "model": name,
        "version": manifest.version,
        "digest": package.digest,
        "variant": slot.variant,
        "outputs": {key: y[0].tolist() for key, y in found.items()},
    }
