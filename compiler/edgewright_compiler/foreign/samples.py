"""Rows for a file that nobody here trained: the user's own, or synthetic ones.

`real` rows set ranges, count the reference and show what a smaller form costs; synthetic ones only show that the file
runs, so nothing that needs to know what inputs look like is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..data.checks import examine
from ..data.collection import fingerprint
from ..data.loaders import function
from ..data.opening import open_data
from ..data.tables import UNREADABLE, not_arrays
from ..rows import Array, Labelled, Rows, take
from .borders import Border

SYNTHETIC: Final = 64
CALIBRATION: Final = 256
REFERENCE: Final = 4000  # rows that are counted, at most
SPLIT_SEED: Final = 0


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """`calibration` sets ranges, by `judging` a form is chosen, `reference` is counted and self-tested with.

    `validation` and `test` are there when there are labels: `judging` is then of validation rows alone, so that the
    bound, which is of test rows, is of rows that have chosen nothing.
    """

    calibration: Rows
    judging: Rows
    reference: Rows
    validation: Labelled | None
    test: Labelled | None
    real: bool
    labels: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]


def synthetic(inputs: Sequence[Border], seed: int, rows: int = SYNTHETIC) -> dict[str, Array]:
    """Uniform numbers in [0, 1) for images, normal ones for other floats, all levels of bytes, 0 and 1 for integers."""
    made: dict[str, Array] = {}
    for b in inputs:
        rng = np.random.default_rng([seed, crc32(b.name.encode())])
        shape = (rows, *b.shape)
        if b.dtype in ("uint8", "int8"):
            info = np.iinfo(b.dtype)
            made[b.name] = rng.integers(info.min, info.max + 1, shape).astype(b.dtype)
        elif b.dtype.startswith("float"):
            image = len(b.shape) == 3
            made[b.name] = (rng.random(shape) if image else rng.standard_normal(shape)).astype(b.dtype)
        else:
            made[b.name] = rng.integers(0, 2, shape).astype(b.dtype)
    return made


def given(place: str, inputs: Sequence[Border], task: Task) -> Samples:
    """The user's rows. Raises RequestError when they do not fit the file's inputs.

    `place` is an npz, or a function that returns a dict, with one array [n, ...] for every input by its name (no
    labels needed); or, for a file of one input, anything that `open_data` reads.
    """
    arrays = _by_input(place, {b.name for b in inputs})
    if arrays is not None:
        rows = {b.name: _fitting(np.asarray(arrays[b.name]), b, place) for b in inputs}
        counts = {name: len(array) for name, array in rows.items()}
        if len(set(counts.values())) != 1 or min(counts.values()) < 2:
            raise RequestError(f"{place}: expected as many rows of every input, and at least two, got {counts}")
        n = next(iter(counts.values()))
        order = np.random.default_rng([SPLIT_SEED, crc32(b"rows")]).permutation(n)
        half = min(CALIBRATION, n // 2)
        note = f"Rows: {n} without labels, {half} of them calibrate: what accuracy a smaller form costs is not known."
        reference = take(rows, np.sort(order[half:])[:REFERENCE])
        calibration = take(rows, np.sort(order[:half]))
        return Samples(calibration, reference, reference, None, None, True, (), fingerprint(rows), (note,))
    if len(inputs) != 1:
        raise RequestError(
            f"{place}: the file has the inputs {', '.join(b.name for b in inputs)}: give an npz, or a function that "
            "returns a dict, with one array of rows for each of them"
        )
    (border,) = inputs
    data = open_data(place, task, seed=SPLIT_SEED)
    splits = []
    for rows_ in (data.train, data.validation, data.test):
        (array,) = rows_.inputs.values()
        fitted = {border.name: _fitting(array, border, place)}
        splits.append(Labelled(rows_.name, fitted, rows_.labels, rows_.groups, rows_.slices, rows_.origins))
    train, validation, test = splits
    held = {border.name: np.concatenate([validation.inputs[border.name], test.inputs[border.name]])[:REFERENCE]}
    some = train.take(slice(0, len(train), max(1, len(train) // CALIBRATION))).take(slice(0, CALIBRATION))
    notes = (*data.notes, *(f"Noticed in the data: {warning}." for warning in examine(data, task).warnings))
    return Samples(some.inputs, validation.inputs, held, validation, test, True, data.labels, data.fingerprint, notes)


def _by_input(place: str, names: set[str]) -> Mapping[str, Any] | None:
    """Arrays by the file's own input names; None when the place holds something else."""
    if ".py:" in place:
        found = function(place)()
        return found if isinstance(found, dict) and _only_rows(names, set(found)) else None
    if not place.endswith(".npz") or not Path(place).is_file():
        return None
    try:
        with np.load(place, allow_pickle=False) as archive:
            fits = _only_rows(names, set(archive.files))
            return {name: archive[name] for name in names} if fits else None
    except UNREADABLE as error:
        raise not_arrays(place, error) from None


def _only_rows(names: set[str], found: set[str]) -> bool:
    """Every input is there, and nothing that says labels: an input may well be called x."""
    return names <= found and "y" not in found - names


def _fitting(array: Array, border: Border, place: str) -> Array:
    """`array` in the file's dtype, when that loses nothing and the sizes are the file's."""
    shape = tuple(int(n) for n in array.shape[1:])
    same = array.dtype.kind == np.dtype(border.dtype).kind or (array.dtype.kind in "iu" and border.dtype == "int64")
    if shape != border.shape or not same:
        raise RequestError(
            f"{place}: rows of {array.dtype} {list(shape)}, and input {border.name!r} takes {border.dtype} "
            f"{list(border.shape)}: write a function FILE.py:FUNCTION that returns rows as the file takes them "
            "(scaled, channels in its order)"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
        raise RequestError(f"{place} {border.name}[{at}]: NaN or infinity in it: expected finite numbers")
    return np.ascontiguousarray(array.astype(border.dtype, copy=False))
