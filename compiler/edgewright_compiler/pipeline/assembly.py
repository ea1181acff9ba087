"""Assembling the package of what was chosen: for each format the chosen file, and its float form to fall back on.

Edges of channels are cut once, from the first float file, so that one `edge_hash` covers the package; what is counted
in them are each variant's own outputs on rows that no weight was trained on.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import UnsetType

from edgewright_contracts.baseline import encode_baseline
from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.manifest import Budgets, FileRef, Format, Manifest, Provenance, SessionOptions, Variant
from edgewright_contracts.package import Package
from edgewright_devices import DeviceProfile
from edgewright_runtime.golden import GOLDEN_FILE
from edgewright_runtime.selftest import run_selftest

from ..card import write_card
from ..graph.reference import count, cut
from ..measuring.evidence import Evidence, encode
from ..measuring.metrics import Outputs
from ..own.host import HostRecipe
from ..packaging import npz, write_package
from ..quantization.schemes import Scheme
from ..rows import Rows
from .build import Built, float_of
from .candidates import answers
from .choice import Choice
from .files import File, made
from .learn import Learned, student
from .workbench import EVERYTHING, TOOLS, Workbench, code_hash, files_hash, versions

REQUIRES_AGENT: Final = "0.1"
SELFTEST_ROWS: Final = 32
FLOAT: Final = "fp32"


@dataclass(frozen=True, slots=True)
class Part:
    """One variant of the package. The one that was chosen for its format carries the promise about the loss."""

    variant: Variant
    scheme: Scheme
    file: File
    promised: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    choice: Choice
    built: Built
    parts: tuple[Part, ...]

    def part(self, form: str) -> Part:
        """The chosen one of a format."""
        return next(p for p in self.parts if p.promised and p.variant.format == form)


def chosen(bench: Workbench, choice: Choice, taught_by: Learned | None) -> Chosen:
    """The files of a choice, found or made anew. Raises Refused when one cannot be made here."""
    built = Built(bench, student(bench, choice.arch, taught_by, choice.sizes))
    parts = []
    for form in sorted(choice.chosen):
        scheme = scheme_of(choice.candidate(form).how)
        done = made(bench, built.source(scheme.format), scheme)
        if done.file is None:
            raise Refused(f"{scheme.id}, which choice.json asks for, cannot be made here: {done.refused}")
        if scheme.precision != FLOAT:
            plain = float_of(scheme.format)
            parts.append(Part(_variant(plain, bench.recipe.session), plain, built.file(scheme.format), promised=False))
        parts.append(Part(_variant(scheme, bench.recipe.session), scheme, done.file, promised=True))
    return Chosen(choice, built, tuple(parts))


def promised(bench: Workbench, taken: Chosen) -> dict[str, Outputs]:
    """What the chosen variants answer on test rows."""
    rows = bench.data.test
    return {p.variant.id: answers(bench, p.file, "test", rows.inputs) for p in taken.parts if p.promised}


def package(bench: Workbench, device: DeviceProfile, out: Path, taken: Chosen, evidence: Evidence) -> Package:
    """Write the package directory. Raises Refused when a variant fails its own self-test here."""
    recipe, data = bench.recipe, bench.data
    rows = reference_rows(bench)
    outputs = {p.variant.id: answers(bench, p.file, "reference", rows) for p in taken.parts}
    files = _files(taken, rows, outputs)
    provenance = Provenance(
        recipe=f"{recipe.name} ({recipe.settings})"[:1024],
        data=data.fingerprint,
        code=hashlib.sha256((code_hash(EVERYTHING) + files_hash(recipe.sources)).encode()).hexdigest(),
        seed=bench.seed,
        tools={**versions(TOOLS), "python": platform.python_version()},
    )
    limits = taken.choice.limits
    facts: dict[str, Any] = {
        "requires_agent": REQUIRES_AGENT,
        "name": recipe.name,
        "version": recipe.version,
        "task": recipe.task,
        "inputs": (recipe.input,),
        "outputs": taken.built.declared.outputs,
        "labels": data.labels,
        "variants": tuple(p.variant for p in taken.parts),
        "ranking": _ranking(device, taken),
        "budgets": Budgets(p95_ms=limits.max_p95_ms, rss_mb=limits.max_rss_mb),
        "provenance": provenance,
    }
    card = write_card(recipe, data, evidence, provenance, reference_rows=len(next(iter(rows.values()))))
    if isinstance(recipe, HostRecipe):
        facts["preprocess"] = "host"
        files[GOLDEN_FILE] = recipe.golden
    _check(facts, files, taken)
    return write_package(out, facts, {**files, "card.md": card.encode()}, encode(evidence))


def reference_rows(bench: Workbench) -> Rows:
    """Rows that no weight was trained on: the recipe's, or else validation and test rows together."""
    data = bench.data
    if data.reference is not None:
        return data.reference
    return {name: np.concatenate([rows, data.test.inputs[name]]) for name, rows in data.validation.inputs.items()}


def _variant(scheme: Scheme, session: SessionOptions | UnsetType) -> Variant:
    form: Format = scheme.format
    batch = 1 if form == "tflite" or scheme.method == "dynamic" else 0
    return Variant(
        id=f"{form}-{scheme.precision}", format=form, precision=scheme.precision, batch=batch, session=session
    )


def _files(taken: Chosen, rows: Rows, outputs: Mapping[str, Outputs]) -> dict[str, bytes]:
    """Every file but the card: model, baseline and self-test of each variant."""
    first = next(p for p in taken.parts if p.scheme.precision == FLOAT)
    channels = cut(taken.built.declared.features, dict(outputs[first.variant.id]))
    inputs = {f"input:{name}": array[:SELFTEST_ROWS] for name, array in rows.items()}
    files = {}
    for part in taken.parts:
        variant = part.variant
        plain = next(p for p in taken.parts if p.scheme.precision == FLOAT and p.variant.format == variant.format)
        fp32 = {f"fp32:{name}": a[:SELFTEST_ROWS] for name, a in outputs[plain.variant.id].items()}
        own = {f"output:{name}": a[:SELFTEST_ROWS] for name, a in outputs[variant.id].items()}
        files[variant.model] = part.file.path.read_bytes()
        files[variant.baseline] = encode_baseline(count(channels, dict(outputs[variant.id])))
        files[variant.selftest] = npz({**inputs, **own, **fp32})
    return files


def _check(facts: Mapping[str, Any], files: Mapping[str, bytes], taken: Chosen) -> None:
    """Run every self-test here. Raises Refused: what fails on the build host fails everywhere."""
    manifest = Manifest(**facts, files={name: FileRef("0" * 64, 0) for name in files})
    for part in taken.parts:
        result = run_selftest(part.file.open(), files[part.variant.selftest], manifest, part.variant)
        if not result.passed:
            raise Refused(f"{part.variant.id} fails its own self-test on the build host: {result.reason}")


def _ranking(device: DeviceProfile, taken: Chosen) -> dict[str, tuple[str, ...]]:
    """The chosen one first, then its float form; tflite-runtime's int8 is slow on x86."""
    ranking: dict[str, tuple[str, ...]] = {}
    for runtime in device.runtimes:
        form = "onnx" if runtime == "onnxruntime" else "tflite"
        parts = [p for p in taken.parts if p.variant.format == form]
        if not parts:
            continue
        ids = tuple(p.variant.id for p in sorted(parts, key=lambda p: not p.promised))
        ranking[f"*/{runtime}"] = ids
        if runtime == "tflite-runtime":
            ranking[f"x86_64/{runtime}"] = tuple(sorted(ids, key=lambda i: not i.endswith(FLOAT)))
    return ranking


def scheme_of(how: Mapping[str, Any]) -> Scheme:
    """From a recorded choice; JSON has no tuples. Raises RequestError for fields that are no scheme's."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in how.items()}
    try:
        return Scheme(**fields)
    except TypeError as error:
        raise RequestError(f"the choice holds a scheme that this version does not know: {error}") from None
