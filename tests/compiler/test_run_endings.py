"""Runs that end badly: what is said, what is kept, what `edgewright runs` shows of them."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from edgewright.main import run as edgewright
from edgewright_compiler.compilation import compile_recipe
from edgewright_compiler.pipeline.choice import Arch, Candidate, Limits
from edgewright_compiler.pipeline.runs import Run, RunFolder, all_runs
from edgewright_compiler.rows import Data
from edgewright_contracts.errors import Unavailable
from edgewright_devices import load
from edgewright_models.digits.recipe import recipe

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def full(path: str) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def unavailable(path: str) -> Unavailable:
    """As a trained net that cannot be written is told."""
    error = Unavailable(f"{path}: the net cannot be written (No space left on device); free space and run again")
    error.__cause__ = full(path)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (full("here/model.onnx"), "here/model.onnx could not be written; free space, or name another disk with --work"),
        (unavailable("here/net.npz"), "here/net.npz: the net cannot be written (No space left on device); free space"),
    ],
)
def test_a_full_disk_is_one_message_and_a_run_that_failed(error: Exception, said: str, tmp_path: Path) -> None:
    work = tmp_path / "work"

    def data() -> Data:
        raise error

    with pytest.raises(Unavailable) as told:
        compile_recipe(
            replace(recipe(), data=data),
            load("x86-gateway"),
            tmp_path / "package",
            seed=1,
            now=NOON,
            progress=lambda _stage, _share: None,
            work=work,
        )
    assert f"the disk is full: {said}" in str(told.value)
    assert f"--work (steps) or --out (the package). Finished steps are kept in {work}" in str(told.value)
    (ended,) = all_runs(work)
    assert (ended.state, ended.message) == ("failed", str(told.value))
    assert [path.name for path in (work / "runs" / ended.id).iterdir()] == ["run.json"]


def test_a_refused_run_shows_its_candidates_and_the_limit_that_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path, Run(id="r", name="digits", version="1.0", device="x86-gateway", seed=1, started=NOON))
    folder.step("teacher-1", 2.5)
    folder.step("student-1", None)
    folder.step("teacher-1", None)
    folder.step("answers-1", 1.0)
    folder.step("answers-2", None)
    folder.step("answers-3", 2.1)
    limits = Limits(max_size_kb=1)
    float_ = Candidate(
        arch=Arch(), scheme="onnx-fp32", format="onnx", precision="fp32", bytes=4000, relative=1.0, p50_us=12.3
    )
    none = Candidate(arch=Arch(), scheme="onnx-int8", format="onnx", precision="int8", refused="nothing to quantize")
    other = msgspec.structs.replace(none, scheme="onnx-int8-ent")
    folder.measured(limits, [float_, none, other])
    folder.end(state="refused", message="no candidate of 2 keeps every limit")

    assert edgewright(["runs", "show", "r", "--work", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "r  refused, x86-gateway, seed 1" in out
    assert [" ".join(line.split()) for line in out.splitlines() if " step" in line] == [
        "teacher 1 step, 2.5 s",
        "student 1 step, 1 found",
        "answers 3 steps, 3.1 s, 1 found",
    ]
    assert "w1-p1/onnx-fp32: 4 kB > --max-size-kb 1" in out
    assert "w1-p1/onnx-int8, w1-p1/onnx-int8-ent: nothing to quantize" in out, "a reason is told once"
    assert "12.3 µs" in out, "in eighty columns"
    assert edgewright(["runs", "show", "r", "--work", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["choice"] is None
    assert [c["scheme"] for c in told["measured"]["candidates"]] == ["onnx-fp32", "onnx-int8", "onnx-int8-ent"]
    assert len(told["run"]["steps"]) == 5


def test_compared_runs_are_told_apart_and_a_refused_one_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for time in ("120000", "120501"):
        ident = f"20260102-{time}-a-recipe-with-a-long-name-1.0.0"
        folder = RunFolder(tmp_path, Run(id=ident, name="digits", version="1.0.0", device="x86-gateway", seed=1,
                                         started=NOON))  # fmt: skip
        low, high = (
            Candidate(arch=Arch(), scheme=f"onnx-{p}", format="onnx", precision=p, drop=d, bytes=4000, relative=1.0)
            for p, d in (("fp32", 0.5), ("int8", 2.0))
        )
        folder.measured(Limits(max_drop=0.1), [high, low])
        folder.end(state="refused", message=f"no candidate at {time}")
    assert edgewright(["runs", "compare", "20260102-120000", "20260102-120501", "--work", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    header = next(line for line in out.splitlines() if "┃" in line)
    assert header.replace("┃", " ").split() == ["120000", "120501"]
    assert "120501: 20260102-120501-a-recipe-with-a-long-name-1.0.0" in out
    assert "120501 refused: no candidate at 120501" in out
    assert out.count("+0.50 points") == 2, "the least loss of each"
    assert out.count("none; least loss") == out.count("w1-p1/onnx-fp32") == 2
    again = RunFolder(tmp_path, Run(id="r", name="d", version="1", device="x", seed=1, started=NOON))
    second = RunFolder(tmp_path, again.run)
    assert edgewright(["runs", "compare", again.run.id, second.run.id, "--work", str(tmp_path)]) == 0
    assert "r-2: r-2" in capsys.readouterr().out
