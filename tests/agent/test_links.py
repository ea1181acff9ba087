"""Slow and broken links: an update gets through them, and little is sent twice."""

from __future__ import annotations

import hashlib
import itertools
import random
import string
import urllib.parse

import msgspec
import pytest

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.delta import Downloads
from edgewright_agent.updating.refusals import LinkDown
from edgewright_agent.updating.slots import Store
from edgewright_contracts.desired import Download
from edgewright_contracts.manifest import FileRef, encode_manifest
from edgewright_contracts.package import read_package
from sim import packages
from sim.proxy import Proxy
from sim.verifier import Verifier

MODEL = "variants/onnx-fp32/model.onnx"
SLOWEST = 1250.0  # bytes/s: 10 kbit/s


def grown(model: bytes, n: int) -> bytes:
    """The same ONNX model, `n` bytes larger: a doc_string of letters, which nothing packs or reads."""
    rng = random.Random(1)
    text = "".join(rng.choices(string.ascii_letters, k=n)).encode()
    size, length = n, b""
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return model + b"\x32" + length + bytes([size]) + text


class Slow(Verifier):
    """One that downloads as well."""

    def __init__(self, folder, repository, **knobs) -> None:
        super().__init__(folder, repository, **{"bytes_per_s": SLOWEST, **knobs})
        self.downloads = Downloads(self.disk, self.link, self.url)
        self.store = Store(self.disk, folder / "models", "digits")

    def update(self, package) -> float:
        """Seconds until all files are there."""
        began = self.clock.monotonic_ns()
        self.trust.manifest("digits", package.digest)
        for file, ref in package.manifest.files.items():
            if file.startswith("variants/"):
                self.downloads.file(file, ref, self.store, None, lambda: None)
                assert self.store.part(ref.sha256).read_bytes() == package.read(file)
        return (self.clock.monotonic_ns() - began) / 1e9


@pytest.fixture
def megabyte(tmp_path, repository):
    """A package whose model is a megabyte of noise: it is downloaded, and never loaded."""
    package = packages.make_package(tmp_path / "p")
    model = random.Random(0).randbytes(1_000_000)
    files = {**package.manifest.files, MODEL: FileRef(hashlib.sha256(model).hexdigest(), len(model))}
    (package.root / MODEL).write_bytes(model)
    (package.root / "manifest.json").write_bytes(
        encode_manifest(msgspec.structs.replace(package.manifest, files=files))
    )
    found = read_package(package.root)
    repository.publish(found)
    return found


def test_a_megabyte_comes_through_10_kbit_a_second(tmp_path, repository, megabyte):
    device = Slow(tmp_path / "device", repository)
    took_s = device.update(megabyte)
    assert took_s < 1.05 * device.wire.served / SLOWEST + 30
    assert 800 < took_s < 900


def test_a_megabyte_comes_through_a_link_that_breaks_each_half_minute(tmp_path, repository, megabyte):
    rng = random.Random(5)
    device = Slow(tmp_path / "device", repository, breaks=lambda: rng.randrange(8_000, 32_000))
    device.update(megabyte)
    assert device.wire.served < 1.02 * device.link.received
    assert device.wire.served < 1_060_000
    assert device.wire.connections > 40


def test_a_link_that_brings_less_than_any_modem_is_given_up(tmp_path, repository, megabyte):
    device = Slow(tmp_path / "device", repository)
    device.trust.manifest("digits", megabyte.digest)
    device.wire.bytes_per_s = 2
    ref = megabyte.manifest.files[MODEL]
    began = device.clock.monotonic_ns()
    with pytest.raises(LinkDown, match="expected 960 bytes in"):
        device.downloads.file(MODEL, ref, device.store, None, lambda: None)
    assert (device.clock.monotonic_ns() - began) / 1e9 < 200
    assert device.store.part(ref.sha256).stat().st_size > 0  # what came in is kept


def test_a_link_that_breaks_at_once_each_time_is_given_up(tmp_path, repository, megabyte):
    device = Slow(tmp_path / "device", repository, breaks=lambda: 100)
    with pytest.raises(LinkDown, match="broken"):
        device.update(megabyte)
    assert device.wire.connections < 5


def test_a_file_comes_through_where_no_tls_record_is_whole_before_the_link_breaks(tmp_path, repository, megabyte):
    rng = random.Random(5)
    device = Slow(
        tmp_path / "device", repository, bytes_per_s=1e6, breaks=lambda: rng.randrange(3_000, 9_000), record=16 << 10
    )
    ref = megabyte.manifest.files[MODEL]
    device.downloads.file(MODEL, ref, device.store, None, lambda: None)
    assert device.store.part(ref.sha256).read_bytes() == megabyte.read(MODEL)
    assert device.wire.served < 1.01 * ref.size
    patch, name = tmp_path / "patch", f"http://hub/blobs/{ref.sha256}"
    device.link.unsigned(RealDisk(), name, patch, ref.size)  # nor of what is not signed
    assert patch.read_bytes() == megabyte.read(MODEL)


def test_a_pace_is_kept_and_does_not_count_as_a_slow_repository(tmp_path, repository, megabyte):
    device = Slow(tmp_path / "device", repository, bytes_per_s=1e6)
    device.link.pace(Download(bytes_per_s=1000))
    took_s = device.update(megabyte)
    assert 0.99 < device.wire.served / 1000 / took_s <= 1.01


def test_a_hundred_kilobytes_come_through_resets_and_a_tenth_at_most_is_sent_twice(world):
    small = world.package("small")
    model = small.read(MODEL)
    larger = grown(model, 100_000 - len(model))
    package = world.altered(small, "hundred", replaced={MODEL: larger}, version="2.0.0")
    size = sum(ref.size for file, ref in package.manifest.files.items() if file.startswith("variants/"))
    rng = random.Random(3)
    resets = (rng.randrange(8_000, 32_000) for _ in itertools.count())
    server = ("127.0.0.1", urllib.parse.urlsplit(world.url).port)
    with Proxy(server, bytes_per_s=25_000, resets=resets) as proxy:
        world.url = f"http://127.0.0.1:{proxy.port}/"
        with world.agent():
            world.want(package)
            assert world.hub.wait(lambda: "activate" in world.hub.trace("dev-1"), 60)
            assert world.hub.trace("dev-1").count("fetch") == 1  # a link that breaks is no failed attempt
    paths = [path.lstrip("/") for path, _ in world.repository.requests if "/blobs/" not in path]
    files = [file for path in paths if (file := world.repository.folder / path).is_file()]
    metadata = sum(file.stat().st_size for file in files)
    assert proxy.cuts >= 3
    assert proxy.down - metadata <= 1.1 * size  # with all headers
