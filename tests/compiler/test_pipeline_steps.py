"""Steps are made once, whole or not at all; runs say how far they came."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgewright_compiler.pipeline.choice import Arch, Candidate, Limits, misses
from edgewright_compiler.pipeline.runs import Run, RunFolder, all_runs, find, read_measured, read_run
from edgewright_compiler.pipeline.steps import CHECKPOINT, Step, Store
from edgewright_contracts.errors import ContractError, RequestError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


SLOW = """
import sys, time
from pathlib import Path
from edgewright_compiler.pipeline.steps import Step, Store

def slow(part):
    print("inside", flush=True)
    sys.stdin.readline()
    (part / "result").write_text("child")

Store(Path(sys.argv[1]), time.monotonic).get(Step("student", {}), slow)
"""


def ticking() -> Callable[[], float]:
    """Every look at this clock is a second later."""
    ticks = iter(range(10_000))
    return lambda: float(next(ticks))


def writing(text: str) -> Callable[[Path], None]:
    return lambda part: (part / "result").write_text(text) and None


def test_a_step_is_made_once_and_found_afterwards(tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    store = Store(tmp_path, ticking(), lambda name, seconds: told.append((name, seconds)))
    step = Step("teacher", {"seed": 1})
    assert (store.get(step, writing("a")) / "result").read_text() == "a"
    assert (store.get(step, writing("b")) / "result").read_text() == "a"
    assert told == [(step.name, 1.0), (step.name, None)]
    assert store.spent == 1.0, "asked for twice, and made once"
    again = Store(tmp_path, ticking())
    again.get(step, writing("c"))
    assert again.spent == 1.0, "what a found step took counts, so a budget ends where it ended before"


def test_whatever_decides_a_result_decides_its_name_and_the_order_of_facts_does_not() -> None:
    assert Step("a", {"x": 1, "y": 2}).name == Step("a", {"y": 2, "x": 1}).name
    assert len({Step("a", {"x": 1}).name, Step("a", {"x": 2}).name, Step("b", {"x": 1}).name}) == 3


def test_what_failed_leaves_nothing_and_is_made_anew(tmp_path: Path) -> None:
    store, step = Store(tmp_path, ticking()), Step("onnx", {})

    def full(part: Path) -> None:
        (part / "half").write_text("…")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/\.{step.name}\.part'"):
        store.get(step, full)
    assert list(tmp_path.iterdir()) == []
    made = store.get(step, writing("whole"))
    assert sorted(p.name for p in made.iterdir()) == ["result", "step.json"]


def test_a_trained_net_that_the_disk_does_not_take_keeps_its_checkpoint(tmp_path: Path) -> None:
    """Hours of training must not depend on the last kilobyte."""
    store, step = Store(tmp_path, ticking()), Step("teacher", {})

    def trained(part: Path) -> None:
        (part / CHECKPOINT).write_text("all epochs")
        (part / "step.json").mkdir()  # stands in for a disk that takes no more

    with pytest.raises(OSError, match=r"step\.json"):
        store.get(step, trained)
    assert [p.name for p in (tmp_path / f".{step.name}.part").iterdir()] == [CHECKPOINT]


def test_a_checkpoint_of_an_unfinished_step_is_there_when_it_is_made_again(tmp_path: Path) -> None:
    store, step = Store(tmp_path, ticking()), Step("teacher", {})

    def killed(part: Path) -> None:
        (part / CHECKPOINT).write_text("epoch 7")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(step, killed)
    seen = []
    made = store.get(step, lambda part: seen.append((part / CHECKPOINT).read_text()))
    assert seen == ["epoch 7"]
    assert [p.name for p in made.iterdir()] == ["step.json"]


def test_two_processes_make_a_step_once(tmp_path: Path) -> None:
    step = Step("student", {})
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "inside\n"
    child.stdin.write("go\n")
    child.stdin.flush()
    made = Store(tmp_path, ticking()).get(step, writing("parent"))
    assert child.wait(60) == 0
    child.stdin.close()
    child.stdout.close()
    assert (made / "result").read_text() == "child"
    assert [p.name for p in tmp_path.iterdir()] == [step.name]


def run(name: str = "digits") -> Run:
    return Run(id=f"20260301-120000-{name}-1.0", name=name, version="1.0", device="x86-gateway", seed=1, started=NOON)


def test_runs_are_listed_as_far_as_they_came(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path, run()), RunFolder(tmp_path, run())
    assert second.path.name == f"{first.path.name}-2", "two runs of one second are two runs"
    first.step("teacher-1", 2.504)
    first.step("student-1", None)
    first.step("teacher-1", None)
    second.change(state="refused", message="too large")
    listed = all_runs(tmp_path)
    assert [(r.state, len(r.steps)) for r in listed] == [("running", 2), ("refused", 0)]
    assert [(s.name, s.seconds) for s in listed[0].steps] == [("teacher-1", 2.5), ("student-1", None)], (
        "each once, in the order in which they were met: what this run made, it did not find"
    )


FULL = """
import errno, resource, sys
from datetime import UTC, datetime
from pathlib import Path
from edgewright_compiler.pipeline.runs import Run, RunFolder

folder = RunFolder(Path(sys.argv[1]), Run(
    id="r", name="n", version="1", device="d", seed=1, started=datetime(2026, 3, 1, tzinfo=UTC)))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    folder.step("teacher-1", 1.0)
except OSError as error:
    assert error.errno == errno.EFBIG, error
    print(error.filename, end="")
"""


def test_a_disk_that_takes_no_more_leaves_the_last_record_and_names_its_path(tmp_path: Path) -> None:
    """A real limit of the kernel, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == str(tmp_path / "runs" / "r" / "run.json")
    assert {p.name for p in (tmp_path / "runs" / "r").iterdir()} == {"run.json", ".reserve"}
    assert read_run(tmp_path / "runs" / "r").steps == ()


def test_a_run_that_ends_gives_back_the_space_that_it_reserved_for_its_last_words(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, run())
    assert (folder.path / ".reserve").stat().st_size > 0
    folder.end(state="failed", message="the disk is full")
    assert [p.name for p in folder.path.iterdir()] == ["run.json"]
    assert read_run(folder.path).message == "the disk is full"


def test_a_run_without_a_choice_keeps_what_it_measured(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, run())
    assert read_measured(folder.path) is None
    folder.measured(Limits(max_size_kb=1), [])
    assert read_measured(folder.path) is None, "there is nothing to show"
    candidate = Candidate(arch=Arch(), scheme="onnx-fp32", format="onnx", precision="fp32", bytes=4000, relative=1.0)
    folder.measured(Limits(max_size_kb=1), [candidate])
    found = read_measured(folder.path)
    assert found is not None
    assert misses(found.candidates[0], found.limits) == ("4 kB > --max-size-kb 1",)
    (folder.path / "measured.json").write_text("{")
    with pytest.raises(ContractError, match=r"measured\.json"):
        read_measured(folder.path)


def test_a_run_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    RunFolder(tmp_path, run())
    RunFolder(tmp_path, run("fashion"))
    assert find(tmp_path, "20260301-120000-f").name.startswith("20260301-120000-fashion")
    with pytest.raises(RequestError, match=r"fits 2; runs are: 20260301-120000-digits-1\.0, 20260301-120000-fashion"):
        find(tmp_path, "2026")
    with pytest.raises(RequestError, match="fits 0"):
        find(tmp_path, "nothing")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, run())
    RunFolder(tmp_path, run("fashion"))
    (folder.path / "run.json").write_text("{")
    assert [r.state for r in all_runs(tmp_path)] == ["damaged", "running"]
    with pytest.raises(ContractError, match=r"run\.json"):
        read_run(folder.path)
