"""The dossier: everything that is measured about what was chosen, for evidence.json and the model card.

What the card needs is always measured, and depends on the files only. The rest (times beside the reference, memory, the
monitor's cost, robustness, whether a step made twice is equal) costs about half a minute and is left out on request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgewright_devices import DeviceProfile

from ..export.parity import compare
from ..measuring.agreement import agreement
from ..measuring.bounds import Bound
from ..measuring.calibration import ece
from ..measuring.counted import counted
from ..measuring.estimate import predict
from ..measuring.evidence import (
    Calibration,
    Evidence,
    Loss,
    Machine,
    Parity,
    Reference,
    Time,
    VariantEvidence,
)
from ..measuring.metrics import Outputs
from ..measuring.slices import by_slice, with_labels, worst
from ..quantization.apply import quantize
from ..rows import Data, Labelled, take
from .assembly import Chosen, Part
from .build import Built
from .candidates import answers, memory_of, timed
from .choice import Choice
from .files import File, made
from .learn import Learned, answered, original
from .refinement import drawn
from .weaknesses import layer_drops, measured, suspected, under_shifts
from .workbench import Workbench

CALLS: Final = 1000
PARITY_ROWS: Final = 256
BARE: Final = " without monitor"  # behind the name of a variant


def dossier(
    bench: Workbench,
    device: DeviceProfile,
    machine: Machine,
    choice: Choice,
    taken: Chosen,
    bounds: Mapping[str, Bound],
    taught_by: Learned | None,
    truth: Mapping[str, Outputs],
    *,
    warnings: Sequence[str],
    thorough: bool,
) -> Evidence:
    """Evidence without its clock: `made` and `seconds` are the caller's."""
    bench.say("measuring the package", 0.0)
    data, recipe = bench.data, bench.recipe
    times, reference, bare = _times(bench, taken, taught_by, thorough=thorough)
    bench.say("measuring the package", 0.4)
    variants = tuple(
        _variant(bench, part, times, bare, bounds.get(part.variant.id), choice, taken, thorough=thorough)
        for part in taken.parts
    )
    bench.say("measuring the package", 0.7)
    first = next(part for part in taken.parts if part.promised)
    outputs = answers(bench, first.file, "test", data.test.inputs)
    named = with_labels(data.test.slices, data.test.labels, recipe.task, data.labels)
    slices = by_slice(bench.metric, outputs, data.test.labels, named, seed=bench.seed, groups=data.test.groups)
    size = counted(taken.built.net, bench.example)
    left_out: list[str] = []  # figures that the package can do without; ends up in the warnings
    shifts = under_shifts(bench, taken, first, left_out) if thorough else ()
    layers = layer_drops(bench, taken, taught_by, left_out) if thorough else ()
    evidence = Evidence(
        made="",
        seconds=0.0,
        device=device.name,
        machine=machine,
        metric=bench.metric.name,
        reference=_reference(bench, taught_by, truth, reference, times),
        variants=variants,
        macs=size.macs,
        params=size.params,
        max_drop=choice.limits.max_drop,
        choice=choice,
        calibration=_calibration(bench, taken.built, outputs),
        slices=slices,
        worst=worst(bench.metric, slices),
        robustness=shifts,
        estimates={v.id: predict(device, machine, v.time_us, int8="int8" in v.id or "mixed" in v.id) for v in variants},
        deterministic=_same_again(bench, taken, first) if thorough else None,
        sensitivity=layers,
        suspects=suspected(bench, taken) if thorough else (),
        warnings=(*warnings, *left_out),
    )
    bench.say("measuring the package", 1.0)
    return evidence


Files = dict[str, File]


def _times(
    bench: Workbench, taken: Chosen, taught_by: Learned | None, *, thorough: bool
) -> tuple[dict[str, Time], Files, Files]:
    """Everything that is compared in time, in turns (the variants, each without its monitor, the reference in each
    format); the files of the reference, and those of the variants without their monitor."""
    own = {part.variant.id: part.file for part in taken.parts}
    plain: Files = {}
    reference: Files = {}
    if thorough:
        for part in taken.parts:
            source = taken.built.bare_source(part.scheme.format, taken.built.declared.temperature)
            bare = made(bench, source, part.scheme).file
            if bare is not None:
                plain[f"{part.variant.id}{BARE}"] = bare
        reference = _reference_files(bench, taken, taught_by)
    calls = CALLS if thorough else CALLS // 4
    return timed({**own, **plain, **reference}, bench.data.validation, calls), reference, plain


def _reference_files(bench: Workbench, taken: Chosen, taught_by: Learned | None) -> Files:
    teacher = bench.recipe.teacher
    formats = [part.variant.format for part in taken.parts if part.promised]
    if teacher is not None and teacher.file is not None:
        form = teacher.file.suffix[1:]
        file = File(form, teacher.file, bench.recipe.input, bench.declared)
        return {f"reference {form}": file}
    whole = Built(bench, original(bench, taught_by))
    return {f"reference {form}": whole.without_monitor(form) for form in formats}


def _variant(
    bench: Workbench,
    part: Part,
    times: Mapping[str, Time],
    bare: Files,
    bound: Bound | None,
    choice: Choice,
    taken: Chosen,
    *,
    thorough: bool,
) -> VariantEvidence:
    name, data, size = part.variant.id, bench.data, part.file.path.stat().st_size
    plain = f"{name}{BARE}"
    return VariantEvidence(
        id=name,
        scheme=part.scheme.id,
        bytes=size,
        metric={
            rows.name: measured(bench, answers(bench, part.file, role, rows.inputs), rows)
            for role, rows in reported(data).items()
        },
        loss=None if bound is None else _loss(bound, choice.limits.max_drop),
        time_us=times[name],
        monitor_us=round(times[name].p50 - times[plain].p50, 3) if plain in bare else None,
        monitor_bytes=size - bare[plain].path.stat().st_size if plain in bare else None,
        memory=memory_of(part.file, bench) if thorough else None,
        parity=_parity(bench, part, taken),
    )


def reported(data: Data) -> dict[str, Labelled]:
    """Test rows and views by their role, which is what outputs are kept under; names are the recipe's."""
    return {"test": data.test, **{f"view {i}": view for i, view in enumerate(data.views)}}


def _loss(bound: Bound, limit: float | None) -> Loss:
    return Loss(
        estimate=round(bound.estimate, 4),
        bound=round(bound.bound, 4),
        n=bound.n,
        discordant=bound.discordant,
        confidence=bound.confidence,
        method=bound.method,
        needed=None if limit is None else bound.needed(limit),
    )


def _parity(bench: Workbench, part: Part, taken: Chosen) -> Parity:
    """Against torch on validation rows. Raises Refused for a float export that is another model."""
    at = drawn(len(bench.data.validation), PARITY_ROWS, bench.seed, b"parity")
    rows = bench.data.validation.take(at)
    graph = taken.built.assembled.graph
    classes = frozenset({"probabilities"} if bench.recipe.task == "classification" else ())
    found = take(answers(bench, part.file, "validation", bench.data.validation.inputs), at)
    told = compare(part.variant.id, answered(graph, rows), found, part.scheme.precision, classes=classes)
    if part.scheme.method == "none":
        told.required()
    return agreement(told, n=len(rows), reference="torch")


def _reference(
    bench: Workbench,
    taught_by: Learned | None,
    truth: Mapping[str, Outputs],
    files: Files,
    times: Mapping[str, Time],
) -> Reference:
    data, teacher = bench.data, bench.recipe.teacher
    named = {rows.name: measured(bench, truth[role], rows) for role, rows in reported(data).items()}
    size = None
    if teacher is None or teacher.file is None:
        size = counted(original(bench, taught_by).net(), bench.example)
    return Reference(
        name="teacher" if teacher is not None else "student",
        bytes={name.removeprefix("reference "): file.path.stat().st_size for name, file in files.items()},
        metric=named,
        time_us={name.removeprefix("reference "): times[name] for name in files},
        macs=None if size is None else size.macs,
        params=None if size is None else size.params,
    )


def _calibration(bench: Workbench, built: Built, outputs: Outputs) -> Calibration | None:
    """Before: the same probabilities at a temperature of 1."""
    if bench.recipe.task not in ("classification", "multilabel"):
        return None
    heat, labels = built.declared.temperature, bench.data.test.labels
    p = np.clip(np.asarray(outputs["probabilities"], np.float64), 1e-12, 1 - 1e-12)
    if bench.recipe.task == "classification":
        raised = p**heat
        before = raised / raised.sum(axis=1, keepdims=True)
    else:
        before = p**heat / (p**heat + (1 - p) ** heat)
    return Calibration(temperature=heat, ece_before=ece(before, labels), ece_after=ece(p, labels), n=len(labels))


def _same_again(bench: Workbench, taken: Chosen, part: Part) -> bool:
    """Quantized once more, from the same float file, into the same bytes."""
    source = taken.built.source(part.scheme.format).path
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / source.name
        quantize(part.scheme, source, again, bench.calibration)
        return again.read_bytes() == part.file.path.read_bytes()
