from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from edgewright_compiler.keys import init_keys
from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_hub import doctor
from edgewright_hub.fleet.ca import open_authority
from edgewright_hub.registry.registry import Conflict, Registry
from edgewright_hub.storage import control
from sim.releases import files_of, manifest_of, targets_of

NOW = datetime.now(UTC)


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


def put(registry: Registry, data: bytes, sha256: str | None = None) -> bool:
    return asyncio.run(registry.put_blob(sha256 or hashlib.sha256(data).hexdigest(), _chunks(data)))


def put_package(registry: Registry, version: str = "1.0.0", **changes: Any) -> bytes:
    for data in files_of(version).values():
        put(registry, data)
    manifest = manifest_of(version, **changes)
    put(registry, manifest)
    return manifest


class FromDisk(FetcherInterface):  # type: ignore[misc]
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Any:
        from tuf.api.exceptions import DownloadHTTPError

        place = self._folder / url.removeprefix("http://hub/repo/")
        if not place.is_file():
            raise DownloadHTTPError("absent", 404)
        return iter([place.read_bytes()])


def device(registry: Registry, home: Path) -> Updater:
    """A device that trusts the owner's root; raises what tuf raises."""
    (home / "metadata").mkdir(parents=True, exist_ok=True)
    updater = Updater(
        str(home / "metadata"),
        "http://hub/repo/metadata/",
        str(home),
        "http://hub/repo/targets/",
        fetcher=FromDisk(registry.folder),
        bootstrap=registry.first_root,
    )
    updater.refresh()
    return updater


def states(engine: sa.Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {row.version: row.state for row in connection.execute(sa.select(control.packages))}


def test_a_device_finds_what_was_published(registry: Registry, owner: Path, tmp_path: Path) -> None:
    assert device(registry, tmp_path / "dev").get_targetinfo("packages/digits/1.0.0/manifest.json") is None
    manifest = put_package(registry)
    assert registry.post_targets(targets_of(owner, 2, manifest), now=NOW) == 2
    updater = device(registry, tmp_path / "dev")
    info = updater.get_targetinfo("packages/digits/1.0.0/manifest.json")
    assert info is not None
    got = Path(updater.download_target(info, str(tmp_path / "got"))).read_bytes()
    assert got == manifest


def test_withdrawing_keeps_the_record_and_allowing_again_the_digest(
    registry: Registry, owner: Path, control_engine: sa.Engine
) -> None:
    one, two = put_package(registry, "1.0.0"), put_package(registry, "2.0.0")
    registry.post_targets(targets_of(owner, 2, one, two), now=NOW)
    registry.post_targets(targets_of(owner, 3, two), now=NOW)
    assert states(control_engine) == {"1.0.0": "withdrawn", "2.0.0": "allowed"}
    other = put_package(registry, "1.0.0", labels=("changed",))
    with pytest.raises(Refused, match="never changes"):
        registry.post_targets(targets_of(owner, 4, two, other), now=NOW)
    registry.post_targets(targets_of(owner, 4, one, two), now=NOW)
    assert states(control_engine) == {"1.0.0": "allowed", "2.0.0": "allowed"}


def test_a_list_that_is_not_newer_is_a_conflict(registry: Registry, owner: Path) -> None:
    manifest = put_package(registry)
    with pytest.raises(Conflict, match="expected a version above 1, got 1"):
        registry.post_targets(targets_of(owner, 1, manifest), now=NOW)


def test_a_restored_hub_takes_a_list_that_is_some_versions_ahead(registry: Registry, owner: Path) -> None:
    manifest = put_package(registry)
    assert registry.post_targets(targets_of(owner, 7, manifest), now=NOW) == 7


def test_a_list_of_another_owner_is_refused(registry: Registry, tmp_path: Path) -> None:
    init_keys(tmp_path / "thief", now=NOW)
    manifest = put_package(registry)
    with pytest.raises(Refused, match="signature"):
        registry.post_targets(targets_of(tmp_path / "thief", 2, manifest), now=NOW)


def test_a_list_that_was_changed_after_signing_is_refused(registry: Registry, owner: Path) -> None:
    manifest = put_package(registry)
    body = json.loads(targets_of(owner, 2, manifest))
    body["signed"]["targets"]["packages/digits/1.0.0/manifest.json"]["length"] += 1
    with pytest.raises(Refused, match="signature"):
        registry.post_targets(json.dumps(body).encode(), now=NOW)


def test_the_hubs_own_keys_cannot_sign_a_list(registry: Registry, owner: Path, tmp_path: Path) -> None:
    """A stolen hub: snapshot.pem in the place of targets.pem."""
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Targets

    manifest = put_package(registry)
    body = Metadata[Targets].from_bytes(targets_of(owner, 2, manifest))
    body.signatures.clear()
    root = registry.root()
    key = root.signed.keys[root.signed.roles["snapshot"].keyids[0]]
    body.sign(CryptoSigner.from_priv_key_uri(f"file2:{owner / 'hub' / 'snapshot.pem'}", key))
    with pytest.raises(Refused, match="signature"):
        registry.post_targets(body.to_bytes(), now=NOW)


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"\xff", b'{"signed": {"_type": "root"}, "signatures": []}'])
def test_what_is_no_list_is_refused(registry: Registry, body: bytes) -> None:
    with pytest.raises(ContractError, match="targets"):
        registry.post_targets(body, now=NOW)


def test_a_root_in_the_place_of_a_list_is_refused(registry: Registry) -> None:
    with pytest.raises((ContractError, Refused)):
        registry.post_targets(registry.first_root, now=NOW)


def test_an_expired_list_is_refused(registry: Registry, owner: Path) -> None:
    with pytest.raises(Refused, match="expired"):
        registry.post_targets(targets_of(owner, 2, expires=timedelta(days=-1)), now=NOW)


def test_a_package_without_all_its_files_is_refused_and_nothing_changes(
    registry: Registry, owner: Path, tmp_path: Path
) -> None:
    manifest = manifest_of()
    with pytest.raises(Refused, match="put it first"):
        registry.post_targets(targets_of(owner, 2, manifest), now=NOW)
    put(registry, manifest)
    for name, data in files_of("1.0.0").items():
        with pytest.raises(Refused, match="found none"):
            registry.post_targets(targets_of(owner, 2, manifest), now=NOW)
        put(registry, data)
        del name
    assert device(registry, tmp_path / "dev").get_targetinfo("packages/digits/1.0.0/manifest.json") is None
    registry.post_targets(targets_of(owner, 2, manifest), now=NOW)


def test_a_manifest_under_another_name_or_path_is_refused(registry: Registry, owner: Path) -> None:
    manifest = put_package(registry)
    for path in ("packages/other/1.0.0/manifest.json", "packages/digits/9/manifest.json"):
        with pytest.raises(Refused, match="name and version"):
            registry.post_targets(targets_of(owner, 2, manifest, paths=(path,)), now=NOW)
    for path in ("other/file", "packages/../../etc/manifest.json", "/packages/digits/1.0.0/manifest.json"):
        with pytest.raises((ContractError, Refused)):
            registry.post_targets(targets_of(owner, 2, manifest, paths=(path,)), now=NOW)


def test_a_manifest_that_breaks_its_contract_is_refused(registry: Registry, owner: Path) -> None:
    manifest = put_package(registry)
    broken = manifest.replace(b'"regression"', b'"divination"')
    put(registry, broken)
    body = targets_of(owner, 2, manifest)
    with pytest.raises(ContractError, match="task"):
        registry.post_targets(_pointing_at(owner, body, broken), now=NOW)


def _pointing_at(owner: Path, body: bytes, manifest: bytes) -> bytes:
    from tuf.api.metadata import Metadata, TargetFile, Targets

    from edgewright_compiler.keys import load_owner

    one = Metadata[Targets].from_bytes(body)
    path = "packages/digits/1.0.0/manifest.json"
    one.signed.targets[path] = TargetFile.from_data(path, manifest, ["sha256"])
    one.signatures.clear()
    one.sign(load_owner(owner).signer)
    return bytes(one.to_bytes())


def test_a_blob_with_another_hash_leaves_nothing_behind(registry: Registry) -> None:
    with pytest.raises(ContractError, match="sha256"):
        put(registry, b"bytes", "0" * 64)
    assert list(registry.blobs.iterdir()) == []
    with pytest.raises(ContractError):
        put(registry, b"bytes", "../../etc/passwd")


def test_a_blob_that_is_too_large_leaves_nothing_behind(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewright_hub.registry.repository.BLOB_BYTES", 5000)
    with pytest.raises(ContractError, match="at most 5000"):
        put(registry, b"x" * 5001)
    assert list(registry.blobs.iterdir()) == []


def test_a_blob_that_is_there_is_not_written_again(registry: Registry) -> None:
    assert put(registry, b"bytes")
    assert not put(registry, b"bytes")


def test_a_restored_hub_is_not_refused_by_a_device_that_saw_newer_metadata(
    registry: Registry, owner: Path, tmp_path: Path, control_engine: sa.Engine
) -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    registry.resign(now=later)
    device(registry, tmp_path / "dev")
    for path in (*registry.metadata.glob("*.snapshot.json"), registry.metadata / "timestamp.json"):
        path.unlink()  # a backup of the first minute
    restored = Registry(registry.folder, tmp_path / "keys", control_engine)
    restored.open(None, now=later + timedelta(seconds=1))
    device(restored, tmp_path / "dev")


def test_signing_twice_in_a_second_still_rises(registry: Registry, tmp_path: Path) -> None:
    for _ in range(3):
        registry.resign(now=NOW)
        device(registry, tmp_path / "dev")


def test_a_crash_before_the_record_is_made_good_at_the_next_start(
    registry: Registry, owner: Path, control_engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_package(registry)
    monkeypatch.setattr(registry, "_record", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        registry.post_targets(targets_of(owner, 2, manifest), now=NOW)
    Registry(registry.folder, tmp_path / "keys", control_engine).open(None, now=NOW)
    assert states(control_engine) == {"1.0.0": "allowed"}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_owner_is_reminded_60_days_before_the_end(registry: Registry) -> None:
    assert registry.warning(now=NOW) is None
    assert "expires in 10 days" in (registry.warning(now=NOW + timedelta(days=354.5)) or "")
    assert "expired" in (registry.warning(now=NOW + timedelta(days=400)) or "")


def test_a_first_start_without_an_owner_says_what_is_missing(tmp_path: Path, control_engine: sa.Engine) -> None:
    one = Registry(tmp_path / "other", tmp_path / "other-keys", control_engine)
    with pytest.raises(RequestError, match="--trust"):
        one.open(None, now=NOW)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"1\.root\.json is absent"):
        one.open(tmp_path / "empty", now=NOW)


def test_another_owners_files_are_refused(registry: Registry, tmp_path: Path, control_engine: sa.Engine) -> None:
    init_keys(tmp_path / "second", now=NOW)
    with pytest.raises(RequestError, match="another owner"):
        Registry(registry.folder, tmp_path / "keys", control_engine).open(tmp_path / "second" / "hub", now=NOW)
    mixed = tmp_path / "second" / "hub"
    (mixed / "snapshot.pem").write_bytes((tmp_path / "owner" / "hub" / "snapshot.pem").read_bytes())
    with pytest.raises(RequestError, match="snapshot"):
        Registry(tmp_path / "r3", tmp_path / "k3", control_engine).open(mixed, now=NOW)


def _doctor(data: Path) -> dict[str, tuple[bool, str]]:
    return {one.check: (one.well, one.said) for one in doctor.examine(data, now=NOW)}


def test_the_doctor_tells_of_an_end_60_days_before_it(registry: Registry, tmp_path: Path) -> None:
    open_authority(tmp_path / "ca", now=NOW).keep_server((), tmp_path / "ca", now=NOW)

    def ill(days: float) -> dict[str, str]:
        found = doctor.examine(tmp_path, now=NOW + timedelta(days=days))
        ends = ("root", "targets", "snapshot", "timestamp", "certificate ca", "certificate server", "certificate hub")
        assert {one.check for one in found} > set(ends)
        return {one.check: one.said for one in found if one.check in ends and not one.well}

    assert ill(0) == {}
    assert ill(2.49)["timestamp"].startswith("valid for 12 hours: the running hub signs it daily")
    assert "targets" not in ill(304)
    assert "edgewright publish" in ill(306)["targets"]
    assert "restart it" in ill(397 - 59)["certificate server"]
    assert "certificate ca" not in ill(3650 - 61)
    assert ill(3650 - 59.5)["certificate ca"].startswith("valid for 59 days: make a new hub")
    assert ill(3652.5)["certificate ca"].startswith("ended 2 days ago")


def test_the_doctor_finds_the_list_that_the_owner_did_not_sign(registry: Registry, owner: Path, tmp_path: Path) -> None:
    registry.post_targets(targets_of(owner, 2, put_package(registry)), now=NOW)
    assert _doctor(tmp_path)["signatures"][0]
    assert _doctor(tmp_path)["files"] == (True, "all 6 of the packages in the owner's list are whole")
    place = registry.metadata / "2.targets.json"
    forged = json.loads(place.read_bytes())
    forged["signed"]["expires"] = "2099-01-01T00:00:00Z"
    place.write_text(json.dumps(forged))
    well, said = _doctor(tmp_path)["signatures"]
    assert not well
    assert "owner's targets key" in said
    assert "backup" in said


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "root"])
def test_the_doctor_finds_metadata_that_was_changed(registry: Registry, tmp_path: Path, role: str) -> None:
    place = max(registry.metadata.glob(f"*{role}.json"))
    changed = json.loads(place.read_bytes())
    changed["signatures"][0]["sig"] = "0" * 128
    place.write_text(json.dumps(changed))
    assert not _doctor(tmp_path)["signatures"][0]


def test_the_doctor_finds_files_that_rotted_or_are_gone(registry: Registry, owner: Path, tmp_path: Path) -> None:
    registry.post_targets(targets_of(owner, 2, put_package(registry)), now=NOW)
    first, second = sorted(hashlib.sha256(data).hexdigest() for data in files_of("1.0.0").values())[:2]
    rotten = bytearray((registry.blobs / first).read_bytes())
    rotten[-1] ^= 1
    (registry.blobs / first).write_bytes(rotten)
    (registry.blobs / second).unlink()
    well, said = _doctor(tmp_path)["files"]
    assert not well
    assert "2 of 6" in said
    assert f"repo/blobs/{first} (packages/digits/1.0.0/manifest.json)" in said
    (
        registry.blobs / registry.targets().signed.targets["packages/digits/1.0.0/manifest.json"].hashes["sha256"]
    ).unlink()
    assert not _doctor(tmp_path)["files"][0]


def stages_of(engine: sa.Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {row.version: row.stage for row in connection.execute(sa.select(control.packages))}


def test_a_candidate_stays_one_until_somebody_approves_it_whatever_crashes(
    registry: Registry, owner: Path, control_engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = put_package(registry, "1.0.0"), put_package(registry, "2.0.0")
    registry.post_targets(targets_of(owner, 2, one), now=NOW)
    monkeypatch.setattr(registry, "_record", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        registry.post_targets(targets_of(owner, 3, one, two), now=NOW, candidate=True)
    Registry(registry.folder, tmp_path / "keys", control_engine).open(None, now=NOW)
    assert states(control_engine) == {"1.0.0": "allowed", "2.0.0": "allowed"}
    assert stages_of(control_engine) == {"1.0.0": "approved", "2.0.0": "candidate"}
    careful = Registry(registry.folder, tmp_path / "keys", control_engine, require_approval=True)
    three = put_package(careful, "3.0.0")
    careful.post_targets(targets_of(owner, 4, one, two, three), now=NOW)
    assert stages_of(control_engine) == {"1.0.0": "approved", "2.0.0": "candidate", "3.0.0": "candidate"}
