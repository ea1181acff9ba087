"""Whichever file of a home is damaged, lost or unreadable, on a good disk or a read-only one: the device answers."""

from __future__ import annotations

import errno
import shutil

import msgspec
import pytest

from edgewright_agent import identity
from edgewright_agent.agent import Agent
from edgewright_agent.console import status
from edgewright_agent.delivery.nohub import NoHub
from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.recovery import recover
from edgewright_agent.updating.sideload import CLEAR, FOLDER, Sideload, Sideloads
from edgewright_agent.updating.slots import Damaged, ModelState, Store
from edgewright_agent.updating.update import State
from edgewright_contracts.errors import RequestError
from sim import homes, packages
from sim.twin import Device


class ReadOnly(RealDisk):
    def refuse(self, *_):
        raise OSError(errno.EROFS, "read-only file system")

    _put = rename = unlink = remove_tree = fsync = refuse

    def mkdir(self, path):
        if not path.is_dir():
            self.refuse()


class Unreadable(RealDisk):
    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def read(self, path):
        self.look(path)
        return super().read(path)

    def sha256(self, path):
        self.look(path)
        return super().sha256(path)

    def look(self, path):
        if path == self.bad:
            raise OSError(errno.EIO, "input/output error")


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory):
    """A home with two packages, the second brought by hand, whose agent ran once."""
    root = tmp_path_factory.mktemp("lived")
    made = [packages.make_package(root / str(i), version=f"{i}.0.0", seed=i) for i in (1, 2)]
    for package in made:
        homes.install(root / "home" / "models", package)
    brought = root / "home" / FOLDER
    brought.mkdir()
    wish = Sideload("digits", "2.0.0", made[1].digest, 0, "this file")
    (brought / "digits.json").write_bytes(msgspec.json.encode(wish))
    (brought / "digits.ewp").write_bytes(b"PK")
    (brought / f"digits{CLEAR}").write_bytes(b"{}")
    return root / "home"


def damaged(home, file, how):
    """The disk of a home in which this has happened to `file`."""
    match how:
        case "zeros":
            (home / file).write_bytes(bytes(max(1, (home / file).stat().st_size)))
        case "lost":
            (home / file).unlink()
            return ReadOnly()
        case "a folder":
            (home / file).unlink()
            (home / file).mkdir()
        case "unreadable":
            return Unreadable(home / file)
    return RealDisk()


@pytest.mark.parametrize("how", ["zeros", "lost", "a folder", "unreadable"])
def test_whatever_happens_to_a_file_the_device_starts_and_answers(world, lived_in, how):
    home = world.home("dev-1")
    shutil.copytree(lived_in, home, dirs_exist_ok=True)
    with world.agent():
        pass
    files = [file.relative_to(home) for file in home.rglob("*") if file.is_file()]
    kept = world.folder / "kept"
    shutil.copytree(home, kept)
    tried = [f for f in files if f.parts[0] != "identity" and f.name != "agent.lock" and f.parts[2:3] != ("a",)]
    assert len(tried) > 10
    image = packages.draw(1, seed=1)[0][0]
    for file in tried:
        shutil.rmtree(home)
        shutil.copytree(kept, home)
        with world.agent(disk=damaged(home, file, how)) as agent:
            assert agent.model("digits").predict({"image": image}).digest, (file, how)


def test_a_package_brought_by_hand_that_rotted_is_the_disks_fault(world, lived_in):
    home = world.home("dev-1")
    shutil.copytree(lived_in, home, dirs_exist_ok=True)
    with world.agent() as agent:
        brought: Sideloads = agent._installer._steps._trust
        (wish,) = brought.wishes().values()
        (home / FOLDER / "digits.ewp").write_bytes(b"PK rot")
        with pytest.raises(OSError, match="sideload it again"):
            brought.manifest("digits", wish.digest)


def test_a_state_that_is_lost_is_not_taken_for_a_device_without_packages(world, lived_in):
    home = world.home("dev-1")
    shutil.copytree(lived_in, home, dirs_exist_ok=True)
    (home / "models" / "digits" / "state.json").unlink()
    with pytest.raises(Damaged, match="something was installed"):
        Store(RealDisk(), home / "models", "digits")


@pytest.fixture
def uncommitted(lived_in, tmp_path):
    """A home whose two packages are both on trial still, and whose state.json is gone."""
    home = tmp_path / "uncommitted"
    shutil.copytree(lived_in, home)
    model = home / "models" / "digits"
    (model / "committed.json").unlink()
    (model / "state.json").unlink()
    return home


@pytest.mark.parametrize("left", [None, b"", b"\0" * 300, b'{"v":2,"active":"b","a":{"dig'])
def test_without_a_state_and_a_commit_the_newest_package_in_the_slots_answers_on_trial(uncommitted, left):
    if left is not None:
        (uncommitted / "models" / "digits" / "state.json").write_bytes(left)
    (found,) = status.read(uncommitted).models
    assert (found.state, found.running.version, found.previous.version) == ("damaged", "2.0.0", "1.0.0")
    with Agent(uncommitted, transport=NoHub()) as agent:
        prediction = agent.model("digits").predict({"image": packages.draw(1, seed=1)[0][0]})
        state = agent.states()["digits"]
        assert prediction.digest == state.running.digest
        assert state.record.state is State.PROBATION
    if left is None:  # what it found stands in its state again
        assert Store(RealDisk(), uncommitted / "models", "digits").state.running.version == "2.0.0"


def test_what_is_not_whole_or_was_never_tested_is_not_taken_for_a_package(uncommitted):
    disk, root = RealDisk(), uncommitted / "models" / "digits"
    (root / "b" / "variants" / "onnx-fp32" / "model.onnx").write_bytes(b"rot")
    assert recover(disk, root).running.version == "1.0.0"
    assert recover(disk, root).b is None
    (root / "a" / "proof.json").write_bytes(b"{")
    assert recover(disk, root) == ModelState()


def test_a_package_found_in_a_slot_that_takes_the_process_down_is_left_for_the_other(uncommitted, tmp_path):
    (tmp_path / "twin").mkdir()
    device = Device(tmp_path / "twin")
    shutil.copytree(uncommitted / "models", device.models, dirs_exist_ok=True)
    answered = []
    for unclean in (False, True, True, True):
        device.boot(unclean=unclean)
        answered.append(device.job.state.running.version)
    device.agent.close()
    assert answered == ["2.0.0", "2.0.0", "2.0.0", "1.0.0"]


@pytest.mark.parametrize("lost", [("hub.json",), ("root.json",), ("hub.json", "root.json")])
def test_a_lost_file_of_the_identity_leaves_the_model_answering_and_status_says_the_way_back(world, lived_in, lost):
    home = world.home("dev-1")
    shutil.copytree(lived_in / "models", home / "models")
    for name in lost:
        (home / "identity" / name).unlink()
    found = status.read(home)
    assert "`edgewright agent enroll" in found.damage
    assert len(lost) == 2 or f"identity/{lost[0]}: expected a file of this device's identity" in found.damage
    with Agent(home, transport=NoHub()) as agent:
        assert agent.model("digits").predict({"image": packages.draw(1, seed=1)[0][0]}).digest
        assert agent.identity.damage
    shutil.rmtree(home / "models")
    with pytest.raises(RequestError, match="agent enroll"):  # there is nothing that could answer
        status.of(home)


def test_an_enrolled_device_that_lost_a_file_of_its_identity_takes_no_package_on_a_persons_word(world, lived_in):
    home = world.home("dev-1")
    shutil.copytree(lived_in, home, dirs_exist_ok=True)
    (home / "identity" / "hub.json").unlink()
    assert status.of(home).damage
    assert identity.is_enrolled(home)
