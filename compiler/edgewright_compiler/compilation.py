"""From recipe to package: learn, build, choose, judge, write.

Guarantee: on processors of one capability, equal (recipe, settings, seed, data, code, tools, device, choice) give an
equal digest; what a clock measured is kept outside of it, and what it decided is in choice.json. Nothing is left under
`out` unless all of it is there. Finished steps are kept under `work` and found again, whatever ends a run.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.manifest import Format
from edgewright_contracts.package import Package
from edgewright_devices import DeviceProfile

from .data.checks import examine
from .disk import write_whole
from .measuring.bounds import several_groups
from .measuring.evidence import Evidence, VariantEvidence
from .measuring.evidence import encode as encode_evidence
from .measuring.machine import describe
from .naming import nameable
from .packaging import absent
from .pipeline.assembly import chosen, package, promised, scheme_of
from .pipeline.choice import Choice, Limits, Purpose
from .pipeline.dossier import dossier, reported
from .pipeline.judgement import judge
from .pipeline.learn import reference_outputs, teacher
from .pipeline.recorded import limits_of, recalled, write_choice
from .pipeline.runs import Run, RunFolder, ending, identifier
from .pipeline.search import archs, search
from .pipeline.steps import Store
from .pipeline.trial import tried
from .pipeline.workbench import Workbench, files_hash
from .recipe import Recipe
from .training.train import reproducible

NO_LIMITS: Final = Limits()
FORMATS: Final[tuple[Format, ...]] = ("onnx", "tflite")
Say = Callable[[str, float], None]  # what is being done, and the share of it that is done


@dataclass(frozen=True, slots=True)
class CompileResult:
    package: Package
    evidence: Evidence
    run: Path
    seconds: float

    def variant(self, identifier: str) -> VariantEvidence:
        return next(v for v in self.evidence.variants if v.id == identifier)


def compile_recipe(
    recipe: Recipe,
    device: DeviceProfile,
    out: Path,
    *,
    seed: int,
    now: datetime,
    progress: Say,
    work: Path,
    formats: Sequence[Format] = FORMATS,
    limits: Limits = NO_LIMITS,
    minutes: float | None = None,
    recorded: Choice | None = None,
    thorough: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> CompileResult:
    """Make the package directory `out`; `progress` is told each stage and the share of it that is done.

    `minutes` lets the search try the recipe's other architectures, too; `recorded` is a choice of an earlier run, which
    is then made again, within its own limits, instead of chosen anew. Not `thorough` leaves out what is evidence only:
    the reference's and the monitor's cost, memory, robustness.

    Raises RequestError when `out` cannot be made, no package can have this name or version, a limit is not the recorded
    one, the data are wrong, or the trial finds what does not fit, all before anything is trained, or another made `out`
    meanwhile; Refused when a format lacks an operator, no candidate keeps the limits, or the bound on the test set
    misses or, of one group, says nothing; Unavailable when the disk is full; OSError.
    """
    nameable(recipe.name, recipe.version)
    absent(out)
    limits = limits_of(recorded, limits)
    start = clock()
    run = Run(
        id=identifier(now, recipe.name, recipe.version),
        name=recipe.name,
        version=recipe.version,
        device=device.name,
        seed=seed,
        started=now,
        limits=limits,
        pid=os.getpid(),
    )
    folder = RunFolder(work, run)
    saturates = device.arch == "x86_64" and not device.int8_dot
    store = Store(work / "steps", clock, folder.step)
    bench = Workbench(recipe, seed=seed, store=store, say=progress, weight_bits=7 if saturates else 8)
    room = f"--work (steps) or --out (the package). Finished steps are kept in {work}"
    with ending(folder, lambda: clock() - start, room), reproducible(seed):
        made, evidence = _compiled(
            bench, device, out, folder, now, formats, limits, minutes, recorded, thorough=thorough,
            since=lambda: clock() - start,
        )  # fmt: skip
    seconds = clock() - start
    folder.end(state="done", seconds=round(seconds, 2), package=str(out), digest=made.digest)
    return CompileResult(made, evidence, folder.path, seconds)


def _compiled(
    bench: Workbench,
    device: DeviceProfile,
    out: Path,
    folder: RunFolder,
    now: datetime,
    formats: Sequence[Format],
    limits: Limits,
    minutes: float | None,
    recorded: Choice | None,
    *,
    thorough: bool,
    since: Callable[[], float],
) -> tuple[Package, Evidence]:
    warnings = [*examine(bench.data, bench.recipe.task).warnings]
    if limits.max_drop is not None:
        several_groups(bench.data.test)
    purpose = _purpose(bench, device)
    if recorded is not None:
        recorded = recalled(recorded, purpose, archs(bench.recipe, all_of_them=True), formats)
        for form in recorded.chosen:
            scheme_of(recorded.candidate(form).how)  # raises now what would be raised after the training
    wanted = [form for form in formats if recorded is None or form in recorded.chosen]
    tried(bench, device, wanted, thorough=thorough)
    machine = describe()
    taught_by = teacher(bench)
    judged = {"validation": bench.data.validation, **reported(bench.data)}
    truth = {role: reference_outputs(bench, taught_by, role, rows) for role, rows in judged.items()}
    validation = truth["validation"]
    if recorded is not None:
        choice = recorded
    else:
        choice = search(bench, device, machine, formats, limits, minutes, taught_by, validation, folder.measured)
    choice = msgspec.structs.replace(choice, purpose=purpose)
    write_choice(choice, folder.path / "choice.json")
    if choice.poor:
        warnings.append(choice.why)
    taken = chosen(bench, choice, taught_by)
    bounds = judge(bench, choice, truth["test"], promised(bench, taken))
    evidence = dossier(
        bench, device, machine, choice, taken, bounds, taught_by, truth, warnings=warnings, thorough=thorough
    )
    evidence = msgspec.structs.replace(evidence, made=now.isoformat(timespec="seconds"), seconds=round(since(), 2))
    write_whole(folder.path / "evidence.json", encode_evidence(evidence))
    return package(bench, device, out, taken, evidence), evidence


def _purpose(bench: Workbench, device: DeviceProfile) -> Purpose:
    recipe = bench.recipe
    code = hashlib.sha256(f"{files_hash(recipe.sources)} {recipe.settings}".encode()).hexdigest()
    return Purpose(recipe=code, data=recipe.source, device=device.name, seed=bench.seed)
