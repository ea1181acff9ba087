"""A package that was damaged or built to harm ends in a ContractError, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import random
import zipfile
from pathlib import Path

import pytest

from edgewright_contracts.errors import ContractError, EdgewrightError, RequestError
from edgewright_contracts.manifest import FileRef, Manifest, Provenance, TensorIn, TensorOut, Variant, encode_manifest
from edgewright_contracts.package import EVIDENCE, MANIFEST, Package, read_package, unpack, write_ewp

VARIANT = Variant(id="onnx-fp32", format="onnx", precision="fp32")
FILES = {VARIANT.model: b"model" * 400, VARIANT.baseline: b"baseline", VARIANT.selftest: b"selftest", "card.md": b"# x"}


def manifest(files: dict[str, bytes]) -> Manifest:
    return Manifest(
        requires_agent="0.1",
        name="digits",
        version="1.0.0",
        task="classification",
        inputs=(TensorIn(name="x", dtype="uint8", shape=(8, 8)),),
        outputs=(TensorOut(name="probabilities", role="probabilities", shape=(10,)),),
        variants=(VARIANT,),
        ranking={"*/onnxruntime": ("onnx-fp32",)},
        provenance=Provenance(recipe="digits", data="0" * 64, code="1" * 64, seed=1),
        files={name: FileRef(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()},
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    for name, data in {**FILES, MANIFEST: encode_manifest(manifest(FILES)), EVIDENCE: b"{}"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def ewp(directory: Path, tmp_path: Path) -> Path:
    out = tmp_path / "p.ewp"
    write_ewp(directory, out)
    return out


def rezip(source: Path, out: Path, replace: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, replace.pop(name, old.read(name)))
        for name, data in replace.items():
            new.writestr(name, data)
    return out


def use(package: Package) -> None:
    package.verify()


def test_directory_and_archive_are_the_same_package(directory: Path, ewp: Path) -> None:
    a, b = read_package(directory), read_package(ewp)
    assert (a.digest, a.manifest_bytes) == (b.digest, b.manifest_bytes)
    assert a.read("card.md") == b.read("card.md") == b"# x"
    assert a.evidence() == b.evidence() == b"{}"
    use(a)
    use(b)


def test_packing_twice_gives_equal_bytes_and_unpacking_gives_the_directory_back(directory: Path, ewp: Path) -> None:
    again = ewp.with_name("again.ewp")
    write_ewp(directory, again)
    assert again.read_bytes() == ewp.read_bytes()
    back = unpack(ewp, ewp.with_name("back"))
    use(back)
    names = {str(p.relative_to(back.root)) for p in back.root.rglob("*") if p.is_file()}
    assert names == {*FILES, MANIFEST, EVIDENCE}


def test_a_missing_package_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no package at"):
        read_package(tmp_path / "nothing.ewp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContractError, match=MANIFEST):
        read_package(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["flip", "shorter", "longer", "gone", "a directory"])
def test_a_damaged_file_is_named(directory: Path, damage: str) -> None:
    path = directory / VARIANT.model
    data = path.read_bytes()
    path.unlink()
    if damage == "a directory":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(
            {"flip": b"\x00" + data[1:], "shorter": data[:-1], "longer": data + b"x"}[damage],
        )
    with pytest.raises(ContractError) as caught:
        read_package(directory).verify()
    assert caught.value.field == VARIANT.model
    with pytest.raises(ContractError):
        write_ewp(directory, directory.with_name("bad.ewp"))
    assert [p.name for p in directory.parent.iterdir()] == ["package"]


def test_a_file_that_the_manifest_does_not_name_cannot_be_read(directory: Path) -> None:
    with pytest.raises(ContractError, match="does not name"):
        read_package(directory).read(EVIDENCE)


def test_every_truncation_and_many_flips_of_an_archive_are_refused_or_harmless(ewp: Path, tmp_path: Path) -> None:
    data = ewp.read_bytes()
    digest = read_package(ewp).digest
    rng = random.Random(7)
    hurt = [data[:n] for n in range(0, len(data), 97)]
    for _ in range(600):
        at = rng.randrange(len(data))
        hurt.append(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
    refused = 0
    for i, bad in enumerate(hurt):
        path = tmp_path / "bad.ewp"
        path.write_bytes(bad)
        try:
            package = unpack(path, tmp_path / f"into{i}")
        except ContractError:
            refused += 1
            assert not (tmp_path / f"into{i}").exists()
        else:
            # only a flip that no promise covers (a date, evidence.json, or a bit that makes another valid manifest)
            use(package)
            assert package.digest == digest or package.manifest_bytes != read_package(ewp).manifest_bytes
    assert refused > len(data[::97])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_entry_cannot_leave_the_directory(ewp: Path, tmp_path: Path) -> None:
    evil = rezip(ewp, tmp_path / "evil.ewp", {"../escaped": b"x", "/tmp/edgewright-escaped": b"x"})
    unpack(evil, tmp_path / "deep" / "into")
    assert not (tmp_path / "deep" / "escaped").exists()
    assert not Path("/tmp/edgewright-escaped").exists()
    text = encode_manifest(manifest(FILES)).replace(b'"card.md"', b'"../up.md"')
    with pytest.raises(ContractError, match="files"):
        unpack(rezip(ewp, tmp_path / "evil2.ewp", {MANIFEST: text, "../up.md": b"# x"}), tmp_path / "into2")
    assert not (tmp_path / "up.md").exists()


def test_a_bomb_is_never_inflated(ewp: Path, tmp_path: Path) -> None:
    bomb = rezip(ewp, tmp_path / "bomb.ewp", {VARIANT.model: bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(ContractError, match="stored as it is"):
        unpack(bomb, tmp_path / "into")
    large = rezip(ewp, tmp_path / "large.ewp", {MANIFEST: b"{" + b" " * 3_000_000})
    with pytest.raises(ContractError, match="at most"):
        read_package(large)


def test_a_failure_of_any_kind_leaves_nothing_behind(
    ewp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="space"):
        unpack(ewp, tmp_path / "into")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.ewp", "package"]


def test_unpacking_never_overwrites(ewp: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match="exists already"):
        unpack(ewp, tmp_path / "package")
