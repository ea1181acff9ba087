"""From what a person names to checked rows in three splits: a folder, a table, an archive, or a function.

Guarantee: what is returned has passed `checks.examine`; equal files and seed give equal arrays and fingerprint. Rows
are read whole into memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..rows import Array, Data, Labelled, Rows
from .checks import examine
from .collection import ALL, SPLITS, Collection, fingerprint, raw
from .folders import IMAGES, SOUNDS, image_folder, samples, wav_folder
from .loaders import file_and_name, load_rows
from .splits import SHARES, three_way
from .tables import TABLES, npz, table


def open_data(place: str | Path, task: Task, *, seed: int) -> Data:
    """Raises RequestError for a place that holds no data, and for whatever `examine` finds; Unavailable."""
    return in_splits(read(place, task), task, seed=seed, place=place)


def in_splits(found: Data | Collection, task: Task, *, seed: int, place: str | Path) -> Data:
    """What was read, split where it has no split, and checked. Raises RequestError for whatever `examine` finds."""
    data = found if isinstance(found, Data) else _split(found, task, seed, str(place))
    data = replace(data, fingerprint=fingerprint(_parts(data)))
    try:
        examine(data, task)
    except RequestError as error:
        raise error if str(place) in str(error) else RequestError(f"{place}: {error}") from error
    return data


def read(place: str | Path, task: Task) -> Data | Collection:
    """Rows as they came. Raises RequestError for a place that holds no data; Unavailable."""
    found = _read(str(place), task)
    return _narrowed(found) if isinstance(found, Data) else found


def there(place: str) -> None:
    """Raises RequestError for a place where nothing is that could hold data."""
    path = Path(place)
    if ".py:" in place or place.endswith(".py"):
        file_and_name(place)
    elif not path.exists():
        raise RequestError(
            f"{path}: no such file or directory; expected a folder, .csv, .parquet, .npz, or FILE.py:FUNCTION"
        )
    elif not (path.is_dir() or path.is_file()):
        raise RequestError(
            f"{path}: neither a folder nor a file: expected a folder, .csv, .parquet, .npz, or FILE.py:FUNCTION"
        )


def _read(place: str, task: Task) -> Data | Collection:
    there(place)
    path = Path(place)
    if path.is_dir():
        kinds = {
            image_folder: samples(path, IMAGES),
            wav_folder: samples(path, SOUNDS),
            table: [p for p in samples(path, TABLES) if p.name != "labels.csv"],
        }
        opener, files = max(kinds.items(), key=lambda kind: len(kind[1]))
        if not files:
            raise RequestError(
                f"{path}: no data in it: expected images ({', '.join(IMAGES)}), .wav, .csv or .parquet files"
            )
        return table(files, task) if opener is table else opener(path, task)  # type: ignore[operator]
    if ".py:" in place or place.endswith(".py"):
        return load_rows(place, task)
    if path.suffix in TABLES:
        return table([path], task)
    if path.suffix == ".npz":
        return npz(path, task)
    raise RequestError(f"{path}: expected a folder, .csv, .parquet, .npz, or FILE.py:FUNCTION")


def _split(found: Collection, task: Task, seed: int, place: str) -> Data:
    have = dict(found.splits)
    if set(have) == set(SPLITS):
        train, validation, test = (have[s] for s in SPLITS)
        how = "Split as it came"
    elif ALL in have:
        train, validation, test = _cut(replace(have[ALL], name=place), task, seed, SPLITS, SHARES)
        how = f"Split by the compiler, seed {seed}" + (", group by group" if have[ALL].groups is not None else "")
    else:
        lost = [s for s in SPLITS if s not in have]
        if "train" in lost:
            raise RequestError(f"{place}: no training samples; it has {', '.join(have)}")
        names = ("train", *lost)
        learned = replace(have["train"], name=f"{place}, split train")
        pieces = _cut(learned, task, seed, names, (1 - 0.15 * len(lost), *(0.15 for _ in lost)))
        train, validation, test = (({**have, **{p.name: p for p in pieces}})[s] for s in SPLITS)
        how = f"Split as it came, but {' and '.join(lost)} taken from its training samples, seed {seed}"
    sizes = f"{len(train)} train, {len(validation)} validation, {len(test)} test"
    notes = (*found.notes, f"{how}: {sizes}.")
    return Data(train, validation, test, "", found.labels, unlabelled=found.unlabelled, notes=notes)


def _cut(
    rows: Labelled, task: Task, seed: int, names: tuple[str, ...], shares: tuple[float, ...]
) -> tuple[Labelled, ...]:
    if task != "anomaly":
        stratify = rows.labels.astype(np.int64) if task == "classification" else None
        return three_way(rows, seed=seed, shares=shares, stratify=stratify, names=names)
    for found, what in ((rows.labels == 0, "normal sample"), (rows.labels != 0, "anomaly")):
        if not found.any():
            raise RequestError(
                f"{rows.name}: no {what} among {len(rows)} samples: expected some of both kinds, to fill "
                f"{' and '.join(names)}, or a split of your own"
            )
    # An anomaly is worth nothing to training, so all of them go to the other splits; a group cannot be torn for that.
    if rows.groups is not None:
        train, *others = three_way(rows, seed=seed, shares=shares, stratify=rows.labels.astype(np.int64), names=names)
        return train.take(np.flatnonzero(train.labels == 0)), *others
    normal = three_way(
        rows.take(np.flatnonzero(rows.labels == 0), f"{rows.name}, normal"), seed=seed, shares=shares, names=names
    )
    odd = rows.take(np.flatnonzero(rows.labels == 1), f"{rows.name}, anomalies")
    if len(names) == 2:
        strange: tuple[Labelled, ...] = (odd,)
    else:
        strange = three_way(odd, seed=seed, shares=shares[1:], names=names[1:])
    return normal[0], *(_joined(a, b) for a, b in zip(normal[1:], strange, strict=True))


def _joined(a: Labelled, b: Labelled) -> Labelled:
    return Labelled(
        a.name,
        {name: np.concatenate([array, b.inputs[name]]) for name, array in a.inputs.items()},
        np.concatenate([a.labels, b.labels]),
        slices={key: np.concatenate([values, b.slices[key]]) for key, values in a.slices.items()},
        origins=(*a.origins, *b.origins),
    )


def _narrowed(data: Data) -> Data:
    """Rows of a user's own `Data` in the dtypes that rows are kept in."""

    def one(rows: Labelled) -> Labelled:
        inputs = {name: raw(array, f"{rows.name}: {name!r}") for name, array in rows.inputs.items()}
        return Labelled(rows.name, inputs, np.asarray(rows.labels), rows.groups, rows.slices, rows.origins)

    def aside(role: str, rows: Rows | None) -> Rows | None:
        return None if rows is None else {name: raw(array, f"{role}: {name!r}") for name, array in rows.items()}

    return replace(
        data,
        train=one(data.train),
        validation=one(data.validation),
        test=one(data.test),
        views=tuple(one(view) for view in data.views),
        unlabelled=aside("unlabelled", data.unlabelled),
        reference=aside("reference", data.reference),
    )


def _parts(data: Data) -> Mapping[str, Array | None]:
    """Every array by the role of its rows: names are the user's own, and two rows of one name would hide each other."""
    roles = {"train": data.train, "validation": data.validation, "test": data.test}
    roles |= {f"view {i}": view for i, view in enumerate(data.views)}
    parts: dict[str, Array | None] = {"labels": np.array(data.labels)}
    for role, rows in roles.items():
        parts |= {f"{role}:x:{name}": array for name, array in sorted(rows.inputs.items())}
        parts |= {f"{role}:y": rows.labels, f"{role}:groups": rows.groups}
    for role, aside in (("unlabelled", data.unlabelled), ("reference", data.reference)):
        parts |= {f"{role}:{name}": array for name, array in sorted((aside or {}).items())}
    return parts
