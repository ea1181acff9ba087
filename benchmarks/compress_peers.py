"""Our package beside what other tools make of the same nets: accuracy, bytes and p50, taken in turns in one process.

    python benchmarks/compress_peers.py [--quick] [--json] [--work DIR]

Every peer starts from our fp32 teacher and from our fp32 student, which carries our monitor as the package does, and
once more from that student without its monitor. Ours is the ONNX file that the recipe packages, monitor included. All
get the same calibration rows and the same runtime: onnxruntime, one thread. What each peer is and was given stands in
its module under benchmarks/peers/.

The rule. A peer dominates ours if it is at least as good in accuracy, bytes and p50, and better in one of them; ours
dominates a peer by the same rule. Accuracies are equal when 0 lies inside the paired two-sided 95 % interval of their
difference on the test rows (score interval of Tango, 1998). Times are taken in rounds, in which every file runs 25
calls in its turn; one is better when its median is in so many rounds that chance alone would seldom do it (two-sided
sign test, 5 %), else they are equal. Bytes are compared as they are. The raw figures stand beside every verdict.

`total` counts pairs of recipe and peer. `dominated`: those in which the peer dominates ours, from the teacher or from
the student, where both carry the monitor or neither does. `dominated_by_less`: those in which the peer's file of the
student without its monitor dominates ours with it: it does less, so this is no defeat, but it is what a monitor costs.
`dominates_on_teacher`: those in which ours dominates what the peer made of the teacher, which has no monitor to carry.
`within_a_point_on_teacher`: those in which ours is smaller and faster than that, and loses at most 1 point of accuracy
against it (paired one-sided 95 % bound), which is what the recipes promise against the teacher itself.

--work is where `edgewright compile` kept its steps: the nets are taken from there, and the newest finished run's choice
with them; what is not there is made. `--quick` takes digits in its smallest form (a teacher and a student of 3 epochs),
from nothing, and fewer calls: less than a minute; its results are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import comb
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: it counts processors once

import against_teacher
import msgspec
import numpy as np
from peers import onnxruntime_quantization, torch_pruning_alone, torchao_pt2e
from peers.given import Given

from edgewright_compiler.measuring.bounds import tango_upper
from edgewright_compiler.measuring.counted import counted
from edgewright_compiler.measuring.machine import describe
from edgewright_compiler.measuring.slices import wilson
from edgewright_compiler.pipeline.assembly import chosen
from edgewright_compiler.pipeline.build import Built
from edgewright_compiler.pipeline.candidates import answers
from edgewright_compiler.pipeline.choice import Choice, Limits, read_choice
from edgewright_compiler.pipeline.files import File, made
from edgewright_compiler.pipeline.learn import reference_outputs, student, teacher
from edgewright_compiler.pipeline.runs import all_runs
from edgewright_compiler.pipeline.search import search
from edgewright_compiler.pipeline.steps import Step, Store
from edgewright_compiler.pipeline.workbench import TOOLS, Workbench, files_hash, versions
from edgewright_compiler.quiet import quiet
from edgewright_compiler.recipe import Recipe
from edgewright_compiler.rows import Rows, take
from edgewright_compiler.training.train import reproducible
from edgewright_devices import load
from edgewright_runtime.runtime import Session

ROOT = Path(__file__).parent.parent
RECIPES = ("mnist", "fashion")
PEERS: dict[str, Callable[[Given, Path], dict[str, Any]]] = {
    "onnxruntime static": onnxruntime_quantization.static,
    "onnxruntime dynamic": onnxruntime_quantization.dynamic,
    "torchao PT2E": torchao_pt2e.static,
    "torch-pruning": torch_pruning_alone.pruned,
}
ON_STUDENT, ON_BARE = " on student", " on student without monitor"
OURS, BARE = "ours", "ours without monitor"
PEER_TOOLS = tuple(sorted({*TOOLS, "torchao"}))
CALLS = 25  # in a row, as a device runs that does little else
ROUNDS, QUICK_ROUNDS = 60, 20
ROWS = 64  # that the calls go round
LEVEL = 0.975  # one-sided on both sides: 95 % two-sided
PROMISED = 1.0  # points
RULE = """A dominates B: as good in accuracy, bytes and p50, and better in one. Accuracies are equal when 0 lies inside
the paired 95 % interval of their difference, times when a sign test over rounds does not tell them apart at 5 %."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`right` [n] by test row, `p50_us` by round; `given` is what a peer was given, in its own words."""

    right: np.ndarray[Any, np.dtype[np.float64]]
    bytes: int
    p50_us: tuple[float, ...]
    given: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """Ours over a peer: +1 better, 0 equal, -1 worse. In points of accuracy: `low` and `high` of ours minus the
    peer's, and `loss`, the one-sided 95 % bound of the peer's minus ours."""

    accuracy: int
    bytes: int
    p50: int
    low: float
    high: float
    loss: float

    @property
    def verdict(self) -> str:
        signs = (self.accuracy, self.bytes, self.p50)
        if min(signs) >= 0 and max(signs) > 0:
            return "ours dominates"
        return "dominates ours" if max(signs) <= 0 and min(signs) < 0 else "neither"


def compared(ours: Measured, peer: Measured) -> Compared:
    n = len(ours.right)
    gained = float(((ours.right == 1) & (peer.right == 0)).sum())
    lost = float(((ours.right == 0) & (peer.right == 1)).sum())
    low, high = -tango_upper(lost, gained, n, LEVEL), tango_upper(gained, lost, n, LEVEL)
    faster = sum(a < b for a, b in zip(ours.p50_us, peer.p50_us, strict=True))
    slower = sum(a > b for a, b in zip(ours.p50_us, peer.p50_us, strict=True))
    return Compared(
        accuracy=(low > 0) - (high < 0),
        bytes=(ours.bytes < peer.bytes) - (ours.bytes > peer.bytes),
        p50=(faster > slower) - (faster < slower) if by_chance(faster, slower) <= 2 * (1 - LEVEL) else 0,
        low=100 * low,
        high=100 * high,
        loss=100 * tango_upper(lost, gained, n),
    )


def by_chance(a: int, b: int) -> float:
    """Probability of a split of rounds at least as uneven as a to b when both are equally fast (sign test)."""
    n = a + b
    return min(1.0, 2 * sum(comb(n, k) for k in range(max(a, b), n + 1)) / 2**n)


def measured(recipe: Recipe, work: Path, rounds: int, say: Callable[[str, float], None]) -> dict[str, Measured]:
    """The float nets, ours, and every peer on each of the nets."""
    store = Store(work / "steps", time.perf_counter)
    seed, choice = chosen_before(work, recipe)
    bench = Workbench(recipe, seed=seed, store=store, say=say)
    with reproducible(seed):
        taught_by = teacher(bench)
        assert taught_by is not None, f"{recipe.name} has no teacher to start from"
        if choice is None:
            truth = reference_outputs(bench, taught_by, bench.data.validation)
            choice = search(
                bench, load(against_teacher.DEVICE), describe(), ("onnx",), Limits(), None, taught_by, truth
            )
        ours = chosen(bench, choice, taught_by).part("onnx")
        whole, small = Built(bench, taught_by), Built(bench, student(bench, choice.arch, taught_by))
        bare = made(bench, small.bare_source("onnx", small.declared.temperature), ours.scheme).file
        assert bare is not None, "what is quantized with its monitor is quantized without"
        heat = small.declared.temperature
        files = {
            "teacher": whole.without_monitor("onnx"),
            "student": small.file("onnx"),
            "student without monitor": small.without_monitor("onnx", heat),
            OURS: ours.file,
            BARE: bare,
        }
        told: dict[str, dict[str, Any]] = {OURS: {"scheme": ours.scheme.id, "arch": choice.arch.id}}
        macs, size = counted(small.net, bench.example).macs, ours.file.path.stat().st_size
        weights = f"weights as large as our file, {size:,} bytes"
        givens = {
            "": Given(whole, False, 1.0, lambda c: c.macs, macs, f"as many products as our student, {macs:,}"),
            ON_STUDENT: Given(small, True, heat, lambda c: 4 * c.params, size, weights),
            ON_BARE: Given(small, False, heat, lambda c: 4 * c.params, size, weights),
        }
        for suffix, given in givens.items():
            for name, peer in PEERS.items():
                files[name + suffix], told[name + suffix] = file_of(given, name, peer)
        rows = bench.data.test
        right = {
            name: bench.metric.score(answers(bench, f, "test", rows.inputs), rows.labels) for name, f in files.items()
        }
        say("measuring", 0.0)
        times = timed({name: file.open() for name, file in files.items()}, rows.inputs, rounds)
        say("measuring", 1.0)
    return {
        name: Measured(np.asarray(right[name]), file.path.stat().st_size, tuple(times[name]), told.get(name, {}))
        for name, file in files.items()
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


def chosen_before(work: Path, recipe: Recipe) -> tuple[int, Choice | None]:
    """Seed and choice of the newest finished run of this recipe, as it is packaged."""
    for run in reversed(all_runs(work)):
        if (run.name, run.version, run.state) == (recipe.name, recipe.version, "done"):
            choice = read_choice(work / "runs" / run.id / "choice.json")
            if "onnx" in choice.chosen:
                return run.seed, choice
    return against_teacher.SEED, None


def file_of(given: Given, name: str, peer: Callable[[Given, Path], dict[str, Any]]) -> tuple[File, dict[str, Any]]:
    """A peer's file and what it says that it was given; kept like any other step."""
    bench = given.bench
    code = files_hash(tuple(sorted((ROOT / "benchmarks" / "peers").glob("*.py"))))
    facts = {"peer": name, "source": given.file.step, "until": given.until, "code": code, "seed": bench.seed}
    step = Step("peer", {**facts, "tools": versions(PEER_TOOLS)})

    def make(part: Path) -> None:
        bench.say(name, 0.0)
        notes = peer(given, part / "model.onnx")
        (part / "notes.json").write_bytes(msgspec.json.encode(notes))
        bench.say(name, 1.0)

    path = bench.store.get(step, make)
    notes: dict[str, Any] = msgspec.json.decode((path / "notes.json").read_bytes())
    return File(step.name, path / "model.onnx", given.file.input, given.file.outputs), notes


def rows_of(found: Mapping[str, Measured]) -> dict[str, dict[str, Any]]:
    """What is reported: of a peer with ours against it; of one without a monitor with ours without it, too."""
    reported = {}
    for name, one in found.items():
        right, n = int(one.right.sum()), len(one.right)
        low, high = wilson(right, n)
        reported[name] = {
            "accuracy": round(right / n, 5),
            "low": round(low, 5),
            "high": round(high, 5),
            "bytes": one.bytes,
            "p50_us": round(float(np.median(one.p50_us)), 2),
            "p50_ratio": round(float(np.median(np.divide(one.p50_us, found[OURS].p50_us))), 3),
        }
        if not name.startswith(tuple(PEERS)):
            continue
        against, words = compared(found[OURS], one), {1: "better", 0: "equal", -1: "worse"}
        reported[name] |= {
            "ours_accuracy": f"{words[against.accuracy]} ({against.low:+.2f} to {against.high:+.2f} points)",
            "ours_bytes": words[against.bytes],
            "ours_p50": words[against.p50],
            "verdict": against.verdict,
        }
        if name.endswith(ON_BARE):
            reported[name]["verdict_without_monitor"] = compared(found[BARE], one).verdict
        if name in PEERS:
            reported[name]["loss_bound_points"] = round(against.loss, 3)
    return reported


def verdicts(one: Mapping[str, Any]) -> str:
    without = f" (without monitor: {one['verdict_without_monitor']})" if "verdict_without_monitor" in one else ""
    return f"{one.get('verdict', '')}{without}"


def counts(recipes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, int]:
    pairs = [(rows[peer], rows[peer + ON_STUDENT], rows[peer + ON_BARE]) for rows in recipes.values() for peer in PEERS]
    worse, better = "dominates ours", "ours dominates"
    return {
        "dominated": sum(worse in (a["verdict"], b["verdict"], c["verdict_without_monitor"]) for a, b, c in pairs),
        "dominated_by_less": sum(c["verdict"] == worse for _, _, c in pairs),
        "dominates_on_teacher": sum(a["verdict"] == better for a, _, _ in pairs),
        "within_a_point_on_teacher": sum(
            a["ours_bytes"] == a["ours_p50"] == "better" and a["loss_bound_points"] <= PROMISED for a, _, _ in pairs
        ),
        "peers": len(PEERS),
        "total": len(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, in its smallest form; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    parser.add_argument("--work", type=Path, default=ROOT / ".edgewright", help="where finished steps are kept")
    arguments = parser.parse_args()
    recipes: dict[str, dict[str, dict[str, Any]]] = {}
    given: dict[str, dict[str, Mapping[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch, quiet() as streams:
        began = time.perf_counter()

        def say(stage: str, share: float) -> None:
            if share in (0.0, 1.0):
                print(
                    f"{time.perf_counter() - began:7.1f} s  {stage}{', done' * int(share)}",
                    file=streams.err,
                    flush=True,
                )

        for name in ("digits",) if arguments.quick else RECIPES:
            module = import_module(f"edgewright_models.{name}.recipe")
            recipe = module.recipe(module.QUICK) if arguments.quick else module.recipe()
            work = Path(scratch) if arguments.quick else arguments.work
            found = measured(recipe, work, QUICK_ROUNDS if arguments.quick else ROUNDS, say)
            recipes[name] = rows_of(found)
            given[name] = {key: one.given for key, one in found.items() if one.given}
            for key, one in recipes[name].items():
                print(
                    f"{name:8} {key:44} {100 * one['accuracy']:6.2f} % ({100 * one['low']:.2f} to "
                    f"{100 * one['high']:.2f}) {one['bytes']:>9,} B {one['p50_us']:8.1f} µs  {verdicts(one)}",
                    file=streams.out,
                    flush=True,
                )
    result = {"recipes": recipes, **counts(recipes)}
    print(RULE)
    print(", ".join(f"{name} {value}" for name, value in result.items() if name != "recipes"))
    if not arguments.quick:
        tools = versions(PEER_TOOLS)
        against_teacher.write("compress_peers", {**result, "given": given, "tools": tools})
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
