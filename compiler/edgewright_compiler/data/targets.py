"""Columns that are not measurements: what a table says about each of its samples.

    label               classification: a class by name; anomaly: 0, normal, good or ok, or else anything
    label:NAME          multilabel: 0 or 1, one column for each label
    target, target:NAME regression: a number
    group               what must not be split: a person, a recording, a machine
    split               train, validation or test
    slice:NAME          an attribute that figures are split by

A class is numbered by its place among all names, in natural order (2 before 10).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..rows import Array, Labelled, Rows
from .collection import ALL, SPLITS, Collection, split_name

NORMAL: Final = ("0", "0.0", "normal", "good", "ok", "false")
_RESERVED: Final = ("label", "target", "group", "split")
_WANTED: Final = {
    "classification": "a column `label`",
    "anomaly": "a column `label` (0 or normal, else an anomaly)",
    "multilabel": "columns `label:NAME` of 0 and 1",
    "regression": "a column `target`, or columns `target:NAME`",
}


@dataclass(frozen=True, slots=True)
class Said:
    """Text of the reserved columns, by column: one entry a sample; `origins` say where it stands."""

    columns: Mapping[str, Sequence[str]]
    origins: tuple[str, ...]


def reserved(column: str) -> bool:
    return column in _RESERVED or column.startswith(("label:", "target:", "slice:"))


def collection(task: Task, inputs: Rows, said: Said, where: str, notes: tuple[str, ...] = ()) -> Collection:
    """Rows with what is said about them. Raises RequestError for a missing column or a value that is none."""
    labels, names = targets(task, said, where)
    slices = {c.partition(":")[2]: np.array(v) for c, v in said.columns.items() if c.startswith("slice:")}
    groups = np.array(said.columns["group"]) if "group" in said.columns else None
    whole = Labelled(ALL, inputs, labels, groups, slices, said.origins)
    if "split" not in said.columns:
        return Collection({ALL: whole}, names, notes=notes)
    of = np.array([split_name(s, o) for s, o in zip(said.columns["split"], said.origins, strict=True)])
    if not (of == "train").any():
        raise RequestError(f"{where}: no sample of the split train in the column `split`")
    splits = {s: whole.take(np.flatnonzero(of == s), s) for s in SPLITS if (of == s).any()}
    return Collection(splits, names, notes=notes)


def targets(task: Task, said: Said, where: str) -> tuple[Array, tuple[str, ...]]:
    """Labels as `rows` describes them for the task, and the names of the classes."""
    columns = said.columns
    prefix = {"multilabel": "label:", "regression": "target:"}.get(task)
    if task not in _WANTED:
        raise RequestError(f"{where}: a table cannot hold what the task {task} needs: write a loader, FILE.py:FUNCTION")
    many = [c for c in columns if prefix and c.startswith(prefix)]
    if not many:
        many = ["target"] if task == "regression" else ["label"] if task != "multilabel" else []
    if not many or any(c not in columns for c in many):
        raise RequestError(f"{where}: expected {_WANTED[task]} for the task {task}, got {', '.join(columns) or 'none'}")
    if task == "classification":
        names = natural(columns["label"])
        if "" in names:
            at = list(columns["label"]).index("")
            raise RequestError(f"{said.origins[at]}: no label: expected the name of a class, or the sample left out")
        place = {name: i for i, name in enumerate(names)}
        return np.array([place[name] for name in columns["label"]], np.int64), names
    if task == "anomaly":
        return np.array([v.strip().lower() not in NORMAL for v in columns["label"]], np.int64), ("normal", "anomaly")
    table = np.stack([numbers(columns[c], lambda i, c=c: f"{said.origins[i]}, column {c!r}") for c in many], axis=1)  # type: ignore[misc]
    return table, tuple(c.partition(":")[2] or c for c in many) if task == "multilabel" else ()


def numbers(texts: Sequence[str], where: Callable[[int], str]) -> Array:
    """float32 [n]. Raises RequestError for the first that is no number; an empty cell is NaN."""
    try:
        with np.errstate(over="ignore"):  # what is too large is infinite, and refused as such
            return np.array([t or "nan" for t in texts], np.float32)
    except ValueError:
        for i, text in enumerate(texts):
            try:
                float(text or "nan")
            except ValueError:
                raise RequestError(f"{where(i)}: expected a number, got {text!r}") from None
        raise


def natural(names: Sequence[str]) -> tuple[str, ...]:
    """Distinct names, numbers in them compared as numbers."""

    def key(name: str) -> list[tuple[int, int, str]]:
        return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.findall(r"\d+|\D+", name)]

    return tuple(sorted(dict.fromkeys(names), key=lambda name: (key(name), name)))
