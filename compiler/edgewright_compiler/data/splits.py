"""Three splits of one collection: nothing that belongs together is torn apart, and classes keep their shares.

What belongs together: rows of one group (a person, a recording, a machine), and rows that are equal byte for byte: a
duplicate on both sides would be an answer that the test gives away. Units of both kinds are joined (union-find).

Units are dealt in an order drawn from the seed, large ones first, each to the split that lacks most of its classes
(Sechidis, Tsoumakas, Vlahavas 2011, iterative stratification, here for units). O(units × classes); no row is copied
before the end. Equal (rows, seed, shares) give equal splits.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import RequestError

from ..rows import Array, Labelled
from .collection import SPLITS, row_digests

SHARES: Final = (0.7, 0.15, 0.15)
_FEWEST: Final = 10


def three_way(
    labelled: Labelled,
    *,
    seed: int,
    shares: tuple[float, ...] = SHARES,
    stratify: npt.NDArray[np.int64] | None = None,
    groups: Array | None = None,
    names: tuple[str, ...] = SPLITS,
) -> tuple[Labelled, ...]:
    """One `Labelled` for each of `shares`, in their order; rows keep theirs. `stratify` is a class index [n].

    `groups` are the rows' own unless given. Raises RequestError when there are too few rows, or groups, for all splits.
    """
    n = len(labelled)
    if n < _FEWEST:
        raise RequestError(f"{labelled.name}: {n} samples cannot be split: expected at least {_FEWEST}")
    keys = labelled.groups if groups is None else groups
    unit = units(labelled, keys)
    count = int(unit.max()) + 1
    if count < len(shares) and keys is None:
        raise RequestError(
            f"{labelled.name}: {count} distinct among {n} samples, the rest are exact duplicates: expected at least "
            f"{len(shares)}, as duplicates stay in one split"
        )
    if count < len(shares):
        raise RequestError(
            f"{labelled.name}: {count} groups cannot fill {len(shares)} splits without tearing one apart: expected at "
            f"least {len(shares)} groups (or duplicates of one sample removed), or a split of your own"
        )
    classes = np.zeros(n, np.int64) if stratify is None else np.unique(stratify, return_inverse=True)[1]
    side = _dealt(unit, classes, np.asarray(shares) / sum(shares), np.random.default_rng([seed, crc32(b"split")]))
    return tuple(labelled.take(np.flatnonzero(side[unit] == i), name) for i, name in enumerate(names))


def units(labelled: Labelled, groups: Array | None) -> npt.NDArray[np.int64]:
    """The unit of each row, numbered in order of appearance."""
    parent = list(range(len(labelled)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[object, int] = {}
    keys: list[object] = [("row", d) for d in row_digests(labelled.inputs)]
    for i, key in enumerate(keys):
        parent[root(i)] = root(first.setdefault(key, i))
    for i, group in enumerate(() if groups is None else groups.tolist()):
        parent[root(i)] = root(first.setdefault(("group", group), i))
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(i), len(numbers)) for i in range(len(labelled))], np.int64)


def _dealt(
    unit: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    shares: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """The split of each unit."""
    count, width = int(unit.max()) + 1, int(classes.max()) + 1
    table = np.zeros((count, width))
    np.add.at(table, (unit, classes), 1)
    total = table.sum(axis=0)
    # [splits, classes] rows still wanted; a class of few rows wants one everywhere before training gets its share
    lacking = np.maximum(shares[:, None] * total, total >= len(shares))
    wanted = lacking.copy()
    order = rng.permutation(count)
    order = order[np.argsort(-table[order].sum(axis=1), kind="stable")]
    side = np.zeros(count, np.int64)
    for at in order:
        # Of the classes in this unit, the one that is rarest of all decides, then the whole need of a split.
        present = np.flatnonzero(table[at])
        rarest = present[wanted[:, present].sum(axis=0).argmin()]
        need = np.stack([lacking[:, rarest], lacking.sum(axis=1)])
        best = int(np.lexsort((-need[1], -np.round(need[0], 9)))[0])
        side[at] = best
        lacking[best] -= table[at]
    for empty in np.setdiff1d(np.arange(len(shares)), side):  # a split that got nothing takes the smallest unit
        sizes = np.where(np.bincount(side, minlength=len(shares))[side] > 1, table.sum(axis=1), np.inf)
        side[int(sizes.argmin())] = empty
    return side
