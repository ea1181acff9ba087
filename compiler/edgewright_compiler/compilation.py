"""From recipe to package: train, export to both formats, quantize, count the reference, self-test, measure, write.

Guarantee: equal (recipe, settings, seed, data, code, tools, device) give an equal digest; what a clock measured is kept
outside of it. Nothing is left under `out` unless all of it is there. About 20 s on one x86 core, half of it exporters.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch

from edgewright_contracts.baseline import encode_baseline
from edgewright_contracts.codec import Name, Version
from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.manifest import FileRef, Manifest, Provenance, Variant
from edgewright_contracts.package import Package
from edgewright_devices import DeviceProfile
from edgewright_runtime.runtime import Session, open_session
from edgewright_runtime.selftest import run_selftest

from .card import write_card
from .export_onnx import export_onnx
from .export_tflite import export_tflite
from .measure import Accuracy, Latency, accuracy, latency
from .old_recipe import Bench, LabelledRows, Recipe, Trained
from .packaging import absent, npz, write_package
from .quantize import quantize_onnx, quantize_tflite
from .reference import Outputs, count, cut, run
from .train import Progress, reproducible

REQUIRES_AGENT: Final = "0.1"
SELFTEST_ROWS: Final = 32
MAX_DROP: Final = 0.01  # int8 is preferred unless it costs more accuracy than this
SCOPE: Final = "net"  # the module of the graph that may be quantized

VARIANTS: Final = (
    Variant(id="onnx-fp32", format="onnx", precision="fp32"),
    Variant(id="onnx-int8", format="onnx", precision="int8"),
    Variant(id="tflite-fp32", format="tflite", precision="fp32", batch=1),
    Variant(id="tflite-int8", format="tflite", precision="int8", batch=1),
)
HOST_RUNTIME: Final = {"onnx": "onnxruntime", "tflite": "litert"}
TOOLS: Final = (
    "torch", "torch-pruning", "onnx", "onnxscript", "onnxslim", "onnxruntime", "litert-torch", "litert-converter",
    "ai-edge-quantizer", "ai-edge-litert", "numpy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class VariantResult:
    id: str
    accuracies: Mapping[str, Accuracy]  # by test
    bytes: int
    latency: Latency


@dataclass(frozen=True, slots=True)
class CompileResult:
    package: Package
    variants: tuple[VariantResult, ...]
    seconds: float

    def variant(self, identifier: str) -> VariantResult:
        return next(v for v in self.variants if v.id == identifier)


def compile_recipe(
    recipe: Recipe,
    device: DeviceProfile,
    out: Path,
    *,
    seed: int,
    now: datetime,
    progress: Progress,
    cache: Path | None = None,
) -> CompileResult:
    """Make the package directory `out`; `progress` is told each stage and the share of it that is done.

    Raises RequestError when `out` exists or no package can have this name or version, Refused when a variant fails its
    own self-test here, OSError.
    """
    _nameable(recipe)
    absent(out)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="edgewright-") as scratch, reproducible(seed):
        trained = recipe.train(Bench(seed, cache, progress))
        paths = _export(trained, device, Path(scratch), progress)
        sessions = {v.id: _open(v, paths[v.id], trained) for v in VARIANTS}
        progress("measuring", 0.0)
        outputs = {name: run(session, trained.reference) for name, session in sessions.items()}
        progress("measuring", 0.4)
        accuracies = {name: _accuracies(session, trained) for name, session in sessions.items()}
        chosen = {name: _accuracy(session, trained.choice, trained).share for name, session in sessions.items()}
        progress("measuring", 0.8)
        latencies = latency(sessions, trained.reference)
        progress("measuring", 1.0)
        models = {v.id: paths[v.id].read_bytes() for v in VARIANTS}

    sizes = {name: len(data) for name, data in models.items()}
    provenance = _provenance(recipe, seed)
    files = _files(trained, models, outputs)
    card = write_card(
        name=recipe.name,
        version=recipe.version,
        task=recipe.task,
        labels=trained.labels,
        notes=trained.notes,
        accuracies=accuracies,
        sizes=sizes,
        provenance=provenance,
        reference_rows=len(next(iter(trained.reference.values()))),
    )
    facts = {
        "requires_agent": REQUIRES_AGENT,
        "name": recipe.name,
        "version": recipe.version,
        "task": recipe.task,
        "inputs": trained.inputs,
        "outputs": trained.outputs,
        "labels": trained.labels,
        "variants": VARIANTS,
        "ranking": _ranking(device, chosen),
        "provenance": provenance,
    }
    _check(facts, files, sessions)
    results = tuple(VariantResult(v.id, accuracies[v.id], sizes[v.id], latencies[v.id]) for v in VARIANTS)
    seconds = time.perf_counter() - start
    package = write_package(out, facts, {**files, "card.md": card.encode()}, _evidence(results, device, seconds, now))
    return CompileResult(package, results, seconds)


def _nameable(recipe: Recipe) -> None:
    """Asked before the work, not after it."""
    for what, kind, value in (("name", Name, recipe.name), ("version", Version, recipe.version)):
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise RequestError(f"a package cannot have the {what} {value!r}: {error}") from None


def _export(trained: Trained, device: DeviceProfile, scratch: Path, progress: Progress) -> dict[str, Path]:
    paths = {v.id: scratch / f"{v.id}.{v.format}" for v in VARIANTS}
    (tensor,) = trained.inputs
    example = torch.zeros(1, *tensor.shape, dtype=getattr(torch, tensor.dtype))
    progress("exporting ONNX", 0.0)
    names = [t.name for t in trained.outputs]
    export_onnx(trained.graph, example, paths["onnx-fp32"], inputs=[tensor.name], outputs=names)
    progress("exporting ONNX", 1.0)
    progress("exporting TFLite", 0.0)
    export_tflite(trained.graph, example, paths["tflite-fp32"])
    progress("exporting TFLite", 1.0)
    progress("quantizing", 0.0)
    saturates = device.arch == "x86_64" and not device.int8_dot
    quantize_onnx(paths["onnx-fp32"], paths["onnx-int8"], trained.calibration, scope=SCOPE, reduce_range=saturates)
    progress("quantizing", 0.5)
    quantize_tflite(paths["tflite-fp32"], paths["tflite-int8"], trained.calibration, scope=SCOPE)
    progress("quantizing", 1.0)
    return paths


def _open(variant: Variant, path: Path, trained: Trained) -> Session:
    return open_session(path, HOST_RUNTIME[variant.format], inputs=trained.inputs, outputs=trained.outputs)


def _probabilities(trained: Trained) -> str:
    return next(t.name for t in trained.outputs if t.role == "probabilities")


def _accuracies(session: Session, trained: Trained) -> dict[str, Accuracy]:
    return {test.name: _accuracy(session, test, trained) for test in trained.tests}


def _accuracy(session: Session, rows: LabelledRows, trained: Trained) -> Accuracy:
    return accuracy(session, rows, _probabilities(trained), len(trained.labels))


def _files(trained: Trained, models: Mapping[str, bytes], outputs: Mapping[str, Outputs]) -> dict[str, bytes]:
    """Every file but the card: model, baseline and self-test of each variant."""
    channels = cut(trained.features, outputs["onnx-fp32"])
    inputs = {f"input:{name}": rows[:SELFTEST_ROWS] for name, rows in trained.reference.items()}
    fp32 = {f"fp32:{name}": rows[:SELFTEST_ROWS] for name, rows in outputs["onnx-fp32"].items()}
    files = {}
    for variant in VARIANTS:
        own = {f"output:{name}": rows[:SELFTEST_ROWS] for name, rows in outputs[variant.id].items()}
        files[variant.model] = models[variant.id]
        files[variant.baseline] = encode_baseline(count(channels, outputs[variant.id]))
        files[variant.selftest] = npz({**inputs, **own, **fp32})
    return files


def _check(facts: Mapping[str, object], files: Mapping[str, bytes], sessions: Mapping[str, Session]) -> None:
    """Run every self-test here. Raises Refused: what fails on the build host fails everywhere."""
    manifest = Manifest(**facts, files={name: FileRef("0" * 64, 0) for name in files})  # type: ignore[arg-type]
    for variant in VARIANTS:
        result = run_selftest(sessions[variant.id], files[variant.selftest], manifest, variant)
        if not result.passed:
            raise Refused(f"{variant.id} fails its own self-test on the build host: {result.reason}")


def _ranking(device: DeviceProfile, chosen: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """int8 first, being smaller, unless it costs too much accuracy; tflite-runtime's int8 is slow on x86."""
    ranking: dict[str, tuple[str, ...]] = {}
    for runtime in device.runtimes:
        form = "onnx" if runtime == "onnxruntime" else "tflite"
        fp32, int8 = f"{form}-fp32", f"{form}-int8"
        drop = chosen[fp32] - chosen[int8]
        ranking[f"*/{runtime}"] = (int8, fp32) if drop <= MAX_DROP else (fp32, int8)
        if runtime == "tflite-runtime":
            ranking[f"x86_64/{runtime}"] = (fp32, int8)
    return ranking


def _provenance(recipe: Recipe, seed: int) -> Provenance:
    digest = hashlib.sha256()
    for path in sorted({*Path(__file__).parent.glob("*.py"), *recipe.sources}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    tools = {name: importlib.metadata.version(name) for name in TOOLS}
    return Provenance(
        recipe=f"{recipe.name} ({recipe.settings})",
        data=recipe.data,
        code=digest.hexdigest(),
        seed=seed,
        tools={**tools, "python": platform.python_version()},
    )


def _evidence(results: tuple[VariantResult, ...], device: DeviceProfile, seconds: float, now: datetime) -> bytes:
    """What holds for this machine and this run only."""
    return msgspec.json.encode(
        {
            "made": now.isoformat(timespec="seconds"),
            "machine": {"arch": platform.machine(), "system": platform.system(), "cpu": _cpu()},
            "device": device.name,
            "seconds": round(seconds, 2),
            "latency_us": {
                r.id: {"p50": round(r.latency.p50_us, 2), "p95": round(r.latency.p95_us, 2), "calls": r.latency.calls}
                for r in results
            },
            "runtimes": {name: importlib.metadata.version(name) for name in ("onnxruntime", "ai-edge-litert")},
            "numpy": np.__version__,
        },
        order="deterministic",
    )


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
