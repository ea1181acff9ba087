"""A birth is never too long to be said, and says the version that the wheel has."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edgewright_agent import introduction
from edgewright_agent.delivery.spool import Spool
from edgewright_agent.updating.slots import ModelState, Slot
from edgewright_contracts import birth
from sim.clock import SimClock
from sim.disk import SimDisk


def born(states):
    disk = SimDisk()
    disk.mkdir(Path("/home"))
    return birth.decode_birth(
        introduction.born(
            device="dev-1", boot_id="b" * 16, connection=1, runtimes={"onnxruntime": "1.2"}, states=states,
            spool=Spool(disk, Path("/home/spool"), new_id=lambda: "1" * 16), clock=SimClock(), window_s=300,
            desired_rev=1,
        )
    )  # fmt: skip


def test_a_birth_says_the_version_that_the_wheel_is_built_with():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert born({}).agent == project["version"]


def states(models: int, letters: int) -> dict[str, ModelState]:
    new, old = Slot("a" * 64, "2" * letters, "v" * 32, "litert"), Slot("b" * 64, "1" * letters, "v" * 32, "litert")
    return {f"{i:02d}".rjust(letters, "m"): ModelState(active="a", a=new, b=old) for i in range(models)}


def test_every_slot_of_32_models_is_told():
    assert len(born(states(32, 12)).slots) == 64


@pytest.mark.parametrize(("models", "letters"), [(40, 12), (32, 63), (70, 63)])
def test_of_more_slots_than_fit_those_that_answer_are_told(models, letters):
    slots = born(states(models, letters)).slots
    active = sum(slot.state == "active" for slot in slots)
    assert len(slots) >= 40
    assert active == min(models, len(slots))
