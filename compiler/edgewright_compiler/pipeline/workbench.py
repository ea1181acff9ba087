"""What every step of one compilation is given: the recipe, its data, a seed, the store, and somebody to tell.

Data are read when a step needs them, once. Fingerprints say what a result depends on: the code that computes it (of
the compiler and of the runtimes), the recipe's own files, the data, the tools, the processor where last bits depend on
it; a change of any makes the step anew. Code that only keeps, names, reads or chooses is in none of them: data are
known by their content (tests/compiler/test_pipeline_keys.py follows the imports of every step).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, TypeVar
from zlib import crc32

import numpy as np
import torch
from torch import nn

import edgewright_runtime
from edgewright_contracts.manifest import TensorOut

from ..measuring.metrics import Metric, metric
from ..recipe import Recipe
from ..rows import Array, Data
from ..training.train import bfloat16_here
from .steps import Store

T = TypeVar("T")

_HERE: Final = Path(__file__).parent.parent
_RUNTIME: Final = Path(edgewright_runtime.__file__).parent
RUNTIME: Final = "runtime"  # the package edgewright_runtime, among modules and packages of the compiler
COMMON: Final = ("rows.py", "recipe.py", "pipeline/workbench.py")  # in the facts of every step
METRICS: Final = ("measuring/metrics.py", "measuring/detections.py")
LEARNING: Final = (
    "training", "graph", "own", "measuring/counted.py", *METRICS, "pipeline/learn.py", "pipeline/teaching.py", RUNTIME,
)  # fmt: skip
CLOCKED: Final = ("pipeline/clocked.py", "export", "measuring/latency.py")  # beside LEARNING, where a clock prunes
FOR_INT8: Final = ("quantization/qat.py",)  # beside LEARNING
TRUTH: Final = ("graph", "pipeline/learn.py", RUNTIME)
BUILDING: Final = ("graph", "export", "pipeline/build.py")
HEATED: Final = (*BUILDING, "measuring/calibration.py", "training")  # with a temperature for its answers
TRYING: Final = (*BUILDING, "pipeline/trial.py")
QUANTIZING: Final = ("quantization", "export/onnx_rewrites.py", "pipeline/files.py")
REFINING: Final = (*QUANTIZING, *METRICS, "graph/reference.py", "graph/features.py", "pipeline/refinement.py", RUNTIME)
ANSWERING: Final = ("graph/reference.py", "graph/features.py", "pipeline/files.py", RUNTIME)
TIMING: Final = ("measuring/latency.py", "pipeline/files.py", RUNTIME)
EVERYTHING: Final = (
    "rows.py", "recipe.py", "packaging.py", "card.py", "compilation.py", "training", "graph", "export", "quantization",
    "measuring", "pipeline", "own", "data",
)  # fmt: skip

LEARNERS: Final = ("torch", "torch-pruning", "numpy")
EXPORTERS: Final = ("torch", "onnx", "onnxscript", "onnxslim", "litert-torch", "litert-converter", "numpy")
QUANTIZERS: Final = ("onnx", "onnxruntime", "ai-edge-quantizer", "ai-edge-litert", "numpy")
RUNTIMES: Final = ("onnxruntime", "ai-edge-litert", "numpy")
CLOCKS: Final = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "numpy")
TOOLS: Final = tuple(sorted({*LEARNERS, *EXPORTERS, *QUANTIZERS}))


class Workbench:
    def __init__(
        self, recipe: Recipe, *, seed: int, store: Store, say: Callable[[str, float], None], weight_bits: int = 8
    ) -> None:
        """`weight_bits` are those that int8 weights will have on the device."""
        self.recipe = recipe
        self.weight_bits = weight_bits
        self.seed = seed
        self.store = store
        self.say = say
        self._last: tuple[str, Any] = ("", None)

    def once(self, what: str, make: Callable[[], T]) -> T:
        """As `make` gives it, or as the last call did with an equal `what`: several parts of a compilation ask for the
        graph of one net, one after another, and it costs a pass over thousands of rows."""
        if self._last[0] != what:
            self._last = (what, make())
        found: T = self._last[1]
        return found

    @cached_property
    def data(self) -> Data:
        self.say("reading the data", 0.0)
        data = self.recipe.data()
        self.say("reading the data", 1.0)
        return data

    @cached_property
    def front(self) -> nn.Module:
        return self.recipe.front(self.data).eval()

    @cached_property
    def example(self) -> torch.Tensor:
        """What a net reads of one training row."""
        with torch.no_grad():
            example: torch.Tensor = self.front(torch.from_numpy(self.data.train.inputs[self.recipe.input.name][:1]))
        return example

    @cached_property
    def metric(self) -> Metric:
        return metric(self.recipe.metric, self.recipe.task)

    @property
    def declared(self) -> tuple[TensorOut, ...]:
        """What a teacher that is a file gives."""
        teacher = self.recipe.teacher
        if self.recipe.task in ("classification", "multilabel"):
            size = len(self.data.labels)
            if teacher is not None and teacher.logits:
                return (TensorOut(name="logits", role="values", shape=(size,)),)
            return (TensorOut(name="probabilities", role="probabilities", shape=(size,)),)
        width = self.data.train.labels.shape[-1]
        return (TensorOut(name="values", role="values", shape=(width,)),)

    @cached_property
    def calibration(self) -> dict[str, Array]:
        """Training rows that set the ranges of int8, as a device would show them."""
        rows = self.data.train.inputs[self.recipe.input.name]
        rng = np.random.default_rng(self.seed_for("calibration"))
        drawn = np.sort(rng.choice(len(rows), min(self.recipe.calibration, len(rows)), replace=False))
        seen = rows[drawn] if self.recipe.augment is None else self.recipe.augment(rng, rows[drawn])
        return {self.recipe.input.name: seen}

    @cached_property
    def _metric(self) -> str:
        """Its name, and the content of its file when it is one's own."""
        file, colon, _ = self.recipe.metric.rpartition(":")
        return self.recipe.metric + (files_hash((Path(file),)) if colon and Path(file).is_file() else "")

    @cached_property
    def _mixed(self) -> bool:
        """Whether anything is trained in mixed precision, whose numbers depend on the processor."""
        teacher, prune = self.recipe.teacher, self.recipe.prune
        taught, tuned = None if teacher is None else teacher.schedule, None if prune is None else prune.tune
        return any(one is not None and one.mixed for one in (self.recipe.schedule, taught, tuned))

    def progress(self, stage: str) -> Callable[[float], None]:
        return lambda share: self.say(stage, share)

    def seed_for(self, purpose: str) -> int:
        """A seed of its own for every purpose, so that a step found finished leaves the next one unchanged."""
        return (self.seed * 1_000_003 + crc32(purpose.encode())) % 2**31

    def facts(self, code: tuple[str, ...], tools: tuple[str, ...], **own: Any) -> dict[str, Any]:
        """What every step depends on, and its own."""
        return {
            "task": self.recipe.task,
            "data": self.recipe.source,
            "metric": self._metric,
            "calibration": self.recipe.calibration,
            "platform": platform_of(mixed=self._mixed),
            "recipe": files_hash(self.recipe.sources),
            "code": code_hash((*COMMON, *code)),
            "tools": versions(tools),
            "seed": self.seed,
            **own,
        }


def shape_of(net: nn.Module) -> str:
    """A fingerprint of an untrained net: its modules and the shapes of its weights."""
    shapes = [(name, tuple(weight.shape)) for name, weight in net.state_dict().items()]
    return hashlib.sha256(f"{net!r}\n{shapes!r}".encode()).hexdigest()[:16]


@cache
def code_hash(parts: tuple[str, ...]) -> str:
    """sha256 over these modules and packages of the compiler, and RUNTIME."""
    return _hash(modules(parts).items())


def modules(parts: tuple[str, ...]) -> dict[str, Path]:
    """Every module of these parts by its name, which is the path in its package."""
    found: dict[str, Path] = {}
    for part in parts:
        path, root = (_RUNTIME, _RUNTIME.parent) if part == RUNTIME else (_HERE / part, _HERE)
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        found |= {file.relative_to(root).as_posix(): file for file in files}
    return found


def files_hash(paths: tuple[Path, ...]) -> str:
    """sha256 over bare names and contents."""
    return _hash((path.name, path) for path in paths)


def _hash(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def platform_of(*, mixed: bool) -> str:
    """What the last bits of a sum depend on: processors of one capability give equal weights, others need not. Of
    `mixed` training more than the last: one that multiplies in bfloat16 itself rounds to it."""
    if torch.cuda.is_available():
        return "cuda"
    own = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{own} bfloat16" if mixed and bfloat16_here() else own


@cache
def versions(tools: tuple[str, ...]) -> dict[str, str]:
    """Of these distributions."""
    return {name: importlib.metadata.version(name) for name in tools}
