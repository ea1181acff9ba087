"""How far a compilation is, on a terminal and off it: stages counted, time left told from evidence only."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from rich.console import Console

from edgewright.progress import Stages, shown
from edgewright_compiler.pipeline.choice import Arch, Choice, Limits
from edgewright_compiler.pipeline.stages import planned
from edgewright_models.digits.recipe import Settings, recipe

PLAN = ("reading the data", "training the teacher", "training the student", "measuring the package")


def at(*times: float) -> Callable[[], float]:
    ticks = iter(times)
    return lambda: next(ticks)


def test_time_left_is_told_from_the_pace_of_the_stage_and_not_before_it_has_one() -> None:
    stages = Stages()
    stages.plan(PLAN, more=False)
    stages.tell("reading the data", 0.0, 0.0)
    assert (stages.said, stages.eta(0.0)) == ("stage 1 of 4", "")
    stages.tell("training the teacher", 0.5, 10.0)
    assert stages.left(100.0) is None, "it went on from a checkpoint: half of it was not done here"
    stages.tell("training the teacher", 0.6, 20.0)
    assert stages.eta(20.0) == "at least 0:40 to go", "the student comes on top, and nobody knows for how long"
    stages.tell("measuring the package", 0.0, 60.0)
    stages.tell("measuring the package", 0.25, 70.0)
    assert (stages.said, stages.eta(70.0)) == ("stage 4 of 4", "about 0:30 to go")


def test_stages_that_only_measurement_brings_are_counted_when_they_come() -> None:
    stages = Stages()
    stages.tell("loading the tools", 0.0, 0.0)
    stages.plan(PLAN, more=True)
    assert stages.said == "stage 1 of 5 or more"
    stages.tell("training the student", 1.0, 1.0)
    stages.tell("training for int8", 0.0, 2.0)
    assert stages.said == "stage 5 of 6 or more"
    stages.tell("reading the data", 1.0, 3.0)
    assert stages.said == "stage 5 of 6 or more", "it never goes back"
    stages.tell("measuring the package", 0.0, 4.0)
    assert stages.said == "stage 6 of 6", "the search is over"


def test_without_a_terminal_there_are_plain_lines_and_found_stages_are_said() -> None:
    out = io.StringIO()
    with shown(Console(file=out, width=40), at(0, 1, 2, 10, 45, 50, 130, 131)) as told:
        told("reading the data", 0.0)
        told.plan(PLAN, more=False)
        told("reading the data", 1.0)
        told("training the student", 0.0)
        told("training the student", 0.1)
        told("training the student", 0.5)
        told("training the student", 0.6)
        told("training the student", 1.0)
        told("training the student", 1.0)
    assert out.getvalue().splitlines() == [
        "stage 1: reading the data",  # nobody knows how many yet
        "stage 1 of 4: reading the data: done in 0:01",
        "training the teacher: found finished",
        "stage 3 of 4: training the student",
        "stage 3 of 4: training the student: 50%, at least 0:43 to go",
        "stage 3 of 4: training the student: done in 2:08",
    ]


def test_on_a_terminal_there_is_a_bar_for_the_run_and_one_for_each_stage() -> None:
    out = io.StringIO()
    with shown(Console(file=out, width=120, force_terminal=True), at(0, 10, 20)) as told:
        told.plan(PLAN, more=False)
        told("training the teacher", 0.0)
        told("training the teacher", 0.25)
    assert "stage 2 of 4" in out.getvalue()
    assert "at least 0:30 to go" in out.getvalue()
    assert "0:30 left" in out.getvalue()
    assert "found finished" in out.getvalue()


def test_noise_of_the_tools_is_not_shown_between_the_bars() -> None:
    out = io.StringIO()
    before = sys.stdout, sys.stderr
    with shown(Console(file=out, width=120, force_terminal=True), at(0)) as told:
        told("loading the tools", 0.0)
        assert (sys.stdout, sys.stderr) == before  # where `quiet` holds


def test_a_quiet_console_shows_nothing() -> None:
    out = io.StringIO()
    with shown(Console(file=out, quiet=True), at(0)) as told:
        told("reading the data", 0.0)
    assert out.getvalue() == ""


def test_the_plan_of_a_recipe_names_the_stages_that_are_sure_to_come() -> None:
    whole = planned(recipe(), ("onnx", "tflite"), None, searched=False)
    assert whole == (
        "reading the data", "trying the export", "training the teacher", "training the student",
        "training what 35% leaves", "exporting ONNX", "quantizing ONNX", "exporting TFLite", "quantizing TFLite",
        "measuring candidates", "judging candidates", "measuring the package",
    )  # fmt: skip
    searched = planned(recipe(), ("onnx", "tflite"), None, searched=True)
    assert searched == tuple(name for name in whole if "leaves" not in name), "a search may have no minutes for pruning"
    alone = recipe(Settings(distil=False))
    choice = Choice(
        arch=Arch(qat=True), chosen={"onnx": "a", "tflite": "b"}, limits=Limits(), candidates=(), why="", tried=()
    )
    assert planned(alone, ("tflite",), choice, searched=False) == (
        "reading the data", "trying the export", "training the student", "training for int8", "exporting TFLite",
        "measuring the package",
    )  # fmt: skip
