"""Attacks on the repository, as the TUF specification lists them (section 1.5.2), against a device that answers.

Each is refused for a reason of its own that reaches the operator, and the package that ran goes on answering.
"""

from __future__ import annotations

import contextlib
import copy
import re
import shutil
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile

from edgewright_agent.clock import SystemClock
from edgewright_agent.updating.refusals import Distrusted, LinkDown, NotAllowed
from edgewright_agent.updating.trust import REFRESH_S
from edgewright_contracts.manifest import target_path
from sim import packages
from sim.verifier import Verifier

MODEL = "variants/onnx-fp32/model.onnx"


class Shifted(SystemClock):
    """The system's clock, set forward or back, and sure of itself."""

    shift_s = 0.0

    def wall_ms(self):
        return super().wall_ms() + int(self.shift_s * 1000)

    def synced(self):
        return True


def arbitrary_package(repository, package, clock):
    """A stolen hub lists a package of its own, with the keys that it has."""
    target = repository.metadata["targets"].signed
    target.targets[target_path("digits", "6.6.6")] = target.targets[target_path("digits", "2.0.0")]
    repository.release()
    repository.write("targets", repository.signers["snapshot"])


def rollback(repository, package, clock):
    """Metadata that every device has seen newer."""
    repository.metadata["timestamp"].signed.version -= 3
    repository.write("timestamp")


def rollback_of_the_list(repository, package, clock):
    """Fresh signatures of the hub over a list of the owner's that is older than the one that devices have seen."""
    snapshot, timestamp = (repository.metadata[role].signed for role in ("snapshot", "timestamp"))
    snapshot.version += 1
    timestamp.version += 1
    snapshot.meta = {"targets.json": MetaFile(1)}
    timestamp.snapshot_meta = MetaFile(snapshot.version)
    repository.write("snapshot")
    repository.write("timestamp")


def freeze(repository, package, clock):
    """What was true five days ago is served for ever."""
    clock.shift_s = timedelta(days=5).total_seconds()


def mix_and_match(repository, package, clock):
    """A list that was never in force together with this snapshot."""
    version = repository.metadata["targets"].signed.version
    folder = repository.folder / "metadata"
    repository.release()
    shutil.copy(folder / f"{version}.targets.json", folder / f"{version + 1}.targets.json")


def endless_data(repository, package, clock):
    repository.endless = "timestamp.json"


def wrong_manifest(repository, package, clock):
    file = repository.folder / "targets" / "packages" / "digits" / "2.0.0" / f"{package.digest}.manifest.json"
    file.write_bytes(file.read_bytes().replace(b"digits", b"digitz"))


def wrong_hash(repository, package, clock):
    file = repository.folder / "blobs" / package.manifest.files[MODEL].sha256
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def endless_model(repository, package, clock):
    repository.endless = package.manifest.files[MODEL].sha256


def root_of_a_stranger(repository, package, clock):
    root = repository.metadata["root"]
    root.signed.version += 1
    repository.write("root", CryptoSigner.generate_ed25519())


def withdrawn_digest(repository, package, clock):
    repository.withdraw(package)


ATTACKS = {  # who is to blame, and what the operator reads
    arbitrary_package: ("hub", "targets was signed by 0/1 keys"),
    rollback: ("hub", "timestamp version .* must be >="),
    rollback_of_the_list: ("hub", "targets.json .*version|Expected targets"),
    freeze: ("hub", "timestamp.json is expired"),
    mix_and_match: ("hub", "Expected targets v"),
    endless_data: ("hub", "sends more than it may: .*timestamp.json: expected at most 16384 bytes"),
    wrong_manifest: ("hub", "does not verify: .*(hash|length)"),
    wrong_hash: ("hub", "blobs/.*: expected sha256"),
    endless_model: ("hub", "blobs/.*: expected [0-9]+ bytes, got more"),
    root_of_a_stranger: ("hub", "root was signed by 0/1 keys"),
    withdrawn_digest: ("hub", "the owner signs no package digits with digest"),
}


@contextlib.contextmanager
def undone(repository, clock):
    """What is done to the repository and the clock ends with the block; it goes on above what devices have seen."""
    backup = repository.folder.with_name("honest")
    shutil.copytree(repository.folder, backup)
    honest = copy.deepcopy(repository.metadata)
    try:
        yield
    finally:
        for role in ("targets", "snapshot", "timestamp"):
            seen = repository.metadata[role].signed.version
            honest[role].signed.version = max(honest[role].signed.version, seen)
        repository.metadata, repository.endless, clock.shift_s = honest, None, 0.0
        shutil.rmtree(repository.folder)
        backup.rename(repository.folder)
        repository.release()


def revoke(repository):
    """The owner takes the key of the list back in a new root. Returns the new key; who has the old one signs on."""
    root, fresh = repository.metadata["root"], CryptoSigner.generate_ed25519()
    root.signed.revoke_key(repository.signers["targets"].public_key.keyid, "targets")
    root.signed.add_key(fresh.public_key, "targets")
    root.signed.version += 1
    repository.write("root")
    repository.release()
    return fresh


def test_each_attack_is_refused_for_its_own_reason_and_the_old_package_goes_on_answering(world):
    old, new = world.package("v1"), world.package("v2", version="2.0.0", seed=2)
    image = packages.draw(1, seed=1)[0][0]
    repository, clock, told = world.repository, Shifted(), world.hub.events["dev-1"]
    with world.agent(clock=clock) as agent:
        model = agent.model("digits")

        def at_last(state):
            """With inferences meanwhile, or nothing would be judged."""
            return (model.active is None or bool(model.predict({"image": image}))) and told and told[-1].after == state

        def refused(digest, begin):
            before = len(told)
            begin()
            world.want(new)
            assert world.hub.wait(lambda: any(e.failure for e in told[before:])), begin
            assert model.active.subject.digest == digest
            assert model.predict({"image": image})
            return next(e for e in told[before:] if e.failure)

        world.want(old)
        assert world.hub.wait(lambda: at_last("idle") and model.active is not None)
        for attack, (blame, reason) in ATTACKS.items():
            with undone(repository, clock):
                event = refused(old.digest, lambda a=attack: a(repository, new, clock))
                assert (attack, event.failure) == (attack, blame)
                assert re.search(reason, event.reason), (attack, event.reason)

        fresh = []
        event = refused(old.digest, lambda: fresh.append(revoke(repository)))
        assert (event.failure, "targets was signed by 0/1 keys" in event.reason) == ("hub", True)
        repository.signers["targets"] = fresh[0]  # the owner signs again
        repository.release()
        world.want(new)
        assert world.hub.wait(lambda: model.active.subject.digest == new.digest)


@pytest.fixture
def device(tmp_path, repository):
    return Verifier(tmp_path / "device", repository)


@pytest.mark.parametrize(("bytes_per_s", "reason"), [(20, "took longer than 600 s"), (2, "expected 960 bytes in 60 s")])
def test_metadata_that_drips_is_given_up(device, package, bytes_per_s, reason):
    device.wire.bytes_per_s, device.wire.lies["/timestamp.json"] = bytes_per_s, None
    began = device.clock.monotonic_ns()
    with pytest.raises(LinkDown, match=reason):
        device.manifest(package)
    assert (device.clock.monotonic_ns() - began) / 1e9 < REFRESH_S + 60


def test_metadata_without_an_end_is_given_up_after_what_it_may_have(device, package):
    device.wire.lies["/timestamp.json"] = None
    with pytest.raises(Distrusted, match="sends more than it may"):
        device.manifest(package)
    assert device.wire.served < 100_000


def test_what_is_on_the_device_does_not_run_by_a_repository_that_sends_without_an_end(device, package):
    device.manifest(package)
    device.wire.lies["/timestamp.json"] = None
    with pytest.raises(Distrusted, match="sends more than it may"):
        device.trust.allow("digits", package.digest)


def test_a_root_that_expired_is_refused(device, repository, package):
    root = repository.metadata["root"]
    root.signed.version += 1
    root.signed.expires = repository.now - timedelta(days=1)
    repository.write("root")
    with pytest.raises(Distrusted, match=r"root\.json is expired"):
        device.manifest(package)


def test_a_clock_set_back_does_not_thaw_a_frozen_repository(device, repository, package):
    device.clock.advance(timedelta(days=2).total_seconds())
    device.manifest(package)
    device.clock.set_wall(int(repository.now.timestamp() * 1000))
    device.manifest(package)  # valid until tomorrow, by the time that was seen
    repository.metadata["timestamp"].signed.expires = repository.now + timedelta(days=1)
    repository.release()
    with pytest.raises(Distrusted, match=r"timestamp\.json is expired"):
        device.manifest(package)


def test_a_restored_hub_is_believed_because_it_signs_above_what_was_seen(device, repository, package):
    """Its database is a week old; its snapshot and timestamp are numbered by the clock (hub/repository.py)."""
    backup = copy.deepcopy(repository.metadata)
    for role in ("snapshot", "timestamp"):
        repository.metadata[role].signed.version += 1000
    repository.release()
    device.manifest(package)
    for role in ("snapshot", "timestamp"):
        backup[role].signed.version = repository.metadata[role].signed.version + 10
    backup["targets"].signed.version = repository.metadata["targets"].signed.version - 1
    repository.metadata = backup
    repository.release()
    assert device.manifest(package) == package.manifest_bytes


def test_a_restored_hub_that_lost_a_list_is_believed_again_once_the_owner_signs_the_next(device, repository, package):
    lost = copy.deepcopy(repository.metadata)
    repository.release()
    device.manifest(package)
    for role in ("snapshot", "timestamp"):
        lost[role].signed.version += 1000
    lost["targets"].signed.version -= 1
    seen, repository.metadata = repository.metadata["targets"].signed.version, lost
    repository.release()
    assert repository.metadata["targets"].signed.version < seen
    with pytest.raises(Distrusted, match="version"):
        device.manifest(package)
    repository.metadata["targets"].signed.version = seen
    repository.release()
    assert device.manifest(package) == package.manifest_bytes


def test_a_digest_that_is_withdrawn_is_refused_by_its_number(device, repository, package):
    repository.withdraw(package)
    with pytest.raises(NotAllowed, match=package.digest[:16]):
        device.manifest(package)
