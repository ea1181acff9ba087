"""A TFLite file as the quantizer needs it, and as it is packaged: operators and their modules, preparing, writing.

Tensors are named by the converter with the modules that they come from, as "Graph/nets.Net_net/Conv2d_c1;1".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

_CODES: Final[dict[int, str]] = {v: k for k, v in vars(flatbuffer_utils.BuiltinOperator).items() if isinstance(v, int)}


_NAMES: Final = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}  # where the quantizer calls them otherwise


_FLOAT: Final = flatbuffer_utils.TensorType.FLOAT32
_ALIGNED: Final = 16  # bytes: what the schema asks for weights, and its own writer forgets


@dataclass(frozen=True, slots=True)
class Operator:
    kind: str  # as ai-edge-quantizer calls it
    name: str  # of what it writes: its place for rules
    modules: tuple[str, ...]  # names of modules that it was made from, as the converter writes them
    weighted: bool
    real: bool  # writes float32
    inputs: tuple[tuple[int, int], ...]  # tensors, each with its subgraph
    outputs: tuple[tuple[int, int], ...]


def operators(model: Any) -> tuple[Operator, ...]:
    """All operators of all subgraphs, in order."""
    found = []
    codes = [_code(op) for op in model.operatorCodes]
    for at, graph in enumerate(model.subgraphs):
        constant = {i for i, t in enumerate(graph.tensors) if _size(model, t)}
        borders = {*graph.inputs, *graph.outputs}
        for op in graph.operators:
            kind = codes[op.opcodeIndex]
            outputs = [i for i in op.outputs if i >= 0]
            # The last operator writes a border, whose name is the signature's: then its weights tell.
            told = [i for i in outputs if i not in borders] or [i for i in op.inputs if i in constant]
            names = [name_of(graph.tensors[i]) for i in told]
            found.append(
                Operator(
                    kind,
                    tfl_flatbuffer_utils.get_op_scope(op, graph.tensors),
                    tuple(dict.fromkeys(part for name in names for part in name.split(";") if "/" in part)),
                    any(i in constant and len(graph.tensors[i].shape) > 1 for i in op.inputs),
                    bool(outputs) and graph.tensors[outputs[0]].type == _FLOAT,
                    tuple((at, i) for i in op.inputs if i >= 0),
                    tuple((at, i) for i in outputs),
                )
            )
    return tuple(found)


def inside(operator: Operator, place: str) -> bool:
    """Whether one of the operator's modules is, or lies under, the module at path `place` of the outermost module."""
    return any(under(module, place) for module in operator.modules)


def path(module: str) -> str:
    """Of "Graph/nets.Net_net/Conv2d_c1", "net.c1". A class with an underscore leaves a piece in front; it matches."""
    return ".".join(part.rpartition(".")[2].partition("_")[2] for part in module.split("/")[1:])


def own(operator: Operator) -> str:
    """The innermost of the modules that were fused into it; of a convolution and its normalisation, the convolution."""
    return path(max(reversed(operator.modules), key=lambda module: module.count("/")))


def under(module: str, place: str) -> bool:
    """ "Graph/Net_net/Conv2d_c1" lies under "net" and is "net.c1": a part is a class and an attribute, and either may
    hold underscores, so a path is matched from its own side."""
    parts, wanted = module.split("/")[1:], place.split(".")
    return len(parts) >= len(wanted) and all(
        part.endswith(f"_{name}") for part, name in zip(parts, wanted, strict=False)
    )


def is_layer(operator: Operator, layer: str) -> bool:
    """Whether this is the layer of that name: a module path, or what a file of others calls its output."""
    return layer == operator.name or inside(operator, layer)


def prepare(model: Any) -> None:
    """What the quantizer takes for granted, and files of others may lack: float32 weights (float16 ones stand behind an
    operator that widens them), a name of its own for each tensor, a signature."""
    for graph in model.subgraphs:
        for op in list(graph.operators):
            if _code(model.operatorCodes[op.opcodeIndex]) != "DEQUANTIZE":
                continue
            half, whole = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
            if half.type == flatbuffer_utils.TensorType.FLOAT16 and _size(model, half):
                wide = np.frombuffer(bytes(model.buffers[half.buffer].data), np.float16).astype(np.float32)
                buffer = flatbuffer_utils.BufferT()
                buffer.data = wide.view(np.uint8)
                model.buffers.append(buffer)
                whole.buffer = len(model.buffers) - 1
                graph.operators.remove(op)
    main = model.subgraphs[0]
    kept = {*main.inputs, *main.outputs}
    taken = {name_of(main.tensors[i]) for i in kept}
    for at, graph in enumerate(model.subgraphs):
        for i, tensor in enumerate(graph.tensors):
            if at or i not in kept:
                if not tensor.name or name_of(tensor) in taken:
                    tensor.name = f"{name_of(tensor)}#{at}.{i}".encode()
                taken.add(name_of(tensor))
    if not model.signatureDefs:
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs = [_mapped(main, i) for i in main.inputs]
        signature.outputs = [_mapped(main, i) for i in main.outputs]
        model.signatureDefs = [signature]


def _code(operator: Any) -> str:
    """As the quantizer calls it. Before 2020 there was one byte for it, and it is still filled."""
    code: int = max(operator.builtinCode, operator.deprecatedBuiltinCode)
    operator.builtinCode = code
    return _NAMES.get(_CODES.get(code, ""), _CODES.get(code, str(code)))


def _mapped(graph: Any, tensor: int) -> Any:
    pair = schema.TensorMapT()
    pair.name, pair.tensorIndex = graph.tensors[tensor].name, tensor
    return pair


class _Writer(flatbuffers.Builder):  # type: ignore[misc]
    """Writes equal vectors once: each channel of a layer has a zero point of eight bytes, and all of them are 0."""

    def __init__(self) -> None:
        super().__init__(2**16)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        payload = x.tobytes()
        key = x.dtype.str, payload
        if key not in self._written:
            weights = x.dtype == np.uint8 and len(payload) >= _ALIGNED
            self.StartVector(x.itemsize, x.size, _ALIGNED if weights else x.itemsize)
            self.head -= len(payload)
            self.Bytes[self.head : self.head + len(payload)] = payload
            self.vectorNumElems = x.size
            self._written[key] = self.EndVector()
        return self._written[key]


def write(model: Any, target: Path) -> None:
    """Without names inside; borders keep theirs, and signatures name tensors by number."""
    model.description = None
    for graph in model.subgraphs:
        borders = {*graph.inputs, *graph.outputs}
        for i, tensor in enumerate(graph.tensors):
            if i not in borders:
                tensor.name = None
    writer = _Writer()
    writer.Finish(model.Pack(writer), file_identifier=b"TFL3")
    target.write_bytes(writer.Output())


def name_of(tensor: Any) -> str:
    return tensor.name.decode() if tensor.name else ""


def _size(model: Any, tensor: Any) -> int:
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)
