"""Reference counts: the channels of a package, and what each variant's own file counts on the reference rows.

Edges are cut once, from the float ONNX variant, so that one `edge_hash` covers the package and counts of its variants
compare. Counts are each variant's own: rounding to int8 shifts an embedding, and that is not drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.baseline import Baseline, make
from edgewright_contracts.binning import quantile_edges
from edgewright_contracts.channels import Binner, Channel, extract
from edgewright_contracts.errors import ContractError
from edgewright_runtime.runtime import Session

from ..rows import Rows
from .features import Feature

Outputs = dict[str, npt.NDArray[np.generic]]

BATCH: Final = 512
ELEMENTS: Final = 2**22  # of one batch of inputs: a net's maps take many times their room


def run(session: Session, rows: Rows, *, alone: bool = False) -> Outputs:
    """All outputs for all rows, in batches, or each row alone as a device runs it: a file that finds its ranges when it
    runs answers a row differently beside others."""
    parts = [session.run(batch) for batch in batches(rows, alone=alone)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cut(features: tuple[Feature, ...], outputs: Outputs) -> tuple[Channel, ...]:
    """Channels with edges at the quantiles of `outputs`, in the order of `features`. A numeric feature that never
    varies has no quantiles and is left out. Raises ContractError when no numeric feature varies at all.
    """
    channels = []
    for f in features:
        edges: tuple[float, ...] = ()
        if f.kind == "numeric":
            x = np.asarray(extract(f.source, outputs), np.float32)
            if np.unique(x[np.isfinite(x)]).size < 2:
                continue
            edges = quantile_edges(x)
        channels.append(Channel(f.name, f.group, f.kind, f.source, edges, f.values))
    if not any(c.kind == "numeric" for c in channels):
        rows = len(next(iter(outputs.values())))
        raise ContractError("reference", "rows that differ in one monitored number at least", f"{rows} alike")
    return tuple(channels)


def count(channels: tuple[Channel, ...], outputs: Outputs) -> Baseline:
    """The baseline of one variant from its own outputs on the reference rows."""
    binner = Binner(channels)
    binner.add(outputs)
    return make(channels, binner.take(), len(next(iter(outputs.values()))))


def batches(rows: Rows, *, alone: bool = False) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    n = len(next(iter(rows.values())))
    size = 1 if alone else batch_size(sum(math.prod(array.shape[1:]) for array in rows.values()))
    for start in range(0, n, size):
        yield {name: array[start : start + size] for name, array in rows.items()}


def batch_size(elements: int) -> int:
    """How many samples of so many elements are run at once."""
    return max(1, min(BATCH, ELEMENTS // max(1, elements)))
