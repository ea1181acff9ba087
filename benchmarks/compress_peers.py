"""Our package beside what other tools make of the same nets: accuracy, bytes and p50, taken in turns in one process.

    python benchmarks/compress_peers.py [RECIPE ...] [--quick] [--json] [--work DIR]

Every peer starts from our fp32 teacher and from our fp32 student, which carries our monitor as the package does, and
once more from that student without its monitor. Ours is the ONNX file that the recipe packages, monitor included. All
get the same calibration rows and the same runtime: onnxruntime, one thread. What each peer is and was given stands in
its module under benchmarks/peers/; the rule of who dominates whom in comparison.py there, beside every verdict stand
the raw figures.

`total` counts pairs of recipe and peer. `dominated`: those in which the peer dominates ours, from the teacher or from
the student, where both carry the monitor or neither does. `dominated_by_less`: those in which the peer's file of the
student without its monitor dominates ours with it: it does less, so this is no defeat, but it is what a monitor costs.
`dominates_on_teacher`: those in which ours dominates what the peer made of the teacher, which has no monitor to carry.
`within_a_point_on_teacher`: those in which ours is smaller and faster than that, and loses at most 1 point of accuracy
against it (paired one-sided 95 % bound), which is what the recipes promise against the teacher itself.

--work is where `edgewright compile` kept its steps: the nets are taken from there, and the newest finished run's choice
with them; what is not there is made, in hours. The files of mnist are kept beside the results. `--quick` measures those
again, accuracy and time, without making any: less than a minute; its results are not written.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: it counts processors once

import against_teacher
import msgspec
import numpy as np
from peers import onnxruntime_quantization, torch_pruning_alone, torchao_pt2e
from peers.comparison import BARE, ON_BARE, ON_STUDENT, OURS, RULE, Measured, counts, reported
from peers.given import Given

from edgewright_compiler.graph.reference import run
from edgewright_compiler.measuring.counted import counted
from edgewright_compiler.measuring.machine import describe
from edgewright_compiler.measuring.metrics import metric
from edgewright_compiler.pipeline.assembly import chosen
from edgewright_compiler.pipeline.build import Built
from edgewright_compiler.pipeline.choice import Choice, Limits
from edgewright_compiler.pipeline.files import File, made
from edgewright_compiler.pipeline.learn import reference_outputs, student, teacher
from edgewright_compiler.pipeline.recorded import read_choice
from edgewright_compiler.pipeline.runs import all_runs
from edgewright_compiler.pipeline.search import search
from edgewright_compiler.pipeline.steps import Step, Store
from edgewright_compiler.pipeline.workbench import TOOLS, Workbench, files_hash, versions
from edgewright_compiler.quiet import quiet
from edgewright_compiler.recipe import Recipe
from edgewright_compiler.rows import Labelled, Rows, take
from edgewright_compiler.training.train import reproducible
from edgewright_contracts.manifest import TensorOut
from edgewright_devices import load
from edgewright_runtime.runtime import Session

RECIPES = ("mnist", "fashion")
PEERS: dict[str, Callable[[Given, Path], dict[str, Any]]] = {
    "onnxruntime static": onnxruntime_quantization.static,
    "onnxruntime dynamic": onnxruntime_quantization.dynamic,
    "torchao PT2E": torchao_pt2e.static,
    "torch-pruning": torch_pruning_alone.pruned,
}
PEER_TOOLS = tuple(sorted({*TOOLS, "torchao"}))
HERE = Path(__file__).parent
QUICK = RECIPES[0]
RESULT = against_teacher.RESULTS / "compress_peers.json"
CALLS = 25  # in a row, as a device runs that does little else
ROUNDS, QUICK_ROUNDS = 120, 40
ROWS = 64  # that the calls go round
Say = Callable[[str, float], None]


class Entry(msgspec.Struct, frozen=True):
    """A file that is compared; `given` is what a peer was given, in its own words."""

    file: File
    given: Mapping[str, Any] = {}


def entries(recipe: Recipe, work: Path, say: Say) -> dict[str, Entry]:
    """The float nets, ours, and every peer's file of each of the nets; found under `work` or made."""
    seed, choice = chosen_before(work, recipe)
    bench = Workbench(recipe, seed=seed, store=Store(work / "steps", time.perf_counter), say=say)
    with reproducible(seed):
        taught_by = teacher(bench)
        assert taught_by is not None, f"{recipe.name} has no teacher to start from"
        if choice is None:
            truth = reference_outputs(bench, taught_by, "validation", bench.data.validation)
            device = load(against_teacher.DEVICE)
            choice = search(bench, device, describe(), ("onnx",), Limits(), None, taught_by, truth)
        ours = chosen(bench, choice, taught_by).part("onnx")
        whole, small = Built(bench, taught_by), Built(bench, student(bench, choice.arch, taught_by))
        heat = small.declared.temperature
        bare = made(bench, small.bare_source("onnx", heat), ours.scheme).file
        assert bare is not None, "what is quantized with its monitor is quantized without"
        found = {
            "teacher": Entry(whole.without_monitor("onnx")),
            "student": Entry(small.file("onnx")),
            "student without monitor": Entry(small.without_monitor("onnx", heat)),
            OURS: Entry(ours.file, {"scheme": ours.scheme.id, "arch": choice.arch.id}),
            BARE: Entry(bare),
        }
        macs, size = counted(small.net, bench.example).macs, ours.file.path.stat().st_size
        weights = f"weights as large as our file, {size:,} bytes"
        givens = {
            "": Given(whole, False, 1.0, lambda c: c.macs, macs, f"as many products as our student, {macs:,}"),
            ON_STUDENT: Given(small, True, heat, lambda c: 4 * c.params, size, weights),
            ON_BARE: Given(small, False, heat, lambda c: 4 * c.params, size, weights),
        }
        for suffix, given in givens.items():
            for name in PEERS:
                found[name + suffix] = entry(given, name)
    return found


def chosen_before(work: Path, recipe: Recipe) -> tuple[int, Choice | None]:
    """Seed and choice of the newest finished run of this recipe, as it is packaged."""
    for one in reversed(all_runs(work)):
        if (one.name, one.version, one.state) == (recipe.name, recipe.version, "done"):
            choice = read_choice(work / "runs" / one.id / "choice.json")
            if "onnx" in choice.chosen:
                return one.seed, choice
    return against_teacher.SEED, None


def entry(given: Given, name: str) -> Entry:
    """A peer's file; kept like any other step."""
    bench = given.bench
    code = files_hash(tuple(sorted((HERE / "peers").glob("*.py"))))
    facts = {"peer": name, "source": given.file.step, "until": given.until, "code": code, "seed": bench.seed}
    step = Step("peer", {**facts, "tools": versions(PEER_TOOLS)})

    def make(part: Path) -> None:
        bench.say(name, 0.0)
        notes = PEERS[name](given, part / "model.onnx")
        (part / "notes.json").write_bytes(msgspec.json.encode(notes))
        bench.say(name, 1.0)

    path = bench.store.get(step, make)
    notes: dict[str, Any] = msgspec.json.decode((path / "notes.json").read_bytes())
    source, alone = given.file, name == "onnxruntime dynamic"
    return Entry(File(step.name, path / "model.onnx", source.input, source.outputs, alone), notes)


def measured(found: Mapping[str, Entry], recipe: Recipe, test: Labelled, rounds: int, say: Say) -> dict[str, Measured]:
    say("answering", 0.0)
    sessions = {name: one.file.open() for name, one in found.items()}
    score = metric(recipe.metric, recipe.task).score
    right = {
        name: np.asarray(score(run(sessions[name], test.inputs, alone=one.file.alone), test.labels))
        for name, one in found.items()
    }
    say("measuring", 0.0)
    times = timed(sessions, test.inputs, rounds)
    say("measuring", 1.0)
    return {
        name: Measured(right[name], one.file.path.stat().st_size, tuple(times[name])) for name, one in found.items()
    }


def timed(sessions: Mapping[str, Session], rows: Rows, rounds: int) -> dict[str, list[float]]:
    """Median µs of single samples, by session and round; a first round warms up and is not counted."""
    singles = [take(rows, slice(i, i + 1)) for i in range(ROWS)]
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name, session in sessions.items():
            ns = []
            for call in range(CALLS):
                single = singles[(turn * CALLS + call) % ROWS]
                began = time.perf_counter_ns()
                session.run(single)
                ns.append(time.perf_counter_ns() - began)
            taken[name].append(float(np.median(ns)) / 1000)
    return {name: us[1:] for name, us in taken.items()}


def kept(recipe: str) -> Path:
    return against_teacher.RESULTS / f"compress_peers_{recipe}.zip"


def keep(found: Mapping[str, Entry], path: Path) -> None:
    """All files, and what they declare, in one archive without a clock."""
    index = {name: {"outputs": one.file.outputs, "alone": one.file.alone} for name, one in found.items()}
    members = {f"{name}.onnx": one.file.path.read_bytes() for name, one in found.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in {"index.json": msgspec.json.encode(index), **members}.items():
            archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)


def found_again(recipe: Recipe, folder: Path) -> dict[str, Entry]:
    with zipfile.ZipFile(kept(recipe.name)) as archive:
        archive.extractall(folder)
    index = msgspec.json.decode((folder / "index.json").read_bytes())
    return {
        name: Entry(
            File(
                name,
                folder / f"{name}.onnx",
                recipe.input,
                msgspec.convert(one["outputs"], tuple[TensorOut, ...]),
                one["alone"],
            )
        )
        for name, one in index.items()
    }


def main() -> None:
    told = against_teacher.arguments(__doc__, recipes=RECIPES)
    before = json.loads(RESULT.read_text()) if RESULT.is_file() and not told.quick else {}
    recipes: dict[str, dict[str, dict[str, Any]]] = before.get("recipes", {})
    given: dict[str, dict[str, Mapping[str, Any]]] = before.get("given", {})
    commits: dict[str, str] = before.get("commits", {})
    with tempfile.TemporaryDirectory() as scratch, quiet() as streams:
        say = against_teacher.Told()
        say.stream = streams.err
        for name in (QUICK,) if told.quick else told.recipes or RECIPES:
            recipe: Recipe = import_module(f"edgewright_models.{name}.recipe").recipe()
            found = found_again(recipe, Path(scratch)) if told.quick else entries(recipe, told.work, say)
            rounds = QUICK_ROUNDS if told.quick else ROUNDS
            recipes[name] = reported(measured(found, recipe, recipe.data().test, rounds, say), tuple(PEERS))
            given[name] = {key: one.given for key, one in found.items() if one.given}
            commits[name] = against_teacher.commit()
            if name == QUICK and not told.quick:
                keep(found, kept(name))
    for name, rows in recipes.items():
        for key, row in rows.items():
            print(line(name, key, row))
    result = {"recipes": recipes, **counts(recipes, tuple(PEERS))}
    print(RULE)
    print(", ".join(f"{name} {value}" for name, value in result.items() if name != "recipes"))
    if not told.quick:
        against_teacher.write(
            RESULT.stem, {**result, "given": given, "commits": commits, "tools": versions(PEER_TOOLS)}
        )
    if told.json:
        print(json.dumps(result))


def line(recipe: str, name: str, row: Mapping[str, Any]) -> str:
    without = f" (without monitor: {row['verdict_without_monitor']})" if "verdict_without_monitor" in row else ""
    return (
        f"{recipe:8} {name:44} {100 * row['accuracy']:6.2f} % ({100 * row['low']:.2f} to {100 * row['high']:.2f}) "
        f"{row['bytes']:>9,} B {row['p50_us']:8.1f} µs  {row.get('verdict', '')}{without}"
    )


if __name__ == "__main__":
    main()
