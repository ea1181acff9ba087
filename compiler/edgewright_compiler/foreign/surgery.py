"""Cuts at the borders of ONNX files from elsewhere; what is between them is left as it is.

`settle`: samples first in every input and output, all other sizes fixed, no doubles outside, given inputs made
constants. `watch`: one more output `monitor`, of operators that mean the same in every opset: pools over a flat view
take averages and maxima, so none of the reductions whose attributes moved is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgewright_contracts.errors import RequestError

from ..graph.features import Columns
from ..rows import Array
from .borders import ONNX_DTYPES, Border

MONITOR: Final = "monitor"
_OWN: Final = "edgewright"  # prefix of whatever is put in
_OLDEST: Final = 10  # opset from which on Slice takes its bounds as inputs
_TYPES: Final = {name: getattr(TensorProto, name.upper().replace("FLOAT32", "FLOAT").replace("FLOAT64", "DOUBLE"))
                 for name in ONNX_DTYPES.values()}  # fmt: skip
_OUTSIDE: Final = {"float64": "float32"}  # what a manifest cannot declare


def session(path: Path) -> Any:
    """Raises RequestError when onnxruntime does not take the file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(f"{path}: onnxruntime does not load it: {reason}") from None


def fix(source: Path, target: Path, values: Mapping[str, float]) -> None:
    """Make the inputs of these names constants. Raises RequestError for one that is no scalar or single number."""
    model = onnx.load(str(source))
    for name, value in values.items():
        given = next(i for i in model.graph.input if i.name == name)
        sizes = [d.dim_value for d in given.type.tensor_type.shape.dim]
        if any(size != 1 for size in sizes):
            raise RequestError(f"{source}: input {name!r} has sizes {sizes}: only a single number can be fixed")
        dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        model.graph.input.remove(given)
        model.graph.initializer.append(numpy_helper.from_array(np.full(sizes, value, dtype), name))
    _save(model, target)


def settle(
    source: Path, target: Path, inputs: Sequence[Border], samples: Mapping[str, Array]
) -> tuple[tuple[Border, ...], tuple[Border, ...]]:
    """Write `target`, which takes and gives the batch first; return its inputs and outputs.

    `samples` are at least two rows by input name: where the batch is in an output, and whether the file takes more than
    one sample at all, is found by running it. Raises RequestError when it does not run, or its sizes depend on values.
    """
    raw = session(source)
    many = any(b.open for b in inputs) and all(b.open or b.axis is None for b in inputs)
    one, other = (_run(source, raw, inputs, samples, slice(i, i + 1)) for i in (0, 1))
    for name, a, b in zip((n.name for n in raw.get_outputs()), one, other, strict=True):
        if a.shape != b.shape:
            raise RequestError(f"{source}: the sizes of output {name!r} depend on the sample ({a.shape}, {b.shape})")
    axes: list[int | None] = [0 if a.ndim and a.shape[0] == 1 else None for a in one]
    if many:
        try:
            two = _run(source, raw, inputs, samples, slice(0, 2))
            grown = [
                [i for i in range(a.ndim) if (a.shape[i], b.shape[i]) == (1, 2)] if a.ndim == b.ndim else []
                for a, b in zip(one, two, strict=True)
            ]
            many = all(len(g) == 1 for g in grown)
            axes = [g[0] for g in grown] if many else axes
        except RequestError:
            many = False
    model = onnx.load(str(source))
    del model.graph.value_info[:]
    graph = model.graph
    settled = [_input(graph, b, many) for b in inputs]
    nodes = []
    for node, array, axis in zip(raw.get_outputs(), one, axes, strict=True):
        nodes.append(_output(graph, node.name, ONNX_DTYPES.get(node.type, node.type), array, axis, many))
    _save(model, target)
    return tuple(settled), tuple(nodes)


def watch(source: Path, target: Path, inputs: Sequence[Border], outputs: Sequence[Border]) -> Columns:
    """Write `target` with the output `monitor` [n, columns] beside those of `source`; () and no file when it cannot be
    added. Of each input and wide output: mean, deviation, largest, smallest, mean step between neighbours."""
    model = onnx.load(str(source))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    taken = {i.name for i in (*model.graph.input, *model.graph.output)}
    if opset < _OLDEST or MONITOR in taken:
        return ()
    columns: list[tuple[str, Any]] = []
    parts: list[str] = []
    made = _Maker(model.graph)
    states = _states(inputs, outputs)
    for border, group in [*((b, "input") for b in inputs), *((b, "output") for b in outputs)]:
        size = int(np.prod(border.shape))
        if border.name in states or border.dtype == "bool" or not border.shape or (group == "output" and size < 3):
            continue  # few outputs are counted one by one
        name = slug(border.name)
        for what, tensor in _statistics(made, border.name, f"{_OWN}/{group}/{border.name}", size):
            columns.append((f"{name}.{what}"[:63], group))
            parts.append(tensor)
    if not parts:
        return ()
    flat = made.node("Concat", parts, f"{_OWN}/columns", axis=1)
    made.named("Reshape", [flat, made.constant(np.array([0, len(parts)]))], MONITOR)
    model.graph.output.append(helper.make_tensor_value_info(MONITOR, TensorProto.FLOAT, ["n", len(parts)]))
    _save(model, target)
    return tuple(columns)


def _states(inputs: Sequence[Border], outputs: Sequence[Border]) -> set[str]:
    """What is fed back: an output of the sizes of an input whose name holds it, as `state` and `stateN`. It says little
    that the sample and the answer do not say, at the same cost."""
    pairs = [(i, o) for i in inputs for o in outputs if i.shape == o.shape and i.name in o.name]
    return {b.name for pair in pairs for b in pair} if len(inputs) > 1 else set()


def slug(name: str) -> str:
    """A name as a channel may be called."""
    text = "".join(c if c.isalnum() and c.isascii() else "-" for c in name.lower()).strip("-")
    return text[:40] or "tensor"


class _Maker:
    """Puts nodes at the end of a graph. Constants are nodes, because old files take initializers for inputs."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._made = 0

    def node(self, kind: str, inputs: Sequence[str], prefix: str, **attributes: Any) -> str:
        self._made += 1
        return self.named(kind, inputs, f"{prefix}/{kind}-{self._made}", **attributes)

    def named(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._graph.node.append(helper.make_node(kind, list(inputs), [output], name=f"{_OWN}:{output}", **attributes))
        return output

    def constant(self, array: Array) -> str:
        return self.node("Constant", [], _OWN, value=numpy_helper.from_array(np.asarray(array)))


def _statistics(made: _Maker, tensor: str, prefix: str, size: int) -> list[tuple[str, str]]:
    real = made.node("Cast", [tensor], prefix, to=TensorProto.FLOAT)
    x = made.node("Reshape", [real, made.constant(np.array([0, 1, -1]))], prefix)  # [n, 1, size]
    mean = made.node("GlobalAveragePool", [x], prefix)
    if size == 1:
        return [("value", mean)]
    squares = made.node("GlobalAveragePool", [made.node("Mul", [x, x], prefix)], prefix)
    variance = made.node("Sub", [squares, made.node("Mul", [mean, mean], prefix)], prefix)
    deviation = made.node("Sqrt", [made.node("Relu", [variance], prefix)], prefix)
    largest = made.node("GlobalMaxPool", [x], prefix)
    smallest = made.node("Neg", [made.node("GlobalMaxPool", [made.node("Neg", [x], prefix)], prefix)], prefix)
    ends = [made.constant(np.array([at])) for at in (0, 1, size - 1, size, 2)]
    left = made.node("Slice", [x, ends[0], ends[2], ends[4]], prefix)
    right = made.node("Slice", [x, ends[1], ends[3], ends[4]], prefix)
    steps = made.node("Abs", [made.node("Sub", [right, left], prefix)], prefix)
    step = made.node("GlobalAveragePool", [steps], prefix)
    return [("mean", mean), ("deviation", deviation), ("max", largest), ("min", smallest), ("step", step)]


def _run(source: Path, raw: Any, inputs: Sequence[Border], samples: Mapping[str, Array], at: slice) -> list[Array]:
    """The file on samples with the batch in front, which goes where the file wants it."""
    feed = {}
    for b in inputs:
        rows = np.asarray(samples[b.name][at])
        feed[b.name] = np.asarray(rows[0]) if b.axis is None else np.moveaxis(rows, 0, b.axis)
    try:
        found: list[Array] = raw.run(None, feed)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        sizes = ", ".join(f"{b.name} {list(b.shape)}" for b in inputs)
        raise RequestError(
            f"{source}: does not run on samples of {sizes}: {reason}; other sizes: --shape NAME=3x48x320"
        ) from None
    return found


def _input(graph: Any, border: Border, many: bool) -> Border:
    given = next(i for i in graph.input if i.name == border.name)
    at = list(graph.input).index(given)
    outside = _OUTSIDE.get(border.dtype, border.dtype)
    batch: Any = "n" if many else 1
    front = helper.make_tensor_value_info(border.name, _TYPES[outside], [batch, *border.shape])
    inner = border.name
    before: list[Any] = []
    if border.axis != 0 or outside != border.dtype:
        inner = f"{border.name}_{_OWN}"
        _rename(graph, border.name, inner)
    now = border.name
    if outside != border.dtype:
        step = inner if border.axis == 0 else f"{inner}_cast"
        before.append(helper.make_node("Cast", [now], [step], name=f"{_OWN}:{step}", to=_TYPES[border.dtype]))
        now = step
    if border.axis is None:  # what has no batch is the first sample's
        zero = f"{inner}_zero"
        constant = numpy_helper.from_array(np.array(0, np.int64))
        before.append(helper.make_node("Constant", [], [zero], name=f"{_OWN}:{zero}", value=constant))
        before.append(helper.make_node("Gather", [now, zero], [inner], name=f"{_OWN}:{inner}", axis=0))
    elif border.axis:
        rank = len(border.shape) + 1
        order = [*range(1, border.axis + 1), 0, *range(border.axis + 1, rank)]
        before.append(helper.make_node("Transpose", [now], [inner], name=f"{_OWN}:{inner}", perm=order))
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    rest = list(graph.input)
    rest[at] = front
    del graph.input[:]
    graph.input.extend(rest)
    return Border(border.name, outside, border.shape, 0, many)


def _output(graph: Any, name: str, dtype: str, array: Array, axis: int | None, many: bool) -> Border:
    if dtype not in _TYPES:
        raise RequestError(f"output {name!r} is a {dtype}: expected numbers; cut it off before packaging")
    given = next(o for o in graph.output if o.name == name)
    at = list(graph.output).index(given)
    outside = _OUTSIDE.get(dtype, dtype)
    shape = array.shape if axis is None else (*array.shape[:axis], *array.shape[axis + 1 :])
    inner = name
    if axis != 0 or outside != dtype:
        inner = f"{name}_{_OWN}"
        _rename(graph, name, inner)
    if outside != dtype:
        step = name if axis == 0 else f"{inner}_cast"
        graph.node.append(helper.make_node("Cast", [inner], [step], name=f"{_OWN}:{step}", to=_TYPES[outside]))
        inner = step
    if axis is None:
        sizes = f"{inner}_sizes"
        constant = numpy_helper.from_array(np.array([1, *shape], np.int64))
        graph.node.append(helper.make_node("Constant", [], [sizes], name=f"{_OWN}:{sizes}", value=constant))
        graph.node.append(helper.make_node("Reshape", [inner, sizes], [name], name=f"{_OWN}:{name}"))
    elif axis:
        order = [axis, *(i for i in range(array.ndim) if i != axis)]
        graph.node.append(helper.make_node("Transpose", [inner], [name], name=f"{_OWN}:{name}", perm=order))
    rest = list(graph.output)
    rest[at] = helper.make_tensor_value_info(name, _TYPES[outside], ["n" if many else 1, *shape])
    del graph.output[:]
    graph.output.extend(rest)
    return Border(name, outside, tuple(int(n) for n in shape), 0, many)


def _rename(graph: Any, old: str, new: str) -> None:
    """Everywhere in the graph and in the branches that see its names; not at its borders."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _rename(inner, old, new)
                for out in inner.output:
                    if out.name == old:
                        out.name = new


def _save(model: Any, target: Path) -> None:
    target.write_bytes(model.SerializeToString(deterministic=True))
