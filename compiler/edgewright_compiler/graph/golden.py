"""Golden vectors of `preprocess: host`: what the application's own transform must make of given raw samples.

A package whose preprocessing does not export carries this file, and a device commits to it only when its application
reproduces every tensor. The file is an npz without pickles: `raw:NAME` are the raw samples (numbers, or UTF-8 text as
bytes [n, length] with zeros behind it), `tensor:NAME` what the package's input NAME was given for them. Equal arrays
give equal bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from edgewright_contracts.errors import ContractError, Refused, RequestError

from ..packaging import npz
from ..rows import Array, count

GOLDEN_FILE: Final = "golden.npz"
GOLDEN_ROWS: Final = 32
ATOL: Final = 1e-5  # times the largest magnitude of a tensor of fractions; whole numbers must be the same

Transform = Callable[[Mapping[str, Array]], Mapping[str, Array]]  # raw samples by name → tensors by input name


def golden(transform: Transform, raw: Mapping[str, Array]) -> bytes:
    """The file for the first GOLDEN_ROWS samples of `raw`.

    Raises RequestError for a transform that gives another answer the second time, or tensors of other rows.
    """
    rows = {name: np.asarray(array)[:GOLDEN_ROWS] for name, array in raw.items()}
    if not rows or not count(rows):
        raise RequestError("golden vectors: expected at least one raw sample, got none")
    tensors = {name: np.asarray(tensor) for name, tensor in transform(rows).items()}
    again = transform(rows)
    for name, array in [*rows.items(), *tensors.items()]:
        if array.dtype.kind not in "fiub":
            raise RequestError(f"golden vectors: {name!r} is {array.dtype}: expected numbers; give text as UTF-8 bytes")
    for name, tensor in tensors.items():
        if len(tensor) != count(rows):
            raise RequestError(f"golden vectors: {count(rows)} samples gave {len(tensor)} rows of {name!r}")
        if not np.array_equal(tensor, np.asarray(again[name]), equal_nan=tensor.dtype.kind == "f"):
            raise RequestError(f"golden vectors: the transform makes {name!r} anew each time; take the randomness out")
    return npz({**{f"raw:{k}": v for k, v in rows.items()}, **{f"tensor:{k}": v for k, v in tensors.items()}})


def check(data: bytes, transform: Transform) -> None:
    """Run `transform` on the file's raw samples. Raises Refused naming the first tensor and sample that differ,
    ContractError for a file that holds no vectors."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ContractError(GOLDEN_FILE, "an npz archive without pickles", str(error)) from None
    raw = {name.partition(":")[2]: array for name, array in arrays.items() if name.startswith("raw:")}
    expected = {name.partition(":")[2]: array for name, array in arrays.items() if name.startswith("tensor:")}
    if not raw or not expected:
        raise ContractError(GOLDEN_FILE, "raw:… and tensor:… arrays", ", ".join(sorted(arrays)) or "none")
    found = transform(raw)
    for name, tensor in expected.items():
        if name not in found:
            raise Refused(f"the transform makes no tensor {name!r}, only {', '.join(sorted(found)) or 'none'}")
        _same(name, tensor, np.asarray(found[name]))


def _same(name: str, expected: Array, found: Array) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise Refused(f"{name}: expected {expected.shape} of {expected.dtype}, got {found.shape} of {found.dtype}")
    a, b = expected.astype(np.float64).reshape(len(expected), -1), found.astype(np.float64).reshape(len(expected), -1)
    tolerance = ATOL * max(1.0, float(np.abs(a[np.isfinite(a)]).max(initial=0))) if expected.dtype.kind == "f" else 0.0
    with np.errstate(invalid="ignore"):
        wrong = ~((np.abs(a - b) <= tolerance) | (a == b) | (np.isnan(a) & np.isnan(b)))
    if wrong.any():
        row, element = (int(i) for i in np.argwhere(wrong)[0])
        raise Refused(
            f"{name}: sample {row} differs at element {element}: expected {a[row, element]:g}, got "
            f"{b[row, element]:g}; {int(wrong.any(axis=1).sum())} of {len(a)} samples differ. The application's "
            "preprocessing is not the one that this package was made with"
        )
