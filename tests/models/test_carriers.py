"""Carriers, against wheels and archives that are made here: nothing is downloaded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

from edgewright_contracts.errors import Unavailable
from edgewright_models import carriers

CONTENT = b"1,2,3\n" * 1000
PIN = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "carrier/data/table.csv"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that holds nothing."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("EDGEWRIGHT_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "cache"


def wheel(directory: Path, content: bytes = CONTENT) -> Path:
    """A wheel as small as pip accepts."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "some_carrier-1.2-py3-none-any.whl"
    info = "some_carrier-1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: some-carrier\nVersion: 1.2\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def archive(directory: Path, content: bytes = CONTENT) -> tuple[Path, str]:
    root = directory / "deb-root"
    (root / "DEBIAN").mkdir(parents=True)
    control = "Package: some-data\nVersion: 2-1\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: test\n"
    (root / "DEBIAN/control").write_text(control)
    (root / "usr/share").mkdir(parents=True)
    (root / "usr/share/table.csv").write_bytes(content)
    path = directory / "some-data_2-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, path], check=True, capture_output=True)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_is_downloaded_once_and_then_read_from_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.parent))
    assert carriers.wheel_member("some-carrier==1.2", PIN, MEMBER) == CONTENT
    index.unlink()
    assert carriers.wheel_member("some-carrier==1.2", PIN, MEMBER) == CONTENT
    assert [path.name for path in cache.iterdir()] == [PIN]  # nothing half-made is left


def test_a_wheel_that_lies_in_the_cache_directory_needs_no_network(cache: Path) -> None:
    wheel(cache)
    assert carriers.wheel_member("some-carrier==1.2", PIN, MEMBER) == CONTENT


def test_an_installed_distribution_is_read_in_place() -> None:
    member = "msgspec/__init__.py"
    path = Path(str(metadata.distribution("msgspec").locate_file(member)))
    pin = hashlib.sha256(path.read_bytes()).hexdigest()
    assert carriers.wheel_member("msgspec==0", pin, member) == path.read_bytes()


def test_a_wheel_put_there_by_hand_that_is_not_what_was_pinned_is_not_used(cache: Path) -> None:
    wheel(cache, b"forged")
    with pytest.raises(Unavailable, match=r"downloading some-carrier==1\.2 failed"):
        carriers.wheel_member("some-carrier==1.2", PIN, MEMBER)
    assert not (cache / PIN).exists()


def test_a_forged_download_is_refused_with_both_hashes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel(tmp_path / "index", b"forged").parent))
    forged = hashlib.sha256(b"forged").hexdigest()
    with pytest.raises(Unavailable, match=rf"expected sha256 {PIN}.*{forged}.*pip install --no-deps"):
        carriers.wheel_member("some-carrier==1.2", PIN, MEMBER)
    assert not (cache / PIN).exists()


def test_a_cached_file_that_rotted_is_replaced(cache: Path) -> None:
    wheel(cache)
    carriers.wheel_member("some-carrier==1.2", PIN, MEMBER)
    (cache / PIN / "table.csv").write_bytes(b"1,2")
    assert carriers.wheel_member("some-carrier==1.2", PIN, MEMBER) == CONTENT
    assert (cache / PIN / "table.csv").read_bytes() == CONTENT


def test_processes_that_ask_at_once_all_get_the_file(cache: Path) -> None:
    wheel(cache)
    code = (
        f"from edgewright_models.carriers import *; print(len(wheel_member('some-carrier==1.2', {PIN!r}, {MEMBER!r})))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    assert [int(process.communicate()[0]) for process in running] == [len(CONTENT)] * 4


def test_a_debian_archive_is_unpacked_once(cache: Path, tmp_path: Path) -> None:
    path, pin = archive(tmp_path)
    cache.mkdir()
    path.rename(cache / path.name)
    assert (carriers.deb_tree("some-data=2-1", pin) / "usr/share/table.csv").read_bytes() == CONTENT
    (cache / path.name).unlink()
    assert (carriers.deb_tree("some-data=2-1", pin) / "usr/share/table.csv").read_bytes() == CONTENT


def test_threads_that_unpack_at_once_end_with_one_tree(cache: Path, tmp_path: Path) -> None:
    path, pin = archive(tmp_path)
    cache.mkdir()
    path.rename(cache / path.name)
    with ThreadPoolExecutor(4) as pool:
        trees = list(pool.map(lambda _: carriers.deb_tree("some-data=2-1", pin), range(4)))
    assert len(set(trees)) == 1
    assert sorted(entry.name for entry in cache.iterdir()) == sorted([pin, path.name])


def test_without_apt_the_message_says_where_to_put_the_archive(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match=rf"apt-get.*some-data_2-1_all\.deb \(sha256 00\) into {cache}"):
        carriers.deb_tree("some-data=2-1", "00")


def test_what_took_long_to_get_out_is_made_once(cache: Path) -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"decoded")
        return b"decoded"

    assert [carriers.derived("00", "clips.npz", make) for _ in range(3)] == [b"decoded"] * 3
    assert len(made) == 1
    assert carriers.derived("00", "other.npz", lambda: b"other") == b"other"


def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEWRIGHT_DATA", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match="EDGEWRIGHT_DATA"):
        carriers.wheel_member("some-carrier==1.2", PIN, MEMBER)
