"""Whatever a repository serves as metadata, a manifest, a model or a patch: a declared refusal, or what was signed.

EDGEWRIGHT_FUZZ=N draws N new examples for each test instead of the same few.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating import delta as patching
from edgewright_agent.updating.fetch import Link
from edgewright_agent.updating.refusals import Distrusted, LinkDown, NotAllowed, WrongBytes
from edgewright_contracts.manifest import FileRef
from edgewright_hub.registry.deltas import make
from sim import packages
from sim.clock import SimClock
from sim.link import SimLink
from sim.repository import Repository
from sim.verifier import Verifier

N = int(os.environ.get("EDGEWRIGHT_FUZZ", "0"))
FUZZ = settings(
    max_examples=N or 25,
    derandomize=not N,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DECLARED = (LinkDown, Distrusted, NotAllowed)
MODEL = "variants/onnx-fp32/model.onnx"
WORDS = [
    b"\xff",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"9" * 30,
    b'"\\ud800"',
    b"[",
    b"{",
    b"}",
    b'"',
    b"\\u0000",
    b"[" * 9000,
]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64), st.floats(), st.text(max_size=70), st.just("2" * 5000)
)
TREES = st.recursive(
    LEAVES,
    lambda t: st.one_of(st.lists(t, max_size=3), st.dictionaries(st.text(max_size=8), t, max_size=3)),
    max_leaves=6,
)


class World:
    def __init__(self, folder):
        self.folder, self.repository = folder, Repository(folder / "repo")
        self.package = packages.make_package(folder / "p")
        self.repository.publish(self.package)
        self.tries = 0
        version = self.repository.metadata["targets"].signed.version
        names = ["timestamp.json", f"{version}.snapshot.json", f"{version}.targets.json", "1.root.json"]
        self.served = {f"/metadata/{name}": (self.repository.folder / "metadata" / name).read_bytes() for name in names}
        self.served["/metadata/2.root.json"] = self.served.pop("/metadata/1.root.json")  # offered as the next
        self.served[f"/{self.package.digest}.manifest.json"] = self.package.manifest_bytes

    def device(self, lies, *, seen):
        """One that has seen the honest metadata before, or none."""
        folder = self.folder / f"device{self.tries}"
        self.tries += 1
        device = Verifier(folder, self.repository)
        if seen:
            device.manifest(self.package)
        device.wire.lies = lies
        return device

    def must_hold(self, lies, *, seen):
        device = self.device(lies, seen=seen)
        try:
            assert device.manifest(self.package) == self.package.manifest_bytes
        except DECLARED:
            pass
        finally:
            shutil.rmtree(device.folder)

    def signed(self, role, data):
        """By the key of its role, as a stolen hub would for what it holds; as it is when it is not even metadata."""
        try:
            document = Metadata.from_bytes(data)
            document.sign(self.repository.signers[role])
            return document.to_bytes()
        except (RepositoryError, ValueError, TypeError):
            return data


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("fuzz"))


@st.composite
def mutated(draw, data):
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        to = min(len(data), at + draw(st.integers(0, 8)))
        action = draw(st.sampled_from(["flip", "cut", "put", "insert", "repeat", "drop"]))
        if action == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del data[at:]
        elif action == "put":
            data[at:to] = draw(st.one_of(st.binary(max_size=12), st.sampled_from(WORDS)))
        elif action == "insert":
            data[at:at] = draw(st.sampled_from(WORDS))
        elif action == "repeat":
            data[at:at] = data[at:to] * draw(st.integers(1, 40))
        else:
            del data[at:to]
    return bytes(data)


@st.composite
def regrown(draw, data):
    """Well-formed, with one or two values somewhere in its tree replaced, dropped or added."""
    tree = json.loads(data)
    for _ in range(draw(st.integers(1, 2))):
        at = tree
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            action = draw(st.sampled_from(["replace", "drop", "add"]))
            if action == "replace":
                at[key] = draw(TREES)
            elif action == "drop":
                del at[key]
            elif isinstance(at, list):
                at.insert(key, draw(TREES))
            else:
                at[draw(st.text(max_size=8))] = draw(TREES)
            break
    return json.dumps(tree, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("kind", ["timestamp", "snapshot", "targets", "root", "manifest"])
def test_anything_served_as_metadata_or_manifest(world, kind, seen):
    (end,) = (end for end in world.served if end.endswith(f"{kind}.json"))
    honest = world.served[end]

    @FUZZ
    @given(st.one_of(st.binary(max_size=200), mutated(honest), regrown(honest)), st.booleans())
    def check(data, signed):
        world.must_hold({end: world.signed(kind, data) if signed and kind != "manifest" else data}, seen=seen)

    check()


@FUZZ
@given(data=st.data())
def test_anything_that_lies_in_the_devices_own_store(world, data):
    """Flash rots: what was kept is damaged, and the repository is honest."""
    device = world.device({}, seen=True)
    names = sorted(str(p.relative_to(device.folder)) for p in device.folder.rglob("*.json") if p.is_file())
    file = device.folder / data.draw(st.sampled_from(names))
    file.write_bytes(data.draw(st.one_of(st.binary(max_size=100), mutated(file.read_bytes()))))
    try:
        device.trust.allow("digits", world.package.digest)
        assert device.manifest(world.package) == world.package.manifest_bytes
    except DECLARED as refusal:
        pytest.fail(f"{file.name}: {refusal}")
    finally:
        shutil.rmtree(device.folder)


@FUZZ
@given(data=st.data())
def test_anything_served_as_a_blob(world, data):
    ref = world.package.manifest.files[MODEL]
    honest = world.package.read(MODEL)
    clock = SimClock()
    wire = SimLink(world.repository.folder, clock, bytes_per_s=1e9)
    wire.lies = {f"/{ref.sha256}": data.draw(st.one_of(st.binary(max_size=200), mutated(honest)))}
    link = Link(wire.pool, clock=clock, wait=clock.advance)
    part = world.folder / "part"
    part.write_bytes(data.draw(st.one_of(st.just(b""), st.binary(max_size=50), st.just(honest[:700]))))
    try:
        link.blob(RealDisk(), f"http://hub/blobs/{ref.sha256}", part, ref.size, ref.sha256)
    except (LinkDown, WrongBytes):
        assert not part.exists() or part.stat().st_size < ref.size
    else:
        assert part.read_bytes() == honest


OLD = random.Random(1).randbytes(20_000)
NEW = OLD[:9000] + random.Random(2).randbytes(500) + OLD[9000:]
PATCH = make(OLD, NEW)


@FUZZ
@given(st.one_of(st.binary(max_size=200), mutated(PATCH), st.binary(max_size=40).map(lambda tail: PATCH[:18] + tail)))
def test_anything_served_as_a_patch(world, patch):
    made = world.folder / "made"
    ref = FileRef(hashlib.sha256(NEW).hexdigest(), len(NEW))
    try:
        patching.apply(RealDisk(), OLD, patch, made, ref)
    except patching.Unfit:
        assert made.stat().st_size <= len(NEW)
    else:
        assert made.read_bytes() == NEW
