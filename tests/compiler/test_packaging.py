"""Packages are written all or nothing, and equal contents give equal bytes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from edgewright_compiler import packaging
from edgewright_compiler.measuring.evidence import decode_evidence
from edgewright_compiler.packaging import facts_of, npz, write_package
from edgewright_contracts.errors import ContractError, RequestError
from edgewright_contracts.package import Package, read_package

TINY = Path(__file__).parent.parent / "data" / "tiny-1.0.0.ewp"


@pytest.fixture
def tiny() -> Package:
    return read_package(TINY)


def contents(package: Package) -> dict[str, bytes]:
    return {name: package.read(name) for name in package.manifest.files}


def test_an_archive_of_arrays_is_deterministic_and_numpy_reads_it() -> None:
    arrays = {"output:monitor": np.arange(6, dtype=np.float32).reshape(2, 3), "input:x": np.zeros((2, 8), np.uint8)}
    data = npz(arrays)
    assert data == npz(dict(reversed(arrays.items())))
    with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
        assert set(loaded.files) == set(arrays)
        assert all((loaded[name] == array).all() for name, array in arrays.items())
    with pytest.raises(ValueError, match="allow_pickle"):
        npz({"x": np.array([object()])})


def test_a_package_written_from_its_own_facts_is_the_same_package(tiny: Package, tmp_path: Path) -> None:
    again = write_package(tmp_path / "again", facts_of(tiny.manifest), contents(tiny), tiny.evidence())
    assert again.digest == tiny.digest
    assert again.manifest_bytes == tiny.manifest_bytes
    other = write_package(tmp_path / "other", facts_of(tiny.manifest), contents(tiny), None)
    assert other.digest == tiny.digest, "evidence is no part of the digest"


def test_another_version_is_another_digest(tiny: Package, tmp_path: Path) -> None:
    facts = {**facts_of(tiny.manifest), "version": "1.0.1"}
    assert write_package(tmp_path / "p", facts, contents(tiny), None).digest != tiny.digest


def test_a_package_is_never_overwritten(tiny: Package, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="exists already"):
        write_package(tmp_path, facts_of(tiny.manifest), contents(tiny), None)


def test_of_two_that_make_one_package_the_later_is_told_and_the_earlier_stays(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p"
    flushed = packaging.flush_tree

    def overtaken(stage: Path) -> None:
        """Just before this one takes its name, another does."""
        monkeypatch.setattr(packaging, "flush_tree", flushed)
        write_package(out, facts_of(tiny.manifest), contents(tiny), None)
        flushed(stage)

    monkeypatch.setattr(packaging, "flush_tree", overtaken)
    later = {**facts_of(tiny.manifest), "version": "9.9.9"}
    with pytest.raises(RequestError, match=r"another compilation made it meanwhile.* another --out or --version \(fin"):
        write_package(out, later, contents(tiny), None)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert read_package(out).digest == tiny.digest


def test_what_is_no_package_leaves_nothing_behind(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = {k: v for k, v in contents(tiny).items() if not k.endswith("baseline.msgpack")}
    with pytest.raises(ContractError, match="files"):
        write_package(tmp_path / "p", facts_of(tiny.manifest), lacking, None)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/p'"):
        write_package(tmp_path / "p", facts_of(tiny.manifest), contents(tiny), None)
    assert list(tmp_path.iterdir()) == []


def test_a_package_is_on_the_disk_before_it_has_its_name(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not leave a package with empty files: everything is flushed, then renamed, then the name is."""
    seen: list[tuple[str, bool]] = []
    flushed = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((path.name, (tmp_path / "p").exists()))
        flushed(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    made = write_package(tmp_path / "p", facts_of(tiny.manifest), contents(tiny), None)
    before = {name for name, there in seen if not there}
    assert before >= {Path(name).name for name in (*made.manifest.files, "manifest.json")}
    assert seen[-1] == (tmp_path.name, True)


def test_evidence_says_where_it_was_measured(tiny: Package) -> None:
    evidence = decode_evidence(tiny.evidence() or b"")
    assert evidence is not None
    assert {v.id for v in evidence.variants} == {v.id for v in tiny.manifest.variants}
    assert evidence.machine.arch
