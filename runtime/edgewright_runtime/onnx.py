"""Sessions of onnxruntime.

Guarantee: one thread unless asked otherwise, and that thread never spins: on a shared device a spinning pool costs ten
times the wall time of a small model.

`optimise` writes down what onnxruntime would otherwise make of the graph at every start. Seen for the digits package
(`scripts/measure_loading.py`, onnxruntime 1.31.1, x86-64): fp32 2.1 → 1.1 ms, int8 2.2 → 1.4 ms a load. It is larger
where the CPU wants weights in another order (31 → 38 kB in fp32).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgewright_contracts.errors import ContractError, Unavailable
from edgewright_contracts.manifest import SessionOptions, TensorIn, TensorOut

from .runtime import DEFAULTS, Array, LoadFailed, NoMemory, names_by_position, only_input, short_of_memory

# What onnxruntime calls the dtypes that a manifest may declare.
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}

# Released wheels tell their maker about themselves over HTTPS, ten seconds after the first session: not from a device,
# whose bytes are counted, and whose owner was not asked. Read when the library is loaded, which is after this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

MAPPED_BYTES: Final = 4096  # weights smaller than a page are not worth a file

# Identity of one float: the smallest model that proves that a session can be made.
_IDENTITY: Final = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a017912"
    "0a0a08080112040a02080142040a00100d"
)


def probe(runtime: str) -> None:
    """Make a session. Raises Unavailable with the library's own words when that fails."""
    try:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # warnings about graph optimisations are not for operators
        onnxruntime.InferenceSession(_IDENTITY, _options(DEFAULTS), providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever a broken native library throws means the same: it does not work here
        raise Unavailable(f"{runtime} is installed but does not work here: {error}") from error


def open_file(
    model: Path,
    runtime: str,
    version: str,
    inputs: tuple[TensorIn, ...],
    outputs: tuple[TensorOut, ...],
    options: SessionOptions,
    optimised: bool,
) -> OnnxSession:
    import onnxruntime

    theirs = _options(options)
    if optimised:  # it was all done, and is not undone
        theirs.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return OnnxSession(_loaded(model, version, theirs), runtime, version, inputs, outputs)


def optimise(model: Path, version: str, target: Path, options: SessionOptions) -> tuple[Path, ...]:
    """What ORT_ENABLE_ALL makes of the graph here: layouts and kernels of this CPU are part of it."""
    import onnxruntime

    files = [target / "model.onnx"]
    theirs = _options(options)
    theirs.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    theirs.optimized_model_filepath = str(files[0])
    if options.mmap:
        files.append(target / "weights.bin")
        theirs.add_session_config_entry("session.optimized_model_external_initializers_file_name", files[1].name)
        theirs.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(MAPPED_BYTES)
        )
    _loaded(model, version, theirs)
    return tuple(file for file in files if file.exists())  # small weights stay in the graph


def _loaded(model: Path, version: str, options: Any) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if short_of_memory(error):
            raise NoMemory(f"too little memory to load {model.name} with onnxruntime {version}: {error}") from error
        raise LoadFailed(f"onnxruntime {version} does not load {model.name}: {error}") from error


def _options(options: SessionOptions) -> Any:
    import onnxruntime

    theirs = onnxruntime.SessionOptions()
    theirs.intra_op_num_threads = min(options.threads, os.cpu_count() or 1)
    theirs.inter_op_num_threads = 1
    theirs.enable_cpu_mem_arena = options.arena
    theirs.add_session_config_entry("session.intra_op.allow_spinning", "0")
    theirs.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if options.mmap or not options.prepack:  # a packed copy would be what mapping is to spare
        theirs.add_session_config_entry("session.disable_prepacking", "1")
    return theirs


class OnnxSession:
    concurrent = True  # onnxruntime allows concurrent run() on one session

    def __init__(
        self, raw: Any, runtime: str, version: str, inputs: tuple[TensorIn, ...], outputs: tuple[TensorOut, ...]
    ) -> None:
        self.runtime, self.version = runtime, version
        found = {node.name: node.type for node in raw.get_inputs()}
        feeds = names_by_position(tuple(t.name for t in inputs), list(found), what="inputs of the ONNX file")
        self._feeds = [(t.name, name, _dtype(name, found[name])) for t, name in zip(inputs, feeds, strict=True)]
        theirs = [node.name for node in raw.get_outputs()]
        self._fetch = names_by_position(tuple(t.name for t in outputs), theirs, what="outputs of the ONNX file")
        self._names = [t.name for t in outputs]
        self._casts = [
            (t.name, np.dtype(t.dtype))
            for t, name in zip(outputs, self._fetch, strict=True)
            if _dtype(name, next(n.type for n in raw.get_outputs() if n.name == name)) != np.dtype(t.dtype)
        ]
        self._run = raw.run

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises RequestError when an input is missing; what the library throws passes through."""
        feed = {}
        for ours, theirs, dtype in self._feeds:
            x = only_input(ours, inputs)
            feed[theirs] = x if x.dtype == dtype else x.astype(dtype)
        outputs = dict(zip(self._names, self._run(self._fetch, feed), strict=False))
        for name, cast in self._casts:
            outputs[name] = outputs[name].astype(cast)
        return outputs


def _dtype(name: str, theirs: str) -> np.dtype[Any]:
    try:
        return _DTYPES[theirs]
    except KeyError:
        raise ContractError(name, f"a tensor of {', '.join(_DTYPES)}", theirs) from None
