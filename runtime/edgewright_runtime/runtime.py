"""Opening a model file with the runtime that a device has.

Guarantee: whatever the runtime, a session takes and gives arrays in the dtypes that the manifest declares, batch first;
what a quantized file wants at its borders is converted here, by its scale and zero point. A session that is not
`concurrent` must be run by one thread at a time: its owner locks, because only the owner can say how long it waited.

Cost over the library's own call, measured with one input and two outputs: about 1 µs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable
from edgewright_contracts.manifest import SessionOptions, TensorIn, TensorOut

Array = npt.NDArray[np.generic]


class Session(Protocol):
    """A loaded model. `inputs[name]` has shape [n, *TensorIn.shape], an output [n, *TensorOut.shape]."""

    runtime: str
    version: str
    concurrent: bool  # may several threads run it at once

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...


class LoadFailed(Refused):
    """The runtime works but does not take this file: the package is to blame, not the device."""


class NoMemory(Unavailable):
    """The device has too little memory for this file, now: that says nothing about the file."""


class Place(NamedTuple):
    package: str  # the one whose version counts
    module: str  # ours
    library: str  # theirs
    extra: str


RUNTIMES: Final[dict[str, Place]] = {
    "onnxruntime": Place("onnxruntime", "onnx", "onnxruntime", "agent-onnx"),
    "litert": Place("ai_edge_litert", "tflite", "ai_edge_litert.interpreter", "agent-tflite"),
    "tflite-runtime": Place("tflite_runtime", "tflite", "tflite_runtime.interpreter", "agent-tflite-legacy"),
}
SUFFIXES: Final = {"onnxruntime": ".onnx", "litert": ".tflite", "tflite-runtime": ".tflite"}


DEFAULTS: Final = SessionOptions()


def open_session(
    model: Path,
    runtime: str,
    *,
    inputs: tuple[TensorIn, ...],
    outputs: tuple[TensorOut, ...],
    options: SessionOptions = DEFAULTS,
    optimised: bool = False,
) -> Session:
    """Load `model`, always from its path, so that the runtime may map it. `optimised`: a file that `optimise` made.

    Raises RequestError for an unknown runtime or a file of another format, Unavailable when the runtime is not
    installed or does not work here, NoMemory, LoadFailed when it refuses the file, ContractError when the file's
    tensors are not those that the manifest declares.
    """
    place = _place(runtime)
    if model.suffix != SUFFIXES[runtime]:
        raise RequestError(f"{runtime} reads {SUFFIXES[runtime]} files, got {model.name}")
    version = probe(runtime)
    if not model.is_file():
        raise LoadFailed(f"{model}: expected a model file, got nothing there")
    module = importlib.import_module(f".{place.module}", __package__)
    session: Session = module.open_file(model, runtime, version, inputs, outputs, options, optimised)
    return session


def optimise(model: Path, runtime: str, target: Path, options: SessionOptions = DEFAULTS) -> tuple[Path, ...]:
    """Write into the directory `target` what `runtime` makes of `model` for this very CPU; the first file is to load.

    Nothing is synced. Empty for a runtime that maps its files as they are. The files are of this version of the runtime
    and of this CPU only: another may crash on them. Raises what `open_session` raises, and OSError.
    """
    if _place(runtime).module != "onnx":
        return ()
    version = probe(runtime)
    from . import onnx

    return onnx.optimise(model, version, target, options)


_SHORT: Final = ("bad_alloc", "bad allocation", "failed to allocate memory", "cannot allocate memory", "out of memory")


def short_of_memory(error: BaseException) -> bool:
    """Whether a library's exception means that memory ran out; most of them say so only in words."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _SHORT)


def available() -> dict[str, str]:
    """Name → version of the runtimes that work here: an interpreter was really made, an import alone proves nothing."""
    found: dict[str, str] = {}
    for name in RUNTIMES:
        try:
            found[name] = probe(name)
        except Unavailable:
            continue
    return found


_probed: Final[dict[str, str]] = {}  # what works once goes on working in this process


def probe(runtime: str) -> str:
    """Its version, when it really works here. Raises RequestError for an unknown name, Unavailable otherwise."""
    if runtime not in _probed:
        place = _place(runtime)
        if importlib.util.find_spec(place.package) is None:
            raise Unavailable(f"runtime {runtime} is not installed; pip install 'edgewright[{place.extra}]' brings it")
        importlib.import_module(f".{place.module}", __package__).probe(runtime)
        _probed[runtime] = importlib.import_module(place.package).__version__
    return _probed[runtime]


def _place(runtime: str) -> Place:
    try:
        return RUNTIMES[runtime]
    except KeyError:
        raise RequestError(f"expected a runtime among {', '.join(RUNTIMES)}, got {runtime!r}") from None


def names_by_position(wanted: tuple[str, ...], found: list[str], *, what: str) -> list[str]:
    """The file's own name for each declared tensor: by name where all are there, else by position.

    Exporters that number their tensors (args_0, output_1) list them in any order, so numbers decide before the order.
    """
    if len(found) != len(wanted):
        raise ContractError(what, f"{len(wanted)} tensors ({', '.join(wanted)})", f"{len(found)} ({', '.join(found)})")
    if set(wanted) == set(found):
        return list(wanted)
    numbers = [name.rpartition("_")[2] for name in found]
    if all(n.isdigit() for n in numbers):
        return [name for _, name in sorted(zip(map(int, numbers), found, strict=True))]
    return found


def only_input(wanted: str, inputs: Mapping[str, Array]) -> Array:
    """The array of one declared input. Raises RequestError when it is missing."""
    try:
        return inputs[wanted]
    except KeyError:
        raise RequestError(f"expected an input {wanted!r}, got {', '.join(sorted(inputs)) or 'none'}") from None
