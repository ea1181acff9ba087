"""Sessions of onnxruntime.

Guarantee: one thread unless asked otherwise, and that thread never spins: on a shared device a spinning pool costs ten
times the wall time of a small model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgewright_contracts.errors import ContractError, Unavailable
from edgewright_contracts.manifest import TensorIn, TensorOut

from .runtime import Array, LoadFailed, names_by_position, only_input

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
        onnxruntime.InferenceSession(_IDENTITY, _options(1), providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever a broken native library throws means the same: it does not work here
        raise Unavailable(f"{runtime} is installed but does not work here: {error}") from error


def open_file(
    model: Path,
    runtime: str,
    version: str,
    inputs: tuple[TensorIn, ...],
    outputs: tuple[TensorOut, ...],
    threads: int,
) -> OnnxSession:
    import onnxruntime

    try:
        raw = onnxruntime.InferenceSession(str(model), _options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise LoadFailed(f"onnxruntime {version} does not load {model.name}: {error}") from error
    return OnnxSession(raw, runtime, version, inputs, outputs)


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


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
