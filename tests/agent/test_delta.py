"""A patch instead of a file: it saves, and whatever is wrong with it the whole file comes."""

from __future__ import annotations

import hashlib
import importlib.util
import random

import msgspec
import pytest
import zstandard

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating import delta as building
from edgewright_agent.updating.delta import Downloads
from edgewright_agent.updating.fetch import Link
from edgewright_agent.updating.refusals import LinkDown
from edgewright_agent.updating.slots import Slot, Store
from edgewright_contracts import delta
from edgewright_contracts.manifest import FileRef, encode_manifest
from edgewright_contracts.package import read_package
from edgewright_hub.registry.deltas import make
from sim import packages
from sim.repository import Repository

MODEL = "variants/onnx-fp32/model.onnx"
BASELINE = "variants/onnx-fp32/baseline.msgpack"
SELFTEST = "variants/onnx-fp32/selftest.npz"
OLD = random.Random(1).randbytes(60_000)
NEW = OLD[:-3000] + random.Random(2).randbytes(3000)


class Device:
    """One that runs OLD, beside a repository that serves NEW."""

    def __init__(self, folder, repository, url):
        self.repository, self.disk = repository, RealDisk()
        self.link = Link()
        self.downloads = Downloads(self.disk, self.link, url)
        self.store = Store(self.disk, folder / "models", "digits")
        package = packages.make_package(folder / "p")
        files = {**package.manifest.files, MODEL: ref(OLD)}
        manifest = encode_manifest(msgspec.structs.replace(package.manifest, files=files))
        (package.root / MODEL).write_bytes(OLD)
        (package.root / "manifest.json").write_bytes(manifest)
        self.package = read_package(package.root)
        for file in files:
            self.store.part(files[file].sha256).write_bytes((package.root / file).read_bytes())
        self.store.stage(manifest, Slot(self.package.digest, "1.0.0", "onnx-fp32", "onnxruntime"))
        self.store.save(msgspec.structs.replace(self.store.state, active=self.store.state.spare))
        self.offer(NEW)

    @property
    def running(self):
        return building.running(self.store)

    def offer(self, data):
        (self.repository.folder / "blobs" / hashlib.sha256(data).hexdigest()).write_bytes(data)

    def patch(self, data, new=NEW):
        place = self.repository.folder / delta.path(ref(OLD).sha256, ref(new).sha256)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def get(self, new=NEW, file=MODEL):
        """(bytes saved, bytes received); the file must be there in the end, and nothing besides."""
        before = self.link.received
        saved = self.downloads.file(file, ref(new), self.store, self.running, lambda: None)
        part = self.store.part(ref(new).sha256)
        assert part.read_bytes() == new
        assert [p.name for p in part.parent.iterdir()] == [part.name]
        return saved, self.link.received - before


def ref(data):
    return FileRef(hashlib.sha256(data).hexdigest(), len(data))


def packed(old, new, window_log=None, **knobs):
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    window_log = window_log or delta.window_log(len(old), len(new))
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log, **knobs)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(new)


@pytest.fixture
def device(tmp_path):
    repository = Repository(tmp_path / "repo")
    with repository.served() as url:
        yield Device(tmp_path / "device", repository, url)


def test_a_patch_of_the_hubs_is_a_twentieth_and_makes_the_file(device):
    patch = make(OLD, NEW)
    device.patch(patch)
    saved, received = device.get()
    assert saved == len(NEW) - len(patch)
    assert received < 0.07 * len(NEW)


def test_a_file_that_runs_here_already_is_copied(device):
    assert device.get(OLD) == (len(OLD), 0)


def test_without_a_patch_the_file_comes_whole(device):
    saved, received = device.get()
    assert saved == 0
    assert len(NEW) < received < len(NEW) + 2000


BOMB = bytes(50_000_000)
WRONG = {
    "cut": make(OLD, NEW)[:-100],
    "flipped": bytes([*make(OLD, NEW)[:200], make(OLD, NEW)[200] ^ 255, *make(OLD, NEW)[201:]]),
    "of another file": make(OLD, OLD[::-1][:100] + NEW),
    "for another base": packed(NEW[::-1], NEW),
    "empty": b"",
    "not a patch": b"<html>404</html>",
    "a bomb": packed(OLD, BOMB, window_log=delta.window_log(len(OLD), len(NEW)), write_content_size=0),
    "with a window that nobody has": packed(OLD, NEW, window_log=27, write_content_size=0),
    "larger than worth it": random.Random(3).randbytes(delta.most(ref(NEW)) + 1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_whatever_is_wrong_with_a_patch_the_file_comes_whole(device, wrong):
    device.patch(WRONG[wrong])
    most = 0
    append = device.disk.append

    def noted(path, data):
        nonlocal most
        append(path, data)
        most = max(most, device.disk.size(path))

    device.disk.append = noted
    assert device.get()[0] == 0
    assert most <= len(NEW)


@pytest.mark.parametrize("new", [NEW, OLD], ids=["patched", "copied"])
def test_a_damaged_file_of_the_running_package_is_not_built_on(device, new):
    device.patch(make(OLD, NEW))
    file = device.running.root / MODEL
    file.write_bytes(OLD[::-1])
    device.offer(new)
    assert device.get(new)[0] == 0


def test_a_device_without_zstandard_takes_the_whole_file(device, monkeypatch):
    device.patch(make(OLD, NEW))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "zstandard" else find(name))
    assert device.get()[0] == 0
    assert not any("/deltas/" in path for path, _ in device.repository.requests)


def test_a_device_without_room_for_a_patch_beside_the_file_takes_the_file(device, monkeypatch):
    device.patch(make(OLD, NEW))
    monkeypatch.setattr(device.disk, "free", lambda path: len(NEW) + 1000)
    assert device.get()[0] == 0


def test_a_device_that_runs_nothing_asks_for_no_patch(device):
    device.store.save(msgspec.structs.replace(device.store.state, active=None))
    assert device.running is None
    assert device.get()[0] == 0


def test_a_patch_goes_on_where_it_broke_off(device, monkeypatch):
    patch = make(OLD, NEW)
    device.patch(patch)
    answer, broken = device.repository.answer, []

    def breaking(request):
        if "/deltas/" in request.path and not broken:
            broken.append(request.path)
            request.send_response(200)
            request.send_header("Content-Length", str(len(patch)))
            request.send_header("ETag", f'"{hashlib.sha256(patch).hexdigest()[:16]}"')
            request.end_headers()
            request.wfile.write(patch[:900])
            request.close_connection = True
            return
        answer(request)

    monkeypatch.setattr(device.repository, "answer", breaking)
    with pytest.raises(LinkDown):
        device.get()
    saved, _ = device.get()
    assert saved == len(NEW) - len(patch)
    assert [sent for path, sent in device.repository.requests if "/deltas/" in path] == ["bytes=900-"]


def test_a_patch_that_failed_is_not_tried_again_after_a_restart(device, monkeypatch):
    device.patch(b"not a patch")
    device.repository.break_after = 500
    with pytest.raises(LinkDown):
        device.get()
    device.get()
    assert len([path for path, _ in device.repository.requests if "/deltas/" in path]) == 1


def test_a_whole_update_by_patches_says_what_it_saved(world):
    image = packages.draw(1, seed=1)[0][0]
    first = world.package("v1", slow=1)
    model = first.read(MODEL)
    second = world.altered(first, "v2", replaced={MODEL: model + b"\x32\x04also"}, version="2.0.0")  # a doc_string
    new, told = second.read(MODEL), world.hub.events["dev-1"]
    place = world.repository.folder / delta.path(ref(model).sha256, ref(new).sha256)
    place.parent.mkdir(parents=True)
    place.write_bytes(make(model, new))
    with world.agent() as agent:
        active = agent.model("digits")
        world.want(first)
        assert world.hub.wait(lambda: active.active is not None)
        assert active.predict({"image": image})
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "idle")
        received = agent._link.received
        world.want(second)
        assert world.hub.wait(lambda: active.active.subject.digest == second.digest)
        received = agent._link.received - received
        assert active.predict({"image": image})
    rest = sum(second.manifest.files[file].size for file in (BASELINE, SELFTEST))
    saved = len(new) - place.stat().st_size + rest
    said = [e.reason for e in told if e.after == "stage"]
    assert said[1].endswith(f"; {saved} bytes came from the running package")
    assert received < 10_000 < len(new)
