"""What a finished file takes and gives: tensors with dtypes, sizes, and the axis that counts samples.

A manifest knows samples without a batch, and a runtime puts the batch first. Files from elsewhere have it in second
place (recurrent states), fixed to 1, nowhere (scalars), or leave the sizes of an image open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgewright_contracts.errors import RequestError

Shapes = Mapping[str, tuple[int, ...]]  # sizes of one sample, by input

PICKED: Final = 320  # pixels of an open image side when nobody says more: divisible by 32, as strides want
MAX_ELEMENTS: Final = 2**26

ONNX_DTYPES: Final = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Border:
    """`shape` is of one sample; `axis` is where the file has its batch, None when it has none."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int | None
    open: bool = False  # the file takes any number of samples


def onnx_inputs(path: Path, raw: Any, shapes: Shapes) -> tuple[tuple[Border, ...], tuple[str, ...]]:
    """Inputs of an onnxruntime session with all sizes settled, and a note for each size that was picked here.

    Raises RequestError for a size that is open and nobody gave, one that contradicts the file, or a name that it lacks.
    """
    nodes = raw.get_inputs()
    known(path, shapes, [node.name for node in nodes])
    symbols = [node.shape[0] for node in nodes if node.shape]
    batch = next((s for s in symbols if isinstance(s, str)), None)
    found, notes = [], []
    for node in nodes:
        dtype = ONNX_DTYPES.get(node.type)
        if dtype is None:
            raise RequestError(
                f"{path}: input {node.name!r} is a {node.type}: expected numbers; prepare it outside the file"
            )
        sizes = list(node.shape)
        axis = _batch_axis(sizes, batch)
        rest = [size for at, size in enumerate(sizes) if at != axis]
        said = shapes.get(node.name)
        if said is None and any(not isinstance(size, int) for size in rest):
            picked = _picked(rest)
            if picked is None:
                raise RequestError(
                    f"{path}: input {node.name!r} has open sizes {_told(sizes)}: say those of one sample with "
                    f"--shape {node.name}={'x'.join(str(s) if isinstance(s, int) else 'SIZE' for s in rest)}"
                )
            said = picked
            notes.append(
                f"Input {node.name} has open sizes {_told(sizes)}: fixed to {_told(said)}; --shape says others."
            )
        shape = tuple(rest) if said is None else _agreed(path, node.name, rest, said)
        if math.prod(shape) > MAX_ELEMENTS:
            raise RequestError(
                f"{path}: input {node.name!r} of {_told(shape)} has over {MAX_ELEMENTS} numbers a sample"
            )
        opened = axis is not None and not isinstance(sizes[axis], int)
        found.append(Border(node.name, dtype, shape, axis, opened))
    return tuple(found), tuple(notes)


def tflite_borders(path: Path, shapes: Shapes) -> tuple[tuple[Border, ...], tuple[Border, ...]]:
    """Inputs and outputs in the order of the file. Raises RequestError for a file that LiteRT cannot prepare, or whose
    batch is not 1."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        raw = Interpreter(str(path), num_threads=1)
        details = raw.get_input_details()
        known(path, shapes, [d["name"] for d in details])
        raw.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise RequestError(
            f"{path}: LiteRT does not prepare it: {_line(error)}; were its sizes open, export it with fixed ones"
        ) from None
    signatures = raw.get_signature_list()
    if signatures:
        runner = raw.get_signature_runner(next(iter(signatures)))
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
    else:
        inputs = {d["name"]: d for d in details}
        outputs = {d["name"]: d for d in raw.get_output_details()}
    sides = []
    for what, side in (("input", inputs), ("output", outputs)):
        borders = []
        for name, detail in side.items():
            shape = tuple(int(n) for n in detail["shape"])
            if not shape or shape[0] != 1:
                raise RequestError(
                    f"{path}: {what} {name!r} has the shape {_told(shape)}: expected a batch of 1 in front"
                )
            if name in shapes and tuple(shapes[name]) != shape[1:]:
                raise RequestError(
                    f"{path}: {what} {name!r} is {_told(shape[1:])} and cannot become {_told(shapes[name])}"
                )
            borders.append(Border(name, detail["dtype"]().dtype.name, shape[1:], 0))
        sides.append(tuple(borders))
    return sides[0], sides[1]


def known(path: Path, said: Mapping[str, Any], names: list[str]) -> None:
    for name in said:
        if name not in names:
            raise RequestError(f"{path}: no input {name!r}; it has {', '.join(names)}")


def _batch_axis(sizes: list[Any], batch: str | None) -> int | None:
    if not sizes:
        return None
    if batch is not None and batch in sizes:
        return sizes.index(batch)
    if not isinstance(sizes[0], int) or sizes[0] == 1:
        return 0
    return next((at for at, size in enumerate(sizes) if not isinstance(size, int)), None)


def _picked(rest: list[Any]) -> tuple[int, ...] | None:
    """Sizes for an image whose height and width are open; None for anything else."""
    if len(rest) != 3:
        return None
    channel = next((at for at in (0, 2) if rest[at] in (1, 3)), None)
    sides = [size for at, size in enumerate(rest) if at != channel]
    if channel is None or any(isinstance(size, int) for size in sides):
        return None
    return tuple(size if at == channel else PICKED for at, size in enumerate(rest))


def _agreed(path: Path, name: str, rest: list[Any], said: tuple[int, ...]) -> tuple[int, ...]:
    fits = len(said) == len(rest) and all(not isinstance(s, int) or s == t for s, t in zip(rest, said, strict=True))
    if not fits or any(size < 1 for size in said):
        raise RequestError(
            f"{path}: input {name!r} takes samples of {_told(rest)} (without the batch), got {_told(said)}"
        )
    return said


def _told(sizes: Any) -> str:
    return "[" + ", ".join(str(s) if isinstance(s, int) else "?" for s in sizes) + "]"


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
