"""The whole compiler on real digits at a tiny size: once killed at every step, once in peace: equal in, equal out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest

from edgewright_compiler.compilation import CompileResult, compile_recipe
from edgewright_compiler.measuring.evidence import Evidence, decode_evidence
from edgewright_compiler.pipeline.choice import Choice, Limits
from edgewright_compiler.pipeline.recorded import read_choice
from edgewright_compiler.pipeline.runs import all_runs, read_run
from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.package import Package, read_package
from edgewright_devices import load
from edgewright_models.digits.recipe import Settings, recipe
from edgewright_runtime.runtime import open_session

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(600)]

# The libraries are loaded once; every try is a fork of that, and kills itself at the next step that it has made.
PROGRAM = """
import os, signal, sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
import ai_edge_quantizer, litert_torch
import edgewright_compiler.compilation as compilation
from edgewright_compiler.pipeline import steps
from edgewright_compiler.pipeline.recorded import read_choice
from edgewright_devices import load
from edgewright_models.digits.recipe import Settings, recipe

root, killed = Path(sys.argv[1]), sys.argv[2] == "killed"
settings = Settings(
    version="0.1", epochs=2, tune_epochs=2, teacher_epochs=1, student=(16, 16, 16, 24), reference_rows=1000
)
recorded = None if killed else read_choice(Path(sys.argv[3]))

class Deadly(steps.Store):
    def get(self, step, make):
        new = not (self.root / step.name).exists()
        found = super().get(step, make)
        if new and killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

compilation.Store = Deadly

def compile():
    told = []
    compilation.compile_recipe(
        recipe(settings), load("x86-gateway"), root / "package", seed=7, now=datetime.now(UTC), work=root / "work",
        thorough=False, recorded=recorded, progress=lambda stage, share: told.append(stage),
    )
    print("STAGES", *dict.fromkeys(told), sep="|", flush=True)

deaths = 0
while True:
    child = os.fork()
    if child == 0:
        compile()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == signal.SIGKILL:
        deaths += 1
        assert not (root / "package").exists()
        continue
    assert status == 0, status
    break
print("DEATHS", deaths, sep="|")
"""
STAGES = {
    "reading the data", "training the teacher", "training the student", "training what 35% leaves", "exporting ONNX",
    "exporting TFLite", "measuring the package",
}  # fmt: skip


class Compiled(NamedTuple):
    killed: Package
    whole: Package
    work: Path  # of the killed one
    deaths: int
    stages: tuple[str, ...]  # of the whole one


def ran(root: Path, *arguments: str, hash_seed: str) -> dict[str, list[str]]:
    """From a directory and a hash seed of its own."""
    root.mkdir()
    environment = {"PATH": "", "HOME": str(root), "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(root), *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines() if "|" in line}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """One package whose every step was followed by a kill -9, one made in peace elsewhere from the choice of the
    first."""
    root = tmp_path_factory.mktemp("compiled")
    first = ran(root / "a", "killed", hash_seed="1")
    second = ran(root / "b", "whole", str(last_choice(root / "a" / "work")), hash_seed="2")
    return Compiled(
        read_package(root / "a" / "package"),
        read_package(root / "b" / "package"),
        root / "a" / "work",
        int(first["DEATHS"][0]),
        tuple(second["STAGES"]),
    )


def last_choice(work: Path) -> Path:
    return max((work / "runs").glob("*/choice.json"), key=lambda path: path.stat().st_mtime_ns)


def test_killed_at_every_step_or_left_in_peace_the_digest_is_the_same(compiled: Compiled) -> None:
    a, b = compiled.killed, compiled.whole
    different = [f for f in a.manifest.files if a.manifest.files[f] != b.manifest.files[f]]
    assert not different
    assert a.digest == b.digest
    assert a.evidence() != b.evidence(), "what a clock measured differs, and is outside of the digest"
    assert compiled.deaths > 20


def test_every_death_left_a_run_that_says_how_far_it_came(compiled: Compiled) -> None:
    runs = all_runs(compiled.work)
    assert len(runs) == compiled.deaths + 1
    assert [r.state for r in runs] == ["running"] * compiled.deaths + ["done"]
    assert [sum(s.seconds is not None for s in r.steps) for r in runs] == [1] * compiled.deaths + [0]
    assert runs[-1].digest == compiled.killed.digest


def test_the_package_is_whole_and_says_what_it_was_made_from(compiled: Compiled) -> None:
    package = compiled.killed
    package.verify()
    m = package.manifest
    assert {v.id for v in m.variants} >= {"onnx-fp32", "tflite-fp32"}
    assert (m.name, m.version, m.task, m.provenance.seed) == ("digits", "0.1", "classification", 7)
    assert "student=(16, 16, 16, 24)" in m.provenance.recipe
    assert m.provenance.tools["torch"]
    assert {v.batch for v in m.variants if v.format == "tflite"} == {1}
    assert m.ranked("x86_64", ("tflite-runtime",))[0][0].precision == "fp32"
    for variant in m.variants:
        baseline = decode_baseline(package.read(variant.baseline))
        assert baseline.n == 1000
        assert 15 < len(baseline.channels) <= 22
        with np.load(package.root / variant.selftest, allow_pickle=False) as arrays:
            names = {"input:image", "output:probabilities", "output:monitor", "fp32:probabilities", "fp32:monitor"}
            assert set(arrays.files) == names
            assert all(len(arrays[name]) == 32 for name in names)
    card = package.read("card.md").decode()
    for said in ("Limits:", "by slice of the test rows", "label = 3", "teacher (float)", "Expected calibration error"):
        assert said in card


def test_the_chosen_variants_carry_a_bound_on_their_loss_and_nothing_else_was_judged(compiled: Compiled) -> None:
    evidence = evidence_of(compiled.killed)
    choice = read_choice(last_choice(compiled.work))
    judged = {v.scheme: v.loss for v in evidence.variants if v.loss is not None}
    assert set(judged) == set(choice.chosen.values())
    for loss in judged.values():
        assert loss is not None
        assert (loss.n, loss.confidence) == (597, 0.95)
        assert loss.bound > loss.estimate
    schemes = {c.scheme for c in choice.candidates if not c.refused}
    assert {"onnx-fp32", "tflite-fp32", "tflite-int8", "tflite-fp16"} < schemes
    assert sum(s.startswith("onnx-int8") for s in schemes) >= 3, "several calibrations are tried, and all reported"


def test_progress_names_every_stage(compiled: Compiled) -> None:
    assert set(compiled.stages) >= STAGES


def test_channels_of_the_exported_network_are_multiples_of_eight(compiled: Compiled) -> None:
    model = onnx.load_from_string(compiled.killed.read("variants/onnx-fp32/model.onnx"))
    channels = [w.dims[0] for w in model.graph.initializer if len(w.dims) == 4]
    assert len(channels) == 4, "three convolutions, and one of the monitor's"
    assert sum(n % 8 == 0 for n in channels) == 3
    assert not any(node.metadata_props for node in model.graph.node), "stack traces name the build host"


def test_int8_reaches_the_network_and_stops_before_the_monitor(compiled: Compiled) -> None:
    """In every static int8 file that was made: what the monitor says of the input is float's bit for bit, and what the
    network answers is not."""
    manifest = compiled.killed.manifest
    with np.load(compiled.killed.root / manifest.variant("onnx-fp32").selftest, allow_pickle=False) as arrays:
        rows, monitor, answer = arrays["input:image"], arrays["fp32:monitor"], arrays["fp32:probabilities"]
    channels = decode_baseline(compiled.killed.read(manifest.variant("onnx-fp32").baseline)).channels
    inputs = [c.source.column for c in channels if c.group == "input"]
    assert len(inputs) > 5
    seen = set()
    for step in (compiled.work / "steps").glob("int8-*"):
        if msgspec.json.decode((step / "step.json").read_bytes())["facts"]["scheme"]["method"] != "static":
            continue
        (path,) = step.glob("model.*")
        runtime = {".onnx": "onnxruntime", ".tflite": "litert"}[path.suffix]
        found = open_session(path, runtime, inputs=manifest.inputs, outputs=manifest.outputs).run({"image": rows})
        seen.add(runtime)
        assert (found["monitor"][:, inputs] == monitor[:, inputs]).all()
        assert (found["probabilities"] != answer).any()
    assert seen == {"onnxruntime", "litert"}


@pytest.fixture
def again(compiled: Compiled, tmp_path: Path) -> Callable[..., CompileResult]:
    """Compile once more from the finished steps, with other wishes."""

    def compile_(**wishes: Any) -> CompileResult:
        settings = Settings(
            version="0.1", epochs=2, tune_epochs=2, teacher_epochs=1, student=(16, 16, 16, 24), reference_rows=1000
        )
        return compile_recipe(
            recipe(settings),
            load("x86-gateway"),
            tmp_path / "package",
            seed=7,
            now=datetime(2026, 3, 1, tzinfo=UTC),
            progress=lambda _stage, _share: None,
            work=compiled.work,
            thorough=False,
            **wishes,
        )

    return compile_


def test_an_impossible_size_is_refused_with_the_nearest_candidates_and_nothing_is_written(
    again: Callable[..., CompileResult], compiled: Compiled, tmp_path: Path
) -> None:
    before = len(all_runs(compiled.work))
    with pytest.raises(Refused, match=r"no candidate of \d+ keeps every limit. Nearest: w1-p0.35/.* > --max-size-kb 1"):
        again(limits=Limits(max_size_kb=1))
    assert list(tmp_path.iterdir()) == []
    assert len(all_runs(compiled.work)) == before + 1
    run = next(r for r in all_runs(compiled.work) if r.state == "refused")
    assert not [s for s in run.steps if s.seconds is not None], "finished steps are kept"


def test_a_package_that_misses_its_bound_is_refused_with_the_number_of_rows_that_would_do(
    again: Callable[..., CompileResult], compiled: Compiled, tmp_path: Path
) -> None:
    choice = read_choice(last_choice(compiled.work))
    (loss,) = {v.loss for v in evidence_of(compiled.killed).variants if v.scheme == choice.chosen["onnx"]}
    assert loss is not None
    between = (max(loss.estimate, 0) + loss.bound) / 2
    with pytest.raises(Refused) as refused:
        again(recorded=within(choice, between))
    said = str(refused.value)
    assert f"at most {loss.bound:.2f} (95%, n = 597)" in said
    assert "the number of test rows is the limit" in said
    assert "Finished steps are kept" in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refused, match="the loss itself is the limit, more test rows would not help"):
        again(recorded=within(choice, min(0.01, loss.estimate / 2) if loss.estimate > 0 else 1e-9))


def within(choice: Choice, points: float) -> Choice:
    """As if it had been made within such a limit on the loss: it is the test rows that decide."""
    return msgspec.structs.replace(choice, limits=Limits(max_drop=points))


def test_a_recorded_choice_is_made_again_within_its_own_limits_or_not_at_all(
    again: Callable[..., CompileResult], compiled: Compiled, tmp_path: Path
) -> None:
    choice = read_choice(last_choice(compiled.work))
    runs = len(all_runs(compiled.work))
    with pytest.raises(RequestError, match="--max-size-kb: expected none, got 1"):
        again(recorded=choice, limits=Limits(max_size_kb=1))
    assert list(tmp_path.iterdir()) == []
    assert len(all_runs(compiled.work)) == runs
    made = again(recorded=msgspec.structs.replace(choice, limits=Limits(max_p95_ms=500)))
    assert made.package.manifest.budgets.p95_ms == 500
    assert made.evidence.choice.limits == read_run(made.run).limits == Limits(max_p95_ms=500)


def test_one_format_can_be_left_out(again: Callable[..., CompileResult]) -> None:
    made = again(formats=("tflite",))
    assert {v.format for v in made.package.manifest.variants} == {"tflite"}
    assert set(made.package.manifest.ranking) == {"*/litert", "*/tflite-runtime", "x86_64/tflite-runtime"}


def evidence_of(package: Package) -> Evidence:
    found = decode_evidence(package.evidence() or b"")
    assert found is not None
    return found
