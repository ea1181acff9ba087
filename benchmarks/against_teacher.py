"""What compile_mnist and compile_fashion share: a recipe compiled at full size, and its package beside its teacher.

For each format, in its runtime, on one thread: bytes of the packaged int8 file, monitor included, and of the teacher's
float file, which has none; p50 of single samples; and the loss on the test rows with its one-sided 95 % upper bound,
paired by row. `speed_ratio` is taken in blocks of 100 calls by turns, as a device runs that does little else;
`speed_ratio_by_turns` call by call, so that each model finds the caches filled by the other. Where formats differ, the
worse figure is the headline.

`seconds` is what all steps took when they were made, on one core: finished ones are found again in the work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: it counts processors once

import msgspec
import numpy as np

from edgewright_compiler.compilation import CompileResult, compile_recipe
from edgewright_compiler.measuring.machine import describe
from edgewright_compiler.pipeline.build import Built
from edgewright_compiler.pipeline.choice import Limits
from edgewright_compiler.pipeline.files import HOST_RUNTIME, File
from edgewright_compiler.pipeline.learn import original, teacher
from edgewright_compiler.pipeline.steps import Store
from edgewright_compiler.pipeline.workbench import Workbench
from edgewright_compiler.quiet import quiet
from edgewright_compiler.recipe import Recipe
from edgewright_contracts.errors import EdgewrightError
from edgewright_contracts.manifest import Manifest, Variant
from edgewright_contracts.package import Package
from edgewright_devices import load
from edgewright_runtime.runtime import Session, open_session

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DEVICE = "x86-gateway-vnni"
SEED = 1
MAX_DROP = 1.0  # points, on the bound
CALLS, BLOCK = 4000, 100


def arguments(text: str | None, *, recipes: Sequence[str] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if recipes:
        about = f"any of {', '.join(recipes)}: the others keep what was measured before; all of them without one"
        parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=about)
    parser.add_argument("--quick", action="store_true", help="reduced, under a minute; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    parser.add_argument("--work", type=Path, default=ROOT / ".edgewright", help="where finished steps are kept")
    told = parser.parse_args()
    unknown = set(getattr(told, "recipes", ())) - set(recipes)
    if unknown:
        parser.error(f"expected any of {', '.join(recipes)}, got {', '.join(sorted(unknown))}")
    return told


def compiled(recipe: Recipe, work: Path, package: Path, *, quick: bool) -> dict[str, Any]:
    """Compile into `package` as the command does, and compare."""
    told = Told()
    with quiet() as streams:
        told.stream = streams.err
        try:
            made = compile_recipe(
                recipe, load(DEVICE), package, seed=SEED, now=datetime.now(UTC), progress=told,
                work=work, limits=Limits() if quick else Limits(max_drop=MAX_DROP), thorough=not quick,
            )  # fmt: skip
        except EdgewrightError as error:
            sys.exit(f"{recipe.name}: {error}")
        bench = Workbench(recipe, seed=SEED, store=Store(work / "steps", time.perf_counter), say=told)
        whole = Built(bench, original(bench, teacher(bench)))
        found: dict[str, dict[str, Any]] = {}
        for variant in int8(made.package.manifest):
            loss = made.variant(variant.id).loss
            assert loss is not None
            reference = whole.without_monitor(variant.format)
            found[variant.format] = {
                "package_accuracy": made.variant(variant.id).metric["test"].value,
                "loss_points": loss.estimate,
                "bound_drop_points": loss.bound,
                "n": loss.n,
                **cost(made.package, variant, reference, bench.data.validation.inputs, CALLS // 10 if quick else CALLS),
            }
    accuracy = made.evidence.reference.metric["test"].value
    return {**worst(accuracy, found), "seconds": round(spent(made, work), 1), "formats": found}


def cost(
    package: Package, variant: Variant, reference: File, rows: Mapping[str, np.ndarray], calls: int
) -> dict[str, float | int]:
    """Bytes and times of the packaged file and of the teacher's, in one run of one runtime."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = {"teacher": reference.open(), "package": opened(package, variant, Path(folder))}
        turns, blocks = (p50(sessions, rows, calls, block) for block in (1, BLOCK))
    sizes = {"teacher": reference.path.stat().st_size, "package": package.manifest.files[variant.model].size}
    return {
        "teacher_bytes": sizes["teacher"],
        "package_bytes": sizes["package"],
        "size_ratio": round(sizes["teacher"] / sizes["package"], 2),
        "teacher_us": round(blocks["teacher"], 1),
        "package_us": round(blocks["package"], 1),
        "speed_ratio": round(blocks["teacher"] / blocks["package"], 2),
        "speed_ratio_by_turns": round(turns["teacher"] / turns["package"], 2),
    }


def p50(sessions: Mapping[str, Session], rows: Mapping[str, np.ndarray], calls: int, block: int) -> dict[str, float]:
    """Median µs of single samples; the sessions take turns in blocks, and the first eighth of the calls warms up."""
    singles = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(64)]
    taken: dict[str, list[int]] = {name: [] for name in sessions}
    for start in range(0, calls, block):
        for name, session in sessions.items():
            for i in range(start, start + block):
                single = singles[i % len(singles)]
                began = time.perf_counter_ns()
                session.run(single)
                taken[name].append(time.perf_counter_ns() - began)
    return {name: float(np.median(ns[calls // 8 :])) / 1000 for name, ns in taken.items()}


def opened(package: Package, variant: Variant, folder: Path) -> Session:
    path = folder / f"model.{variant.format}"
    path.write_bytes(package.read(variant.model))
    manifest = package.manifest
    return open_session(path, HOST_RUNTIME[variant.format], inputs=manifest.inputs, outputs=manifest.outputs)


def int8(manifest: Manifest) -> Sequence[Variant]:
    return [variant for variant in manifest.variants if variant.precision in ("int8", "mixed")]


def worst(teacher_accuracy: float, formats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "teacher_accuracy": teacher_accuracy,
        "package_accuracy": min(one["package_accuracy"] for one in formats.values()),
        "bound_drop_points": max(one["bound_drop_points"] for one in formats.values()),
        "size_ratio": min(one["size_ratio"] for one in formats.values()),
        "speed_ratio": min(one["speed_ratio"] for one in formats.values()),
    }


def spent(made: CompileResult, work: Path) -> float:
    """Seconds of every step of the run, found finished or not."""
    steps = {step["name"] for step in json.loads((made.run / "run.json").read_bytes())["steps"]}
    return float(sum(json.loads((work / "steps" / name / "step.json").read_bytes())["seconds"] for name in steps))


def write(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """benchmarks/results/NAME.json, with machine, commit and date; gives what is in it."""
    machine = describe()
    full = {
        **result,
        "machine": {
            "cpu": machine.cpu,
            "cores": machine.cores,
            "python": machine.python,
            "runtimes": dict(machine.runtimes),
            "load": [round(one, 2) for one in os.getloadavg()],
        },
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (RESULTS / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(full), indent=2) + b"\n")
    return full


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def tell(name: str, full: Mapping[str, Any], readme: Path) -> None:
    """In the recipe's README, all behind the mark."""
    mark = f"<!-- measured by benchmarks/{name}.py -->\n"
    above = readme.read_text().partition(mark)[0]
    about = (
        f"Commit {full['commit'][:7]}, {full['date'][:10]}, {full['machine']['cpu']}, {full['machine']['cores']} cores."
    )
    readme.write_text(above + mark + "\n" + about + "\n\n" + "\n".join(f"- {line}" for line in lines(full)) + "\n")


def show(result: Mapping[str, Any], *, as_json: bool) -> None:
    print("\n".join(lines(result)))
    if as_json:
        print(json.dumps(result))


def lines(result: Mapping[str, Any]) -> list[str]:
    found = []
    for name, one in result["formats"].items():
        lost = f"loss at most {one['bound_drop_points']:.2f} points (95 %, n = {one['n']:,})"
        sizes = f"{one['teacher_bytes']:,} → {one['package_bytes']:,} bytes, x{one['size_ratio']:.1f}"
        times = f"{one['teacher_us']:.0f} → {one['package_us']:.1f} µs, x{one['speed_ratio']:.1f}"
        accuracies = f"teacher {100 * result['teacher_accuracy']:.2f} %, package {100 * one['package_accuracy']:.2f} %"
        found.append(f"{name}: {accuracies}, {lost}; {sizes}; {times} (by turns x{one['speed_ratio_by_turns']:.1f})")
    return [*found, f"{result['seconds']:.0f} s for all steps on one core"]


class Told:
    """The stage that is being worked on, on standard error."""

    def __init__(self) -> None:
        self.stream: Any = sys.stderr
        self._stage = ""

    def __call__(self, stage: str, share: float) -> None:
        if stage != self._stage:
            self._stage = stage
            print(stage, file=self.stream, flush=True)
