"""The power is cut at each disk call of an installation: afterwards the device runs a whole package, and converges."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from edgewright_agent.updating import slots, update
from edgewright_agent.updating.slots import ModelState, Slot, Store
from edgewright_agent.updating.update import Event, Record, State
from edgewright_contracts.desired import DesiredModel
from edgewright_contracts.errors import ContractError
from sim import packages
from sim.disk import PowerCut, SimDisk

MODELS = Path("/home/models")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    return [packages.make_package(root / str(i), version=f"{i}", seed=i) for i in (1, 2)]


def wish(package) -> DesiredModel:
    return DesiredModel(name="digits", digest=package.digest)


def install(store: Store, disk: SimDisk, package, record: Record) -> None:
    """The disk's share of every step from fetch to commit, in the installer's order."""

    def go(**changes: object) -> None:
        nonlocal record
        record = update.advance(record, Event.DONE)
        store.save(msgspec.structs.replace(store.state, record=record, **changes))

    variant = package.manifest.variant("onnx-fp32")
    for file in slots.needed(variant):
        data = package.read(file)
        part = store.part(hashlib.sha256(data).hexdigest())
        disk.write(part, data)
        disk.fsync(part)
        disk.fsync(part.parent)
    go()
    slot = Slot(package.digest, package.manifest.version, variant.id, "onnxruntime")
    store.stage(package.manifest_bytes, slot)
    go()  # → selftest
    go()  # → warmup
    go()  # → activate
    go(active=store.state.spare)  # → probation, with the pointer
    go()  # → commit
    go()  # → idle


def whole(disk: SimDisk, store: Store) -> str | None:
    """The digest of what would run, after checking every byte of it; None when nothing is active."""
    side = store.state.active
    if side is None:
        return None
    slot = store.state.slot(side)
    assert slot is not None, "the pointer names an empty slot"
    data = disk.read(store.side(side) / "manifest.json")
    assert hashlib.sha256(data).hexdigest() == slot.digest
    manifest = slots.decode_manifest(data)
    for file in slots.needed(manifest.variant(slot.variant)):
        assert hashlib.sha256(disk.read(store.side(side) / file)).hexdigest() == manifest.files[file].sha256
    return slot.digest


def begin(store: Store, package) -> Record:
    record = update.want(Record(), wish(package))
    store.save(msgspec.structs.replace(store.state, record=record))
    return record


@pytest.mark.parametrize("keep", ["least", "most"])
def test_wherever_the_power_is_cut_a_whole_package_runs_and_the_next_try_ends_well(two, keep):
    first, second = two
    probe = SimDisk()
    store = Store(probe, MODELS, "digits")
    install(store, probe, first, begin(store, first))
    before = probe.calls
    install(store, probe, second, begin(store, second))
    assert whole(probe, store) == second.digest
    for cut_at in range(before + 1, probe.calls + 1):
        disk = SimDisk()
        store = Store(disk, MODELS, "digits")
        install(store, disk, first, begin(store, first))
        disk.cut_at = cut_at
        with pytest.raises(PowerCut):
            install(store, disk, second, begin(store, second))
        disk.crash(keep)
        store = Store(disk, MODELS, "digits")
        running = whole(disk, store)
        assert running in (first.digest, second.digest), cut_at
        record, then = update.resume(store.state.record, unclean=True)
        assert then is None
        if record.state is State.IDLE and running == first.digest:
            record = begin(store, second)
        if record.state is State.FETCH:
            install(store, disk, second, record)
            running = whole(disk, store)
        elif running == first.digest:  # staged and durable, not yet active
            slot = store.state.slot(store.state.spare)
            assert slot is not None
            assert slot.digest == second.digest
            running = whole_spare(disk, store)
        assert running == second.digest, (cut_at, record.state)


def whole_spare(disk: SimDisk, store: Store) -> str | None:
    store.state = msgspec.structs.replace(store.state, active=store.state.spare)
    return whole(disk, store)


def test_a_damaged_state_file_is_named():
    disk = SimDisk()
    disk.mkdir(MODELS / "digits")
    disk.write(MODELS / "digits" / "state.json", b"{")
    with pytest.raises(ContractError, match=r"state\.json"):
        Store(disk, MODELS, "digits")


def test_state_comes_back_as_it_was():
    disk = SimDisk()
    store = Store(disk, MODELS, "digits")
    state = ModelState(active="b", b=Slot("a" * 64, "1.0", "onnx-fp32", "onnxruntime"), blocked={"c" * 64: "self-test"})
    store.save(state)
    assert Store(disk, MODELS, "digits").state == state
