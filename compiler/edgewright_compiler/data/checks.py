"""What may be wrong with data, found before anything learns from it.

Errors end the run: each names the split, the sample (by its file or line where known), the limit and the way out.
Warnings go on, to the model card. Leakage is an error: an equal row in two splits, or a group in two splits, gives the
test away; so does an unlabelled row that is judged on, and a reference row that was learned from. A view is more test
rows: it may share rows and groups with the test split, and with no other. Two passes over the
rows; about 1 s for 60,000 images of 28x28.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..rows import Data, Labelled, Rows
from .collection import origin, row_digests

IMBALANCE: Final = 20.0  # the largest class over the smallest, from which on accuracy says little
FEW: Final = 100  # test rows under which no useful bound can be shown
FEW_GROUPS: Final = 10  # in the test set, below which what befalls one group in seven is often in none
_BATCH: Final = 4096


@dataclass(frozen=True, slots=True)
class Examination:
    rows: tuple[int, int, int]  # train, validation, test
    warnings: tuple[str, ...]


def examine(data: Data, task: Task) -> Examination:
    """Raises RequestError for the first thing that is wrong."""
    splits = (data.train, data.validation, data.test)
    _distinct((*splits, *data.views))
    for rows in (*splits, *data.views):
        _whole(rows, data.train)
        _finite(rows)
        if task in _LABELS:
            _LABELS[task](rows, data)
    unlabelled = _aside("unlabelled", data.unlabelled, data.train)
    reference = _aside("reference", data.reference, data.train)
    duplicates = _leaks(data)
    _common(reference, (data.train,), "the drift baseline is counted on rows that no weight was trained on")
    judged = (data.validation, data.test, *data.views, *(() if reference is None else (reference,)))
    _common(unlabelled, judged, "unlabelled rows are learned from")
    sizes = (len(data.train), len(data.validation), len(data.test))
    return Examination(sizes, (*duplicates, *_spread(data, task), *_constant(data.train.inputs)))


def _distinct(parts: tuple[Labelled, ...]) -> None:
    names = [rows.name for rows in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(
            f"two splits or views are called {twice!r} (the names are {', '.join(names)}): expected a name of its own "
            "for each, as figures are told apart by it"
        )


def _aside(role: str, inputs: Rows | None, train: Labelled) -> Labelled | None:
    """Rows without labels, checked like the others."""
    if inputs is None:
        return None
    n = len(next(iter(inputs.values()), ()))
    if n == 0:
        raise RequestError(f"{role}: no row in it: expected at least one, or None")
    rows = Labelled(role, inputs, np.zeros(n))
    _whole(rows, train)
    _finite(rows)
    return rows


def _whole(rows: Labelled, train: Labelled) -> None:
    n = len(rows)
    if n == 0:
        raise RequestError(
            f"the split {rows.name!r} is empty: expected at least one sample in each of the three splits"
        )
    for name, array in rows.inputs.items():
        if len(array) != n:
            raise RequestError(
                f"{rows.name}: {len(array)} rows of {name!r} and {n} labels: expected one label a sample"
            )
        if name not in train.inputs or array.shape[1:] != train.inputs[name].shape[1:]:
            wanted = {key: a.shape[1:] for key, a in train.inputs.items()}
            raise RequestError(
                f"{rows.name}: samples {name!r} of shape {array.shape[1:]}; training samples are {wanted}"
            )
        if array.dtype != train.inputs[name].dtype:
            raise RequestError(
                f"{rows.name}: {name!r} is {array.dtype}; training samples are {train.inputs[name].dtype}"
            )
    lost = [name for name in train.inputs if name not in rows.inputs]
    if lost:
        raise RequestError(f"{rows.name}: no input {lost[0]!r}; training samples have {', '.join(train.inputs)}")
    for what, values in (("groups", rows.groups), *rows.slices.items()):
        if values is not None and len(values) != n:
            raise RequestError(f"{rows.name}: {len(values)} values of {what} for {n} samples: expected one a sample")


def _finite(rows: Labelled) -> None:
    for name, array in rows.inputs.items():
        if array.dtype.kind != "f":
            continue
        for start in range(0, len(array), _BATCH):
            bad = ~np.isfinite(array[start : start + _BATCH])
            if bad.any():
                i, *at = (int(x) for x in np.argwhere(bad)[0])
                value = array[(start + i, *at)]
                inside = f" in {name!r}" if len(rows.inputs) > 1 else ""
                samples = int(bad.reshape(len(bad), -1).any(axis=1).sum())
                raise RequestError(
                    f"{origin(rows, start + i)}: {value}{inside} at {tuple(at)}: expected finite numbers; remove "
                    f"the sample or fill the gap ({samples} such samples among these)"
                )


def _numeric(rows: Labelled) -> npt.NDArray[np.number]:
    if rows.labels.dtype.kind not in "iuf":
        raise RequestError(f"{rows.name}: expected labels in numbers, got dtype {rows.labels.dtype}")
    return rows.labels  # type: ignore[return-value]


def _classes(rows: Labelled, data: Data) -> None:
    y, k = _numeric(rows), len(data.labels)
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise RequestError(f"{rows.name}: expected class indices int64 [n], got {y.dtype} of shape {y.shape}")
    if k < 2:
        raise RequestError(
            f"one class only ({', '.join(data.labels) or 'none'}): nothing can be told apart; expected at least two "
            "(with one class of good samples and no other, use the task anomaly)"
        )
    _first(rows, (y < 0) | (y >= k), lambda i: f"label {y[i]}: expected a class from 0 to {k - 1}")
    if rows is data.train:
        seen = np.bincount(y.astype(np.int64), minlength=k)
        if (seen == 0).any():
            lost = [data.labels[c] for c in np.flatnonzero(seen == 0)]
            raise RequestError(
                f"no training sample of class {', '.join(lost[:5])}: expected at least one of each of {k} classes; add "
                "samples, or remove the class from the other splits"
            )


def _marks(rows: Labelled, data: Data) -> None:
    y, k = _numeric(rows), len(data.labels)
    if y.ndim != 2 or (k and y.shape[1] != k):
        raise RequestError(f"{rows.name}: expected 0 or 1 for each of {k} labels, [n, {k}], got shape {y.shape}")
    bad = np.asarray((y != 0) & (y != 1))  # NaN, too
    _first(rows, bad.any(axis=1).reshape(-1), lambda i: f"labels {y[i].tolist()}: expected 0 or 1 for each")
    if rows is data.train:
        share = y.mean(axis=0, dtype=np.float64)
        never = [data.labels[c] if data.labels else str(c) for c in np.flatnonzero((share == 0) | (share == 1))]
        if never:
            raise RequestError(
                f"label {never[0]!r} is the same in every training sample: remove its column, or add samples"
            )


def _numbers(rows: Labelled, data: Data) -> None:
    y = _numeric(rows)
    if y.ndim != 2 or y.dtype.kind != "f":
        raise RequestError(f"{rows.name}: expected targets float32 [n, k], got {y.dtype} of shape {y.shape}")
    _first(rows, ~np.isfinite(y).all(axis=1).reshape(-1), lambda i: f"target {y[i].tolist()}: expected finite numbers")
    if rows is data.train and (y.std(axis=0) == 0).any():
        column = int(np.flatnonzero(y.std(axis=0) == 0)[0])
        raise RequestError(f"target {column} is {y[0, column]:g} in every training sample: there is nothing to learn")


def _anomalies(rows: Labelled, data: Data) -> None:
    y = _numeric(rows)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise RequestError(f"{rows.name}: expected int64 [n], 1 for an anomaly, got {y.dtype} of shape {y.shape}")
    _first(rows, (y != 0) & (y != 1), lambda i: f"label {y[i]}: expected 0 (normal) or 1 (anomaly)")
    if rows is data.train:
        _first(rows, y == 1, lambda _: "an anomaly among the training samples: expected normal ones only")
    elif rows in (data.validation, data.test) and (y.min() == y.max()):
        what = "no anomaly" if y[0] == 0 else "only anomalies"
        raise RequestError(f"the split {rows.name!r} has {what}: nothing can be scored; expected both kinds in it")


def _boxes(rows: Labelled, data: Data) -> None:
    y, k = _numeric(rows), len(data.labels)
    if y.ndim != 3 or y.shape[2] != 5 or y.dtype.kind != "f":
        raise RequestError(
            f"{rows.name}: expected boxes float32 [n, m, 5] (class, x0, y0, x1, y1 as shares), got {y.dtype} {y.shape}"
        )
    real = y[..., 0] >= 0
    c, box = y[..., 0], y[..., 1:]
    _first(
        rows,
        (real & ((c >= k) | (c != np.rint(c)))).any(axis=1).reshape(-1),
        lambda _: f"a box of a class above {k - 1}",
    )
    upright = (
        (box[..., 0] < box[..., 2]) & (box[..., 1] < box[..., 3]) & (box >= -1e-6).all(-1) & (box <= 1 + 1e-6).all(-1)
    )
    _first(
        rows,
        (real & ~upright).any(axis=1).reshape(-1),
        lambda i: f"box {box[i][real[i] & ~upright[i]][0].tolist()}: expected 0 <= x0 < x1 <= 1, likewise y (shares)",
    )
    if rows is data.train and not real.any():
        raise RequestError("no box in any training sample: there is nothing to learn")


_LABELS: Final[dict[str, Callable[[Labelled, Data], None]]] = {
    "classification": _classes,
    "multilabel": _marks,
    "regression": _numbers,
    "anomaly": _anomalies,
    "detection": _boxes,
}


def _first(rows: Labelled, bad: npt.NDArray[np.bool_], say: Callable[[int], str]) -> None:
    at = np.flatnonzero(bad)
    if at.size:
        raise RequestError(
            f"{origin(rows, int(at[0]))}: {say(int(at[0]))} ({at.size} of {len(rows)} samples of {rows.name})"
        )


def _leaks(data: Data) -> list[str]:
    splits = (data.train, data.validation, data.test)
    order = tuple(data.train.inputs)  # a digest depends on the order of the inputs, equality does not
    seen: dict[bytes, tuple[Labelled, int]] = {}
    repeats, disagreements, example = 0, 0, ""
    for rows in splits:
        for i, digest in enumerate(row_digests({name: rows.inputs[name] for name in order})):
            where = seen.setdefault(digest, (rows, i))
            if where[0] is not rows:
                raise _shared(rows, i, *where)
            if where[1] != i:
                repeats += 1
                if not np.array_equal(rows.labels[i], rows.labels[where[1]]):
                    disagreements += 1
                    example = example or f"{origin(rows, i)} and {origin(*where)}"
    for view in data.views:
        for i, digest in enumerate(row_digests({name: view.inputs[name] for name in order})):
            where = seen.get(digest, (data.test, -1))
            if where[0] is not data.test:
                raise _shared(view, i, *where)
    owner: dict[object, Labelled] = {}
    for rows in (*splits, *data.views):
        beside = data.test if rows in data.views else rows
        for group in () if rows.groups is None else dict.fromkeys(rows.groups.tolist()):
            if owner.setdefault(group, beside) is not beside:
                raise RequestError(
                    f"leak: group {group!r} is in {owner[group].name} and in {rows.name}: expected every group in one "
                    "split; move its samples, or leave the split to the compiler"
                )
    found = [f"{repeats} samples are exact duplicates of another in the same split"] if repeats else []
    if disagreements:
        found.append(f"{disagreements} exact duplicates have different labels, as {example}")
    return found


def _shared(rows: Labelled, i: int, other: Labelled, j: int) -> RequestError:
    return RequestError(
        f"leak: {origin(rows, i)} in {rows.name} is the same sample as {origin(other, j)} in {other.name}: what was "
        "learned would be tested; remove one of the two, or leave the split to the compiler"
    )


def _common(rows: Labelled | None, others: tuple[Labelled, ...], why: str) -> None:
    """Raises RequestError for a row that is among the others, too."""
    if rows is None:
        return
    order = tuple(rows.inputs)  # a digest depends on the order of the inputs, equality does not
    seen = {digest: i for i, digest in reversed(list(enumerate(row_digests(rows.inputs))))}
    for other in others:
        for i, digest in enumerate(row_digests({name: other.inputs[name] for name in order})):
            if digest in seen:
                raise RequestError(
                    f"leak: {origin(rows, seen[digest])} is the same sample as {origin(other, i)} in {other.name}: "
                    f"{why}; remove one of the two"
                )


def _spread(data: Data, task: Task) -> list[str]:
    found = []
    if task == "classification":
        seen = np.bincount(data.train.labels.astype(np.int64), minlength=len(data.labels))
        if seen.max() > IMBALANCE * seen.min():
            small, large = data.labels[int(seen.argmin())], data.labels[int(seen.argmax())]
            found.append(
                f"classes are uneven: {seen.max()} training samples of {large!r}, {seen.min()} of {small!r}; accuracy "
                "hides the small one, macro_f1 does not"
            )
        absent = [n for c, n in enumerate(data.labels) if not (data.test.labels == c).any()]
        if absent:
            found.append(f"no test sample of class {', '.join(absent[:5])}: nothing is known about it")
    if len(data.test) < FEW:
        found.append(f"{len(data.test)} test samples: a bound on the loss is wide below {FEW}")
    if data.test.groups is not None and (groups := len(np.unique(data.test.groups))) < FEW_GROUPS:
        found.append(
            f"{groups} {'group' if groups == 1 else 'groups'} in the test samples: what befalls one group in seven may "
            f"be in none of them, and no bound on the loss shows it; collect {FEW_GROUPS} or more"
        )
    return found


def _constant(inputs: Rows) -> list[str]:
    found = []
    for name, array in inputs.items():
        if array.dtype.kind == "f" and array.ndim in (2, 3):
            flat = array.reshape(-1, array.shape[-1])
            still = np.flatnonzero(flat.min(axis=0) == flat.max(axis=0))
            if still.size:
                found.append(f"{name}: {still.size} columns never vary in training, the first is column {still[0]}")
    return found
