"""Golden vectors of `preprocess: host`: does this application's own transform make of raw samples what the package was
made with?

Rule: shape and dtype are the same, whole numbers too, and fractions lie within ATOL times the largest magnitude of the
tensor. Samples are given one at a time, as a device gets them. `golden.npz` holds `raw:NAME`, the samples [n, ...]
(numbers, or UTF-8 text as bytes [n, length] with zeros behind it), and `tensor:NAME`, what the package's input NAME was
given for them; no pickles. The same rule decides when a package is built and whenever an application is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts.errors import ContractError, Refused
from edgewright_contracts.manifest import Manifest

from . import npz as archives
from .runtime import Array

GOLDEN_FILE: Final = "golden.npz"
ATOL: Final = 1e-5

Transform = Callable[[Array], Array]  # raw samples [n, ...] → the package's input [n, *shape]


class Golden(msgspec.Struct, frozen=True, eq=False):
    """`name` is the package's input that `tensor` [n, *shape] is for; `raw` are the samples [n, ...]."""

    name: str
    raw: Array
    tensor: Array


def read_golden(npz: bytes, manifest: Manifest) -> Golden:
    """Raises ContractError for bytes that hold no vectors, or vectors that are not of the package's input."""
    arrays = archives.arrays(npz, GOLDEN_FILE)
    raws = [array for name, array in arrays.items() if name.startswith("raw:")]
    tensors = [name for name in arrays if name.startswith("tensor:")]
    one = manifest.inputs[0]
    if len(manifest.inputs) == 1 and len(raws) == 1 and tensors == [f"tensor:{one.name}"]:
        raw, tensor = np.atleast_1d(raws[0]), arrays[tensors[0]]
        if (tensor.dtype.name, tensor.shape[1:]) == (one.dtype, one.shape) and len(raw) == len(tensor) > 0:
            return Golden(one.name, raw, tensor)
    expected = f"one array raw:… and of its rows tensor:{one.name} {one.dtype}{list(one.shape)}, and no other input"
    said = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in sorted(arrays.items()))
    raise ContractError(GOLDEN_FILE, expected, said or "none")


def check(golden: Golden, transform: Transform) -> None:
    """Raises Refused naming the first sample that `transform` makes something else of.

    What the transform throws passes through: the caller decides whose fault that is.
    """
    wrong = differing(golden, transform)
    if wrong:
        raise Refused(
            f"{golden.name}: {wrong[0]}; {len(wrong)} of {len(golden.raw)} samples differ. This is not the "
            "preprocessing that the package was made with: bring it into line, or compile the package with this one"
        )


def differing(golden: Golden, transform: Transform) -> list[str]:
    """One line for each sample of which `transform`, given it alone, makes something else."""
    scale = 1.0
    if golden.tensor.dtype.kind == "f":
        scale = max(scale, float(np.abs(golden.tensor[np.isfinite(golden.tensor)]).max(initial=0)))
    found = []
    for i in range(len(golden.raw)):
        said = _difference(golden.tensor[i : i + 1], transform(golden.raw[i : i + 1]), ATOL * scale)
        if said is not None:
            found.append(f"sample {i}: {said}")
    return found


def _difference(expected: Array, found: object, tolerance: float) -> str | None:
    if not isinstance(found, np.ndarray):
        return f"expected an array {expected.dtype}{list(expected.shape)}, got {type(found).__name__}"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"expected {expected.dtype}{list(expected.shape)}, got {found.dtype}{list(found.shape)}"
    a, b = expected.reshape(-1), found.reshape(-1)
    same = a == b
    if expected.dtype.kind == "f":
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            same |= (np.abs(a - b) <= tolerance) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return None
    at = int(np.flatnonzero(~same)[0])
    place = [int(i) for i in np.unravel_index(at, expected.shape)[1:]]
    return f"expected {a[at].item():.9g} at {place}, got {b[at].item():.9g}"
