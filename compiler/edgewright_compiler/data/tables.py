"""Tables of numbers (CSV, Parquet) and archives of arrays (npz).

A table has a header. Columns named as in `targets` say what a sample is; `window` joins consecutive lines of one value
to one sample [steps, columns], in the order of the lines, all windows equally long; without it every line is a sample.
Every other column is measured: a number in every line. A directory of tables is one table, file after file; windows do
not reach across files.

An npz has `x` and `y`, and may have `groups`, `labels` (names), `unlabelled`, and for a split of one's own `x_train`,
`y_train`, `groups_train`, `x_validation` ...

Messages name rows as the user finds them: a line of a CSV as editors count (from 1, with the header), a row of Parquet
and an index of an array from 0.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.manifest import Task

from ..rows import Array, Labelled
from .collection import ALL, SPLITS, Collection, kind_of, raw, split_name, text_of
from .targets import NORMAL, Said, collection, natural, numbers, reserved

TABLES: Final = (".csv", ".parquet")
_WINDOW: Final = "window"
_SEPARATORS: Final = (";", "\t", "|")  # that a header of a single column shows
_PANDAS_INDEX: Final = re.compile(r"__index_level_\d+__")  # the numbers of lines that it writes beside the columns


def table(files: Sequence[Path], task: Task) -> Collection:
    """One collection of all `files`. Raises RequestError naming file, line and column; Unavailable without pyarrow."""
    header: list[str] = []
    columns: dict[str, list[str]] = {}
    origins: list[str] = []
    starts: list[int] = []
    for file in files:
        names, lines, where = _parquet(file) if file.suffix == ".parquet" else _csv(file)
        if header and names != header:
            odd = sorted(set(names) ^ set(header)) or ["the order of its columns"]
            raise RequestError(f"{file}: expected the columns of {files[0]}, but {odd[0]!r} differs")
        header = header or names
        starts.append(len(origins))
        origins += where
        for name in names:
            columns.setdefault(name, []).extend(lines[name])
    place = str(files[0] if len(files) == 1 else files[0].parent)
    if not origins:
        raise RequestError(f"{place}: no line under the header")
    measured = [c for c in header if not reserved(c) and c != _WINDOW]
    if not measured:
        raise RequestError(f"{place}: no column of measurements: got {', '.join(header)}")
    x = np.stack([numbers(columns[c], lambda i, c=c: f"{origins[i]}, column {c!r}") for c in measured], axis=1)  # type: ignore[misc]
    bad = np.argwhere(~np.isfinite(x))
    if bad.size:
        i, c = bad[0]
        raise RequestError(
            f"{origins[i]}, column {measured[c]!r}: expected a finite number (float32, 3.4e38 at most), got "
            f"{columns[measured[c]][i] or 'an empty cell'!r} ({len(bad)} such cells); fill them, or remove the samples"
        )
    said = {c: v for c, v in columns.items() if reserved(c)}
    note = f"Columns: {', '.join(measured)}."
    if _WINDOW not in header:
        return collection(task, {"row": x}, Said(said, tuple(origins)), place, (note,))
    first, length = _windows(columns[_WINDOW], set(starts), origins)
    for name, values in said.items():
        for start in first:
            for i in range(start, start + length):
                if values[i] != values[start]:
                    raise RequestError(
                        f"{origins[i]}, column {name!r}: {values[i]!r}, but the window began with {values[start]!r}: "
                        "expected one value a window"
                    )
    heads = {name: [values[i] for i in first] for name, values in said.items()}
    windows = Said(heads, tuple(origins[i] for i in first))
    return collection(task, {"window": x.reshape(len(first), length, -1)}, windows, place, (note,))


def _windows(ids: Sequence[str], starts: set[int], origins: Sequence[str]) -> tuple[list[int], int]:
    """The first line of each window, and how many lines each has."""
    first = [i for i in range(len(ids)) if i in starts or ids[i] != ids[i - 1]]
    lengths = np.diff([*first, len(ids)])
    length = int(np.bincount(lengths).argmax())
    odd = np.flatnonzero(lengths != length)
    if odd.size:
        i = first[int(odd[0])]
        raise RequestError(
            f"{origins[i]}: the window {ids[i]!r} has {lengths[odd[0]]} lines, most have {length}: expected one "
            "length, and its lines next to each other"
        )
    return first, length


def _csv(file: Path) -> tuple[list[str], dict[str, list[str]], list[str]]:
    lines = csv.reader(io.StringIO(text_of(file), newline=""))
    try:
        header = [name.strip() for name in next(lines, [])]
        if len(header) == 1 and (other := next((s for s in _SEPARATORS if s in header[0]), None)):
            raise RequestError(f"{file}: one column {header[0]!r}: separated by {other!r}? expected ','")
        if not header or len(set(header)) < len(header):
            raise RequestError(
                f"{file}: expected a header of distinct column names, got {', '.join(header) or 'nothing'}"
            )
        columns: list[list[str]] = [[] for _ in header]
        origins = []
        for line in lines:
            if not line:
                continue
            if len(line) != len(header):
                raise RequestError(f"{file}:{lines.line_num}: {len(line)} cells under {len(header)} columns")
            origins.append(f"{file}:{lines.line_num}")
            for column, cell in zip(columns, line, strict=True):
                column.append(cell.strip())
    except csv.Error as error:
        raise RequestError(f"{file}:{lines.line_num}: not a table of CSV ({error})") from None
    return header, dict(zip(header, columns, strict=True)), origins


def _parquet(file: Path) -> tuple[list[str], dict[str, list[str]], list[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise Unavailable(
            f"{file}: reading Parquet needs pyarrow: pip install 'edgewright[parquet]', or save the table as CSV"
        ) from None
    try:
        found: Any = parquet.ParquetFile(str(file)).read()  # read_table would take columns from names of folders
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"{file}: not a table of Parquet ({_line(error)})") from None
    header = [name.strip() for name in found.column_names]
    if len(set(header)) < len(header):
        raise RequestError(f"{file}: expected distinct column names, got {', '.join(header)}")
    columns = {
        name: [_cell(v) for v in column.to_pylist()]
        for name, column in zip(header, found.columns, strict=True)
        if not _PANDAS_INDEX.fullmatch(name)
    }
    return list(columns), columns, [f"{file} row {i} (from 0)" for i in range(found.num_rows)]


def _cell(value: object) -> str:
    """As a CSV would have it, with every digit; yes and no as 1 and 0."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value).strip()


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


UNREADABLE: Final = (ValueError, TypeError, OSError, zipfile.BadZipFile, EOFError)


def not_arrays(file: Path | str, error: Exception) -> RequestError:
    """For what np.load raises; its own text would tell how to run a pickle of a stranger."""
    why = f" ({error})" if isinstance(error, OSError | zipfile.BadZipFile) else ""
    return RequestError(
        f"{file}: not an archive of arrays{why}: expected what numpy.savez writes, without pickles of Python objects"
    )


def npz(file: Path, task: Task) -> Collection:
    """Raises RequestError for an archive without `x` and `y`, or with pickles in it."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise not_arrays(file, error) from None
    return arrays_of(arrays, task, str(file))


def arrays_of(arrays: Mapping[str, Any], task: Task, where: str) -> Collection:
    """A collection out of the names that an npz may have."""
    splits: dict[str, dict[str, Any]] = {}
    called: dict[tuple[str, str], str] = {}  # the user's name of an array, by split and what it is
    rest: dict[str, Any] = {}
    for name, array in arrays.items():
        head, _, tail = name.partition("_")
        if head not in ("x", "y", "groups"):
            rest[name] = array
            continue
        split = split_name(tail, f"{where}: the array {name!r}") if tail else ALL
        other = called.setdefault((split, head), name)
        if other != name:
            raise RequestError(f"{where}: both {other!r} and {name!r} are the {head} of {split}: expected one of them")
        splits.setdefault(split, {})[head] = array
    unknown = [name for name in rest if name not in ("labels", "unlabelled")]
    if unknown or not splits:
        raise RequestError(
            f"{where}: expected the arrays x and y (and groups, labels, unlabelled, x_train, x_validation, ...), got "
            f"{', '.join(arrays) or 'none'}"
        )
    if ALL in splits and "train" in splits:
        raise RequestError(
            f"{where}: arrays of training rows by two names, x or y and those of `train`: expected one pair"
        )
    said = rest.get("labels")
    names = None if said is None else tuple(str(name) for name in np.asarray(said).tolist())
    made: dict[str, Labelled] = {}
    for name, part in splits.items():
        if "x" not in part or "y" not in part:
            raise RequestError(f"{where}: the split {name!r} has {', '.join(part)}: expected x and y")
        x = raw(part["x"], f"{where}: x of {name!r}")
        y = np.asarray(part["y"])
        if y.ndim == 0 or len(y) != len(x):
            raise RequestError(
                f"{where}: {len(x)} samples and {y.size} labels in {name!r}: expected one label a sample"
            )
        origins = tuple(f"{where} {called[name, 'x']}[{i}]" for i in range(len(x)))
        # x beside x_test: x is what is learned from
        role = "train" if name == ALL and len(splits) > 1 else name
        made[role] = Labelled(role, {_input_name(x, where): x}, y, part.get("groups"), origins=origins)
    made, names = _numbered(made, names, task, where)
    unlabelled = rest.get("unlabelled")
    more = None
    if unlabelled is not None:
        array = raw(unlabelled, f"{where}: unlabelled")
        more = {_input_name(array, where): array}
    if ALL not in made and "train" not in made:
        raise RequestError(f"{where}: expected x_train beside {', '.join(f'x_{s}' for s in SPLITS if s in made)}")
    return Collection(made, names, more)


def _input_name(x: Array, where: str) -> str:
    kind = kind_of(x, where)
    return {"series": "window", "vector": "row"}.get(kind, kind)


def _numbered(
    splits: dict[str, Labelled], names: tuple[str, ...] | None, task: Task, where: str
) -> tuple[dict[str, Labelled], tuple[str, ...]]:
    """Labels in the dtype and shape of the task; class names in text are numbered."""

    def each(change: Any) -> dict[str, Labelled]:
        return {n: Labelled(n, r.inputs, change(r.labels), r.groups, r.slices, r.origins) for n, r in splits.items()}

    text = any(r.labels.dtype.kind in "UO" for r in splits.values())
    if task == "anomaly":
        if text:
            return each(lambda y: np.array([str(v).lower() not in NORMAL for v in y], np.int64)), ("normal", "anomaly")
        return each(lambda y: y.astype(np.int64)), ("normal", "anomaly")
    if task == "classification":
        if text:
            names = names or natural([str(v) for r in splits.values() for v in r.labels.tolist()])
            place = {name: i for i, name in enumerate(names)}
            lost = sorted({str(v) for r in splits.values() for v in r.labels.tolist()} - set(place))
            if lost:
                raise RequestError(f"{where}: label {lost[0]!r} is not among `labels` ({', '.join(names)})")
            return each(lambda y: np.array([place[str(v)] for v in y], np.int64)), names
        odd = [n for n, r in splits.items() if r.labels.dtype.kind == "f" and (r.labels != np.floor(r.labels)).any()]
        if odd or any(r.labels.dtype.kind not in "iufb" for r in splits.values()):
            raise RequestError(f"{where}: y holds no class indices or names; for numbers use the task regress")
        return each(lambda y: y.astype(np.int64)), names or _counted(splits)
    if text:
        raise RequestError(f"{where}: y holds text: expected numbers for the task {task}")
    if task == "regression":
        return each(lambda y: y.astype(np.float32).reshape(len(y), -1)), ()
    width = next(iter(splits.values())).labels
    if task == "multilabel":
        count = width.shape[1] if width.ndim == 2 else 0
        return each(lambda y: y.astype(np.float32)), names or tuple(str(i) for i in range(count))
    top = max(int(r.labels[..., 0].max(initial=-1)) if r.labels.ndim == 3 else -1 for r in splits.values())
    return each(lambda y: y.astype(np.float32)), names or tuple(str(i) for i in range(top + 1))


def _counted(splits: dict[str, Labelled]) -> tuple[str, ...]:
    """Names of classes that are numbers: those that there is something to learn of, from 0 to the last before a gap.
    Raises RequestError for the first label beyond them."""
    learned = splits[ALL] if ALL in splits else splits.get("train")
    known = set() if learned is None else set(np.unique(learned.labels).tolist())
    size = next(i for i in range(len(known) + 1) if i not in known)
    for rows in splits.values():
        y = np.asarray(rows.labels, np.float64)
        beyond = np.flatnonzero(y >= size)
        if beyond.size:
            i = int(beyond[0])
            expected = f"labels from 0 to {size - 1}" if size else "labels from 0"
            raise RequestError(
                f"{rows.origins[i]}: label {y[i]:g}, but no {'' if ALL in splits else 'training '}sample has "
                f"label {size}: expected {expected}; correct it, or add samples of every class below it"
            )
    return tuple(str(i) for i in range(size))
