"""Making the golden vectors of `preprocess: host`, which `edgewright_runtime.golden` holds an application to.

Equal samples and tensors give equal bytes.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgewright_contracts.errors import RequestError
from edgewright_runtime.golden import Golden, Transform, differing

from ..packaging import npz
from ..rows import Array

GOLDEN_ROWS: Final = 32


def golden(transform: Transform, raw: Array, *, raw_name: str, name: str) -> bytes:
    """The file for the first GOLDEN_ROWS samples of `raw` [n, ...]; `name` is the package's input.

    Raises RequestError for a transform that gives other rows, another answer the second time, or another one for a
    sample alone, which is how a device has it.
    """
    rows = raw[:GOLDEN_ROWS]
    if not len(rows):
        raise RequestError("golden vectors: expected at least one raw sample, got none")
    tensor = transform(rows)
    for what, array in ((raw_name, rows), (name, tensor)):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise RequestError(
                f"golden vectors: {what!r} is {got}: expected an array of numbers; give text as UTF-8 bytes"
            )
    if tensor.ndim == 0 or len(tensor) != len(rows):
        raise RequestError(f"golden vectors: {len(rows)} samples gave {tensor.shape} of {name!r}: expected a row each")
    if not np.array_equal(tensor, transform(rows), equal_nan=tensor.dtype.kind == "f"):
        raise RequestError(f"golden vectors: the transform makes {name!r} anew each time; take the randomness out")
    alone = differing(Golden(name, rows, tensor), transform)
    if alone:
        raise RequestError(
            f"golden vectors: a sample alone gives another {name!r} than among others: {alone[0]}; a device has one at "
            "a time: let no row depend on another, and pad to a fixed length"
        )
    return npz({f"raw:{raw_name}": rows, f"tensor:{name}": tensor})
