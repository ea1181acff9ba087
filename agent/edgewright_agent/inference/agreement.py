"""Agreement: whether two packages say the same of one sample, and how much surer one of them is. Pure.

Classes agree when the likeliest is the same, several labels when each is on the same side of one half. Found objects
agree, in whatever order they come, when every sure one of either side has a counterpart on the other: of its class, not
much less sure, and overlapping by half (intersection over union, as PASCAL VOC counts a find: Everingham et al., 2010).
All else agrees within WITHIN: of the largest value, or of the score itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgewright_contracts.manifest import Manifest, TensorOut
from edgewright_runtime.runtime import Array

WITHIN: Final = 0.05
SURE: Final = 0.5  # of a label of several, or of an object
OVERLAP: Final = 0.5

Floats = npt.NDArray[np.float64]


class Compared(NamedTuple):
    """The outputs that are compared, by their names in both packages: one, or those of found objects."""

    active: tuple[str, ...]
    candidate: tuple[str, ...]
    task: str
    role: str

    def verdict(self, a: Sequence[Array], b: Sequence[Array]) -> tuple[bool, int | None]:
        """(agreed, how much surer `b` is, in parts per million; None where nothing says how sure it is).

        Each array is one output of one sample, with a batch of one in front.
        """
        if self.role == "boxes":
            return _same_objects([x[0] for x in a], [y[0] for y in b]), _change(a[1], b[1])
        change = _change(a[0], b[0]) if self.role == "probabilities" else None
        if self.role == "probabilities" and self.task != "multilabel":
            return bool(a[0].argmax() == b[0].argmax()), change
        x, y = np.asarray(a[0], np.float64), np.asarray(b[0], np.float64)
        if self.role == "probabilities":
            return bool(((x >= SURE) == (y >= SURE)).all()), change
        within = WITHIN if self.role == "score" else WITHIN * float(np.abs(x).max(initial=0.0))
        return bool((np.abs(x - y) <= within).all()), None


def compared(active: Manifest, candidate: Manifest) -> Compared | None:
    """What both have in the same role and shape, probabilities before all else; None: nothing."""
    if active.task != candidate.task:
        return None
    if active.task == "detection":
        ours, theirs = _objects(active), _objects(candidate)
        if ours and len(ours) == len(theirs):
            return Compared(ours, theirs, active.task, "boxes")
    pairs = [
        (a, b)
        for a in active.outputs
        for b in candidate.outputs
        if a.role == b.role != "monitor" and a.shape == b.shape and a.dtype == b.dtype
    ]
    for a, b in sorted(pairs, key=lambda pair: pair[0].role != "probabilities"):
        return Compared((a.name,), (b.name,), active.task, a.role)
    return None


def _objects(manifest: Manifest) -> tuple[str, ...]:
    """Names of boxes [k, 4], scores [k] and, where there are any, classes [k]; none where they are not so."""
    by_role: dict[str, TensorOut] = {t.role: t for t in manifest.outputs}
    found = [by_role[role] for role in ("boxes", "score", "classes") if role in by_role]
    shapes = [t.shape for t in found]
    if len(found) < 2 or shapes[0] != (*shapes[1], 4) or any(len(shape) != 1 for shape in shapes[1:]):
        return ()
    return tuple(t.name for t in found)


def _same_objects(a: Sequence[Array], b: Sequence[Array]) -> bool:
    pairs = _overlap(np.asarray(a[0], np.float64), np.asarray(b[0], np.float64)) >= OVERLAP
    if len(a) > 2:
        pairs &= a[2][:, None] == b[2][None, :]
    x, y = np.asarray(a[1], np.float64), np.asarray(b[1], np.float64)
    near = pairs & (x >= SURE - WITHIN)[:, None] & (y >= SURE - WITHIN)[None, :]
    return _covered(near[x >= SURE]) and _covered(near.T[y >= SURE])


def _covered(pairs: npt.NDArray[np.bool_]) -> bool:
    """Whether each row has a column of its own: augmenting paths (Kuhn, 1955)."""
    taken: dict[int, int] = {}

    def placed(row: int, tried: set[int]) -> bool:
        for column in map(int, np.flatnonzero(pairs[row])):
            if column not in tried:
                tried.add(column)
                if column not in taken or placed(taken[column], tried):
                    taken[column] = row
                    return True
        return False

    return all(placed(row, set()) for row in range(len(pairs)))


def _overlap(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes [n, 4] and [m, 4], as x0, y0, x1, y1: [n, m]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.maximum(0.0, high - low), axis=2)
    union = _area(a)[:, None] + _area(b)[None, :] - common
    overlap: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlap


def _area(boxes: Floats) -> Floats:
    return np.asarray(np.prod(np.maximum(0.0, boxes[:, 2:] - boxes[:, :2]), axis=1), np.float64)


def _change(a: Array, b: Array) -> int | None:
    if not a.size or not b.size:
        return None
    x, y = float(a.max()), float(b.max())
    return round(1e6 * max(-1.0, min(1.0, y - x))) if isfinite(x) and isfinite(y) else None
