"""Homes in which packages were installed already, without a hub, a repository or a probation."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.proving import Proving
from edgewright_agent.updating.slots import Slot, Store, needed
from edgewright_contracts.package import Package


def install(models: Path, package: Package) -> None:
    """Into the spare slot of `models/<name>`: it passes its self-test here, is active and committed."""
    manifest, disk = package.manifest, RealDisk()
    store, variant = Store(disk, models, manifest.name), manifest.variants[0]
    for file in needed(variant):
        store.part(manifest.files[file].sha256).write_bytes(package.read(file))
    side = store.state.spare
    store.stage(package.manifest_bytes, Slot(package.digest, manifest.version, variant.id, "onnxruntime"))
    verdict, _ = Proving(disk, threading.Event()).prove(store, side)
    assert verdict.passed, verdict.reason
    store.save(msgspec.structs.replace(store.state, active=side))
    store.commit()
