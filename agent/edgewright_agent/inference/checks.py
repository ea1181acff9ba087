"""What an input must be before a model sees it, and enough of it to notice that it is the one before.

Guarantee: what a check lets pass has the declared dtype and shape, holds no NaN and nothing outside the declared range.
Whatever else a caller hands over ends in `Rejected` with one of these reasons, which the windows count:

    missing      an input that the manifest declares is not there, or there is no mapping at all
    unknown      there is one that it does not declare
    dtype        no array, or one of another dtype (objects, strings and the other byte order among them)
    size         more than `LARGEST` bytes, and more than declared: looked at no further
    shape        another shape: a batch, another rank, nothing
    nan, range   of a float; of what has a declared range
    context      not one of the package's
    captured_at  not a whole number of nanoseconds

Infinities: outside of any declared range; where none is declared they pass, and channels count them as under or over.
Cost: about 1 µs for a small float input with a range. Arrays need not be contiguous; the runtime copies those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import TensorIn
from edgewright_runtime.runtime import Array

LARGEST: Final = 64 << 20
SAMPLE_BYTES: Final = 16 << 10
STEPPED_BYTES: Final = 512

Checker = Callable[[Mapping[str, Array]], Array]


class Rejected(RequestError):
    """`reason` is what the windows count."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def checker(tensor: TensorIn) -> Checker:
    """A function that takes one declared input out of a request, checks it, and puts a batch of one in front.

    `argmax` finds the extremes because it costs a third of `max`; like it, it stops at a NaN. A range from 0 of float32
    is looked at once instead of twice: from 0 on, bits are ordered as the numbers are, and those of NaN and of negative
    numbers are larger than all. What does not pass so, such as -0.0, is looked at again.
    """
    name, dtype, shape = tensor.name, np.dtype(tensor.dtype), tensor.shape
    floating = dtype.kind == "f"
    low, high = tensor.valid or (None, None)
    if dtype.kind in "iu":  # what the dtype cannot hold needs no check
        info = np.iinfo(dtype)
        low = None if low is None or low <= info.min else low
        high = None if high is None or high >= info.max else high
    empty, ndarray, frombuffer, uint32 = 0 in shape, np.ndarray, np.frombuffer, np.dtype(np.uint32)
    bits = _bits(high) if dtype == np.float32 and low == 0 and high is not None else -1

    def check(inputs: Mapping[str, Array]) -> Array:
        try:
            x = inputs.get(name)
        except AttributeError:
            raise Rejected(
                "missing", f"expected a mapping of input names to arrays, got {type(inputs).__name__}"
            ) from None
        if x.__class__ is not ndarray:
            if not isinstance(x, ndarray):
                raise _unlike(tensor, inputs, x)
            x = np.asarray(x)  # of a subclass, such as a memory map: its numbers
        if (x.dtype is not dtype and x.dtype != dtype) or x.shape != shape:
            raise _unlike(tensor, inputs, x)
        if empty:
            return x[None]
        if bits >= 0:
            try:
                as_bits = frombuffer(x, uint32)  # flat, which `argmax` would have to make of it
            except ValueError:  # not contiguous
                as_bits = x.view(uint32)
            if as_bits.item(as_bits.argmax()) <= bits:
                return x[None]
        if high is not None or floating:
            top = x.item(x.argmax())
            if top != top:
                raise Rejected("nan", f"input {name!r}: expected numbers, got NaN")
            if high is not None and top > high:
                raise Rejected("range", f"input {name!r}: expected at most {high:g}, got {top}")
        if low is not None:
            bottom = x.item(x.argmin())
            if bottom < low:
                raise Rejected("range", f"input {name!r}: expected at least {low:g}, got {bottom}")
        return x[None]

    return check


def _bits(high: float) -> int:
    """Those of the largest float32 that is not above `high`, a number from 0 on."""
    with np.errstate(over="ignore"):
        most = np.float32(high)
    if float(most) > high:
        most = np.nextafter(most, np.float32(0))
    return int(most.view(np.uint32))


def unknown_input(inputs: Iterable[str], known: Iterable[str]) -> Rejected:
    extra = ", ".join(sorted(repr(name)[:40] for name in set(inputs) - set(known))[:4])
    return Rejected("unknown", f"expected no input but {', '.join(known)}, got also {extra}")


def unknown_context(context: object, contexts: Iterable[str]) -> Rejected:
    known = ", ".join(c for c in contexts if c) or "none"
    return Rejected("context", f"expected a context among {known}, got {repr(context)[:80]}")


def sampler(tensor: TensorIn) -> Callable[[Array], bytes]:
    """A function that takes enough of an input to notice that it is the one before: all of it up to `SAMPLE_BYTES`,
    every n-th number of a larger one. To copy 8 kB costs a tenth of reading them in steps."""
    size = np.dtype(tensor.dtype).itemsize * math.prod(tensor.shape)
    if size <= SAMPLE_BYTES:
        return np.ndarray.tobytes
    step = -(-size // STEPPED_BYTES)
    return lambda x: x.reshape(-1)[::step].tobytes()


def _unlike(tensor: TensorIn, inputs: Mapping[str, Array], x: object) -> Rejected:
    if x is None:
        got = ", ".join(sorted(map(str, inputs)))[:200] or "none"
        return Rejected("missing", f"expected an input {tensor.name!r}, got {got}")
    if not isinstance(x, np.ndarray) or x.dtype != np.dtype(tensor.dtype):
        found = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        return Rejected("dtype", f"input {tensor.name!r}: expected an array of {tensor.dtype}, got {found}")
    reason = "size" if x.nbytes > LARGEST and x.size > np.prod(tensor.shape) else "shape"
    return Rejected(reason, f"input {tensor.name!r}: expected one sample of shape {tensor.shape}, got {x.shape}")
