"""Nothing but what the owner signs now reaches a device, whatever the repository serves."""

from __future__ import annotations

from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.refusals import Distrusted, LinkDown, NotAllowed, WrongBytes
from sim.verifier import Verifier


@pytest.fixture
def device(tmp_path, repository):
    with repository.served() as url:
        yield Verifier(tmp_path / "device", repository, url)


def test_a_signed_manifest_is_handed_out(device, package):
    assert device.manifest(package) == package.manifest_bytes


def test_metadata_signed_by_a_stranger_is_refused(device, repository, package):
    repository.write("timestamp", CryptoSigner.generate_ed25519())
    with pytest.raises(Distrusted, match="signed by 0/1 keys"):
        device.manifest(package)


def test_a_stolen_hub_cannot_sign_targets(device, repository, package):
    repository.write("targets", repository.signers["snapshot"])
    with pytest.raises(Distrusted):
        device.manifest(package)


def test_expired_metadata_is_refused(device, repository, package):
    device.clock.advance(timedelta(days=4).total_seconds())
    with pytest.raises(Distrusted, match="expired"):
        device.manifest(package)


def test_a_clock_set_back_does_not_revive_what_has_expired(device, repository, package):
    device.clock.advance(timedelta(days=2).total_seconds())
    device.manifest(package)
    repository.now += timedelta(days=-3)  # metadata that ended a day before this
    repository.metadata["timestamp"].signed.expires = repository.now + timedelta(days=3.5)
    repository.release()
    device.clock.set_wall(int(repository.now.timestamp() * 1000))
    with pytest.raises(Distrusted, match="expired"):
        device.manifest(package)


def test_a_device_without_a_clock_still_updates(device, package):
    device.clock.set_wall(None)
    assert device.manifest(package) == package.manifest_bytes


def test_metadata_older_than_seen_is_refused(device, repository, package):
    device.manifest(package)
    repository.metadata["timestamp"].signed.version -= 2
    repository.write("timestamp")
    with pytest.raises(Distrusted, match="must be >="):
        device.manifest(package)


def test_a_manifest_that_is_not_the_signed_one_is_refused(device, repository, package):
    file = next((repository.folder / "targets").rglob("*.manifest.json"))
    file.write_bytes(file.read_bytes().replace(b"digits", b"digitz"))
    with pytest.raises(Distrusted):
        device.manifest(package)


def test_a_digest_that_is_no_longer_signed_is_not_allowed(device, repository, package):
    device.manifest(package)
    repository.withdraw(package)
    with pytest.raises(NotAllowed, match="signs no package digits"):
        device.manifest(package)


def test_a_repository_that_is_down_is_the_links_fault(device, repository, package):
    repository.down = True
    with pytest.raises(LinkDown):
        device.manifest(package)


def blob(device, repository, package, part):
    ref = package.manifest.files["variants/onnx-fp32/model.onnx"]
    device.link.blob(device.disk, f"{device.url}blobs/{ref.sha256}", part, ref.size, ref.sha256)
    return ref


def test_a_blob_goes_on_where_it_broke_off(device, repository, package, tmp_path):
    part = tmp_path / "part"
    repository.break_after = 1000
    with pytest.raises(LinkDown):
        blob(device, repository, package, part)
    assert part.stat().st_size == 1000
    ref = blob(device, repository, package, part)
    assert part.stat().st_size == ref.size
    assert repository.requests[-1][1] == "bytes=1000-"
    asked = len(repository.requests)
    blob(device, repository, package, part)
    assert len(repository.requests) == asked  # whole already: only hashed


def test_wrong_bytes_are_thrown_away_and_the_next_try_starts_clean(device, repository, package, tmp_path):
    part = tmp_path / "part"
    part.write_bytes(b"x" * 100)  # what a power cut may leave
    with pytest.raises(WrongBytes, match="sha256"):
        blob(device, repository, package, part)
    assert not part.exists()
    blob(device, repository, package, part)


def test_a_blob_longer_than_signed_is_never_stored(device, repository, package, tmp_path):
    ref = package.manifest.files["variants/onnx-fp32/model.onnx"]
    file = repository.folder / "blobs" / ref.sha256
    file.write_bytes(file.read_bytes() + b"more" * 100_000)
    with pytest.raises(WrongBytes, match="got more"):
        blob(device, repository, package, tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_a_blob_is_hashed_without_holding_it_in_memory(device, repository, package, tmp_path, monkeypatch):
    monkeypatch.setattr(device.disk, "read", lambda path: pytest.fail(f"{path} is read whole"))
    blob(device, repository, package, tmp_path / "part")


def test_what_is_on_the_device_may_run_by_what_was_verified_last_until_that_expires(device, repository, package):
    name, digest = package.manifest.name, package.digest
    repository.down = True
    with pytest.raises(LinkDown):  # nothing was ever verified
        device.trust.allow(name, digest)
    repository.down = False
    device.manifest(package)
    repository.down = True
    device.trust.allow(name, digest)
    with pytest.raises(NotAllowed):
        device.trust.allow(name, "f" * 64)
    device.clock.advance(timedelta(days=366).total_seconds())
    with pytest.raises(LinkDown):
        device.trust.allow(name, digest)


def test_what_is_on_the_device_and_was_withdrawn_may_not_run(device, repository, package):
    device.manifest(package)
    repository.withdraw(package)
    with pytest.raises(NotAllowed, match="signs no package digits"):
        device.trust.allow(package.manifest.name, package.digest)


def test_what_cannot_wait_breaks_off_a_refresh(device, package):
    class Urgent(Exception):
        pass

    def interrupt():
        raise Urgent

    for ask in (device.trust.manifest, device.trust.allow):
        with pytest.raises(Urgent):
            ask(package.manifest.name, package.digest, interrupt)
    assert device.manifest(package) == package.manifest_bytes


def test_metadata_that_breaks_off_in_the_middle_is_asked_for_again(device, repository, package, monkeypatch):
    answer, broken = repository.answer, []

    def breaking(request):
        if request.path.endswith("targets.json") and not broken:
            data = (repository.folder / request.path.lstrip("/")).read_bytes() + bytes(2000)
            broken.append(request.path)
            request.send_response(200)
            request.send_header("Content-Length", str(len(data) + 1))
            request.end_headers()
            request.wfile.write(data)
            request.close_connection = True
            return
        answer(request)

    monkeypatch.setattr(repository, "answer", breaking)
    assert device.manifest(package) == package.manifest_bytes
    assert broken


class Noted(RealDisk):
    """Notes what is synced."""

    def __init__(self):
        super().__init__()
        self.synced = []

    def fsync(self, path):
        super().fsync(path)
        self.synced.append(path.name)


def test_what_was_verified_is_durable_and_written_once(device, repository, package):
    disk = Noted()
    device.trust._disk = disk
    device.manifest(package)
    lists = ["1.root.json.new", "timestamp.json.new", "snapshot.json.new", "targets.json.new"]
    assert [name for name in disk.synced if name.endswith(".new")] == [*lists, "time.json.new"]
    assert disk.synced.count("trust") >= 4  # the names as well
    assert not any(path.is_symlink() or path.name.startswith("tmp") for path in device.folder.rglob("*"))
    disk.synced.clear()
    device.clock.advance(1)
    device.manifest(package)
    assert [name for name in disk.synced if name.endswith(".new")] == ["time.json.new"]


def test_a_list_that_rotted_on_the_device_is_fetched_anew_and_without_a_network_is_none(device, repository, package):
    device.manifest(package)
    place = device.folder / "trust" / "targets.json"
    place.write_bytes(place.read_bytes()[:100] + bytes(100))
    repository.down = True
    with pytest.raises(LinkDown):
        device.trust.allow("digits", package.digest)
    repository.down = False
    device.trust.allow("digits", package.digest)


def test_a_mark_of_the_time_that_rotted_does_not_date_the_device_where_all_has_expired(device, package):
    device.manifest(package)
    place = device.folder / "trust" / "time.json"
    mark = place.read_bytes()
    place.write_bytes(mark.replace(b":1", b":4", 1))
    assert place.read_bytes() != mark
    assert device.manifest(package) == package.manifest_bytes


def test_a_mark_of_the_time_that_an_earlier_release_wrote_still_protects(device, repository, package):
    device.manifest(package)
    later_ms = device.clock.wall_ms() + 10 * 86_400_000
    (device.folder / "trust" / "time.json").write_bytes(b'{"highest_ms":%d}' % later_ms)
    with pytest.raises(Distrusted, match="expired"):
        device.manifest(package)
