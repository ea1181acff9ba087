"""Sessions of ai-edge-litert and tflite-runtime, which share one Interpreter interface.

Guarantee: tensor indices are resolved once, at opening; a file whose border tensors are quantized is fed and read by
their scale and zero point. A file takes one sample, so a batch is run row by row. Works with numpy 1.26 and 2.

Not concurrent: an interpreter owns its tensors, and its owner must lock.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from edgewright_contracts.errors import ContractError, Unavailable
from edgewright_contracts.manifest import SessionOptions, TensorIn, TensorOut

from .runtime import RUNTIMES, Array, LoadFailed, NoMemory, names_by_position, only_input, short_of_memory

# y = logistic(x) of one float: the smallest model that proves that an interpreter can be made. tflite-runtime imports
# beside numpy 2 and fails only here.
_LOGISTIC: Final = bytes.fromhex(
    "1800000054464c3300000e00140010000c000800000004000e000000100000001c000000d000000003000000010000000800"
    "0000040004000400000001000000100000000c00140010000c00080004000c000000100000003c0000004000000044000000"
    "010000001000000000000a000c000000080004000a000000080000000c000000010000000100000001000000000000000100"
    "0000010000000100000000000000020000003000000004000000e4ffffff080000000c000000010000007900000001000000"
    "010000000c000c0008000000000004000c000000080000000c00000001000000780000000100000001000000010000001000"
    "00000c000c000b000000000004000c0000000e0000000000000e"
)


class Border(NamedTuple):
    """One tensor of the file as the interpreter knows it; scale 0 means that it is not quantized."""

    name: str  # the manifest's
    tensor: int  # the interpreter's index of it
    shape: tuple[int, ...]  # with the batch of 1
    dtype: np.dtype[Any]
    scale: float
    zero: int


def probe(runtime: str) -> None:
    """Make an interpreter. Raises Unavailable with the library's own words when that fails."""
    try:
        _interpreter(runtime)(model_content=_LOGISTIC, num_threads=1).allocate_tensors()
    except Exception as error:  # numpy's ABI breaks tflite-runtime with SystemError, a missing libc with ImportError
        raise Unavailable(f"{runtime} is installed but does not work here: {error}") from error


def open_file(
    model: Path,
    runtime: str,
    version: str,
    inputs: tuple[TensorIn, ...],
    outputs: tuple[TensorOut, ...],
    options: SessionOptions,
    _optimised: bool,  # the file is what the interpreter maps: there is nothing to write down
) -> TfliteSession:
    try:
        raw = _interpreter(runtime)(model_path=str(model), num_threads=min(options.threads, os.cpu_count() or 1))
        raw.allocate_tensors()
    except Exception as error:
        if short_of_memory(error):
            raise NoMemory(f"too little memory to load {model.name} with {runtime} {version}: {error}") from error
        raise LoadFailed(f"{runtime} {version} does not load {model.name}: {error}") from error
    return TfliteSession(raw, runtime, version, inputs, outputs)


def _interpreter(runtime: str) -> Any:
    return importlib.import_module(RUNTIMES[runtime].library).Interpreter


class TfliteSession:
    concurrent = False

    def __init__(
        self, raw: Any, runtime: str, version: str, inputs: tuple[TensorIn, ...], outputs: tuple[TensorOut, ...]
    ) -> None:
        self.runtime, self.version = runtime, version
        fed, read = _tensors(raw)
        self._inputs = _borders(tuple(t.name for t in inputs), fed, what="inputs of the TFLite file")
        self._outputs = _borders(tuple(t.name for t in outputs), read, what="outputs of the TFLite file")
        for t, border in zip(inputs, self._inputs, strict=True):
            if int(np.prod(border.shape)) != int(np.prod(t.shape)):
                raise ContractError(f"inputs.{t.name}", f"one sample of shape {t.shape}", f"{border.shape} in the file")
        # What needs converting is known now, so that run() asks only where something does.
        self._declared_in = [np.dtype(t.dtype) for t in inputs]
        self._declared_out = [np.dtype(t.dtype) for t in outputs]
        self._raw = raw
        self._set, self._invoke, self._get = raw.set_tensor, raw.invoke, raw.get_tensor

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises RequestError when an input is missing; what the library throws passes through."""
        arrays = [only_input(border.name, inputs) for border in self._inputs]
        rows = len(arrays[0])
        if rows == 1:
            return self._one(arrays)
        each = [self._one([a[i : i + 1] for a in arrays]) for i in range(rows)]
        if not each:
            return {
                b.name: np.zeros((0, *b.shape[1:]), d) for b, d in zip(self._outputs, self._declared_out, strict=True)
            }
        return {b.name: np.concatenate([one[b.name] for one in each]) for b in self._outputs}

    def _one(self, arrays: list[Array]) -> dict[str, Array]:
        for x, border, declared in zip(arrays, self._inputs, self._declared_in, strict=False):
            if x.shape != border.shape:
                x = x.reshape(border.shape)
            if x.dtype != border.dtype or declared != border.dtype:
                x = _to_file(x, border, declared)
            self._set(border.tensor, x)
        self._invoke()
        out = {}
        for border, declared in zip(self._outputs, self._declared_out, strict=False):
            y = self._get(border.tensor)
            out[border.name] = y if border.dtype == declared else _from_file(y, border, declared)
        return out


def _to_file(x: Array, border: Border, declared: np.dtype[Any]) -> Array:
    if border.dtype == declared or not border.scale:
        return x.astype(border.dtype)
    info = np.iinfo(border.dtype)
    q = np.rint(x.astype(np.float32) / np.float32(border.scale)) + border.zero
    return np.asarray(np.clip(q, info.min, info.max).astype(border.dtype))


def _from_file(y: Array, border: Border, declared: np.dtype[Any]) -> Array:
    if not border.scale:
        return y.astype(declared)
    real = (y.astype(np.float32) - np.float32(border.zero)) * np.float32(border.scale)
    return real.astype(declared)


def _tensors(raw: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Details of inputs and outputs by name: the signature's where there is one, else the graph's in its order."""
    signatures = raw.get_signature_list()
    if signatures:
        runner = raw.get_signature_runner(next(iter(signatures)))
        return runner.get_input_details(), runner.get_output_details()
    return {d["name"]: d for d in raw.get_input_details()}, {d["name"]: d for d in raw.get_output_details()}


def _borders(wanted: tuple[str, ...], details: dict[str, dict[str, Any]], *, what: str) -> list[Border]:
    theirs = names_by_position(wanted, list(details), what=what)
    return [_border(name, details[key], what) for name, key in zip(wanted, theirs, strict=True)]


def _border(name: str, detail: dict[str, Any], what: str) -> Border:
    shape = tuple(int(n) for n in detail["shape"])
    if not shape or shape[0] != 1:
        raise ContractError(f"{what}: {name}", "a batch of 1", f"shape {shape}")
    scale, zero = detail["quantization"]
    return Border(name, int(detail["index"]), shape, np.dtype(detail["dtype"]), float(scale), int(zero))
