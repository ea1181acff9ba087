"""From a finished file to a package: quantized where that is smaller than the float form, not slower and answers the
same; tested; signed by nobody yet.

What is known about accuracy depends on what the user brings, and the card says which it was:

    labelled data   the metric of every form, and one bound on the test set for the one that was chosen
    rows            how far a smaller form answers differently; calibrated int8 is possible
    nothing         synthetic rows show that the file runs: no static int8, no accuracy, no useful drift reference

Guarantee: equal (file, rows, seed, recorded choice, tools) give an equal digest; times are outside of it. Steps take
seconds and are not kept; the run is, under `work`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgewright_contracts.baseline import encode_baseline
from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.manifest import Budgets, FileRef, Manifest, Provenance, Task, Variant
from edgewright_contracts.package import Package
from edgewright_devices import DeviceProfile
from edgewright_runtime.runtime import Session
from edgewright_runtime.selftest import run_selftest

from ..data.collection import fingerprint
from ..disk import write_whole
from ..graph.features import Columns
from ..graph.reference import count, cut, run
from ..measuring.evidence import Evidence, encode
from ..naming import nameable
from ..packaging import absent, npz, write_package
from ..pipeline.choice import Arch, Choice, Limits, Purpose
from ..pipeline.recorded import limits_of, recalled, write_choice
from ..pipeline.runs import Run, RunFolder, ending, identifier
from ..pipeline.workbench import QUANTIZERS, code_hash, versions
from ..quantization.schemes import Scheme
from ..rows import Rows, take
from ..rows import count as count_rows
from .borders import Shapes
from .card import write_card
from .evidence import Part, evidence_of
from .forms import Form, form_of
from .judge import Judge, Judged
from .judging import judged
from .roles import declared_inputs, features
from .samples import Samples, given, synthetic

REQUIRES_AGENT: Final = "0.1"
SELFTEST_ROWS: Final = 32
_SELFTEST_BYTES: Final = 4 << 20
_OUTPUT_BYTES: Final = 256 << 20  # of what is held of one variant's answers
_CODE: Final = ("foreign", "quantization", "graph", "packaging.py", "data")


@dataclass(frozen=True, slots=True)
class ForeignResult:
    package: Package
    evidence: Evidence
    notes: tuple[str, ...]
    run: Path


def compile_foreign(
    model: Path,
    device: DeviceProfile,
    out: Path,
    *,
    name: str,
    version: str = "1.0.0",
    task: Task,
    seed: int,
    now: datetime,
    progress: Callable[[str, float], None],
    work: Path,
    data: str | None = None,
    metric: str | None = None,
    shapes: Shapes | None = None,
    fixed: Mapping[str, float] | None = None,
    limits: Limits | None = None,
    recorded: Choice | None = None,
) -> ForeignResult:
    """Make the package directory `out` of `model` (.onnx, .tflite or .pt2).

    `shapes` are sizes of one sample for inputs that leave them open, `fixed` makes inputs constants, `recorded` is a
    choice of an earlier run, which is then made again, within its own limits, instead of chosen anew.

    Raises RequestError for a wrong file, wrong rows, a name that no package can have or a recorded choice of something
    else; Refused when a limit cannot be kept, the device has no runtime for the file, or a self-test fails here;
    Unavailable when the disk is full.
    """
    nameable(name, version)
    absent(out)
    limits = limits_of(recorded, limits or Limits())
    start = time.perf_counter()
    run_ = Run(
        id=identifier(now, name, version),
        name=name,
        version=version,
        device=device.name,
        seed=seed,
        started=now,
        limits=limits,
        pid=os.getpid(),
    )
    folder = RunFolder(work, run_)
    room = "TMPDIR (its forms), --work (the run) or --out (the package)"
    with (
        ending(folder, lambda: time.perf_counter() - start, room),
        tempfile.TemporaryDirectory(prefix="edgewright-") as scratch_,
    ):
        scratch = Path(scratch_)
        progress("reading the model", 0.0)
        form = form_of(model, device, scratch, shapes=shapes or {}, fixed=fixed or {}, seed=seed)
        progress("reading the model", 1.0)
        samples = _bounded(_samples(data, form, task, seed), form)
        if metric is not None and samples.test is None:
            raise RequestError(f"--metric {metric} needs labelled data: give --data, or leave the metric out")
        judge = Judge(form, samples, task, metric, seed, device, scratch)
        purpose = _purpose(model, judge, shapes or {}, fixed or {})
        if recorded is not None:
            recorded = recalled(recorded, purpose, (Arch(),), (form.format,))
        decision, tried = judged(judge, limits, recorded, progress, folder.measured)
        decision = msgspec.structs.replace(decision, purpose=purpose)
        write_choice(decision, folder.path / "choice.json")
        promised = tried[decision.chosen[form.format]]
        parts, columns = _parts(judge, promised)
        progress("measuring the package", 0.0)
        inputs, outputs = declared_inputs(form.inputs), judge.outputs(columns)
        sessions = {p.variant.id: judge.packaged(p.plain) for p in parts}
        answers = {one: run(session, samples.reference, alone=True) for one, session in sessions.items()}
        times = judge.times({p.variant.id: p.plain for p in parts}, samples.reference)
        progress("measuring the package", 1.0)
        loss = judge.loss(promised, limits)

        provenance = Provenance(
            recipe=f"foreign {model.name}",
            data=samples.fingerprint,
            code=hashlib.sha256(
                (code_hash(_CODE) + hashlib.sha256(model.read_bytes()).hexdigest()).encode()
            ).hexdigest(),
            seed=seed,
            tools={**versions(QUANTIZERS), "python": platform.python_version()},
        )
        facts: dict[str, Any] = {
            "requires_agent": REQUIRES_AGENT,
            "name": name,
            "version": version,
            "task": task,
            "inputs": inputs,
            "outputs": outputs,
            "labels": samples.labels,
            "variants": tuple(p.variant for p in parts),
            "ranking": _ranking(device, form, parts),
            "budgets": Budgets(p95_ms=limits.max_p95_ms, rss_mb=limits.max_rss_mb),
            "provenance": provenance,
        }
        files = _files(parts, samples.reference, answers, features(outputs, columns))
        _check(facts, files, sessions)
        notes = (*form.notes, *samples.notes, *_told(form, samples, columns), decision.why)
        evidence = evidence_of(judge, decision, parts, tried, times, loss)
        evidence = msgspec.structs.replace(
            evidence,
            made=now.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - start, 2),
            device=device.name,
            max_drop=limits.max_drop,
            warnings=() if samples.real else ("accuracy was not measured: no data were given",),
        )
        write_whole(folder.path / "evidence.json", encode(evidence))
        card = write_card(
            name, version, task, samples.labels, notes, evidence, provenance, count_rows(samples.reference)
        )
        package = write_package(out, facts, {**files, "card.md": card.encode()}, encode(evidence))
    seconds = round(time.perf_counter() - start, 2)
    folder.end(state="done", seconds=seconds, package=str(out), digest=package.digest)
    return ForeignResult(package, evidence, notes, folder.path)


def _purpose(model: Path, judge: Judge, shapes: Shapes, fixed: Mapping[str, float]) -> Purpose:
    """The file as it came, with all that was asked of it but limits and names; of synthetic rows the seed says all."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    asked = (digest, judge.task, judge.metric_name, sorted(shapes.items()), sorted(fixed.items()))
    recipe = hashlib.sha256(msgspec.json.encode(asked)).hexdigest()
    data = judge.samples.fingerprint if judge.samples.real else "none"
    return Purpose(recipe=recipe, data=data, device=judge.device.name, seed=judge.seed)


def _samples(data: str | None, form: Form, task: Task, seed: int) -> Samples:
    if data is not None:
        return given(data, form.inputs, task)
    rows = synthetic(form.inputs, seed)
    note = "No data were given: rows are synthetic, accuracy was not measured, and drift is not told from them."
    return Samples({}, rows, rows, None, None, False, (), fingerprint(rows), (note,))


def _bounded(samples: Samples, form: Form) -> Samples:
    """With as few rows as keeps the answers of a variant in memory."""
    per_row = 8 * sum(int(np.prod(b.shape)) for b in (*form.inputs, *form.outputs))
    rows = max(2, _OUTPUT_BYTES // max(1, per_row))
    few = slice(0, rows)
    return replace(samples, judging=take(samples.judging, few), reference=take(samples.reference, few))


def _parts(judge: Judge, promised: Judged) -> tuple[tuple[Part, ...], Columns]:
    """The chosen form first, then the float one, both with the monitor where the format takes one."""
    assert promised.path is not None
    form = judge.form
    schemes = [(promised.scheme, promised.path)]
    if promised.scheme.precision != "fp32" and not form.quantized:
        schemes.append((Scheme(format=form.format, precision="fp32", method="none"), form.path))
    parts: list[Part] = []
    columns: Columns = ()
    for scheme, path in schemes:
        fmt = form.format
        # One at a time: whether rows of somebody else's file answer alike beside one another is not known.
        variant = Variant(id=f"{fmt}-{scheme.precision}", format=fmt, precision=scheme.precision, batch=1)
        final, columns = judge.shipped(path)
        parts.append(Part(variant, scheme.id, final, path))
    return tuple(parts), columns


def _files(parts: tuple[Part, ...], rows: Rows, answers: Mapping[str, Any], counted: Any) -> dict[str, bytes]:
    """Every file but the card. The self-test of a large model has fewer rows: it is downloaded with every package."""
    plain = parts[-1].variant.id
    channels = cut(counted, answers[plain])
    one_row = sum(a[:1].nbytes for a in rows.values()) + 2 * sum(a[:1].nbytes for a in answers[plain].values())
    n = int(np.clip(_SELFTEST_BYTES // max(1, one_row), 2, SELFTEST_ROWS))
    inputs = {f"input:{name}": array[:n] for name, array in rows.items()}
    fp32 = {f"fp32:{name}": array[:n] for name, array in answers[plain].items()}
    files = {}
    for part in parts:
        own = {f"output:{name}": array[:n] for name, array in answers[part.variant.id].items()}
        files[part.variant.model] = part.path.read_bytes()
        files[part.variant.baseline] = encode_baseline(count(channels, answers[part.variant.id]))
        files[part.variant.selftest] = npz({**inputs, **own, **fp32})
    return files


def _check(facts: Mapping[str, Any], files: Mapping[str, bytes], sessions: Mapping[str, Session]) -> None:
    """Run every self-test here. Raises Refused: what fails on the build host fails everywhere."""
    manifest = Manifest(**facts, files={name: FileRef("0" * 64, 0) for name in files})
    for variant in manifest.variants:
        result = run_selftest(sessions[variant.id], files[variant.selftest], manifest, variant)
        if not result.passed:
            raise Refused(
                f"{variant.id} fails its own self-test on the build host: {result.reason}; a file whose answers depend "
                "on earlier ones cannot be packaged: give its state as an input"
            )


def _ranking(device: DeviceProfile, form: Form, parts: tuple[Part, ...]) -> dict[str, tuple[str, ...]]:
    """The chosen one first; tflite-runtime's int8 is slow on x86."""
    ids = tuple(p.variant.id for p in parts)
    ranking = {f"*/{r}": ids for r in device.runtimes if (r == "onnxruntime") == (form.format == "onnx")}
    if "*/tflite-runtime" in ranking:
        ranking["x86_64/tflite-runtime"] = tuple(reversed(ids))
    return ranking


def _told(form: Form, samples: Samples, columns: Columns) -> tuple[str, ...]:
    lines = []
    if form.quantized:
        lines.append("The file came quantized and is packaged as it is.")
    if not columns:
        lines.append("No monitor output: channels are counted on declared outputs only.")
    if not samples.real:
        lines.append("The drift reference was counted on synthetic rows: compile again with --data before trusting it.")
    return tuple(lines)
