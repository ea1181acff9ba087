"""Preprocessing that cannot be exported: `host(rows)` in the file of the model, run once when the data are read.

It takes raw samples [n, ...] and returns what the net's graph takes, one row a sample; the application must do the same
with every sample that it hands over. All else (split, front, augmentation, monitor, reference counts, figures) is of
what it returns, and the package carries golden vectors of held-out samples. Two raw samples that it makes the same of
are the same sample, and stay on one side of the split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task
from edgewright_runtime.golden import GOLDEN_FILE

from ..data.collection import Collection, kind_of, row_digests
from ..data.opening import in_splits, read
from ..graph.golden import GOLDEN_ROWS, golden
from ..recipe import Recipe
from ..rows import Array, Data, Labelled, Rows, take
from .models import Builder


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecipe(Recipe):
    """A recipe whose rows an application makes of raw samples; `golden` is the file that holds it to that."""

    golden: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Hosted:
    """`note` is a line for the model card."""

    data: Data
    golden: bytes
    note: str

    def recipe(self, plain: Recipe) -> HostRecipe:
        return HostRecipe(**{field.name: getattr(plain, field.name) for field in fields(Recipe)}, golden=self.golden)


def open_hosted(place: str | Path, task: Task, hooks: Builder, *, seed: int) -> Hosted:
    """What `host` of the file makes of the data. Raises RequestError for a transform that gives other rows, is random,
    or lets rows depend on one another, and for whatever is wrong with the data; Unavailable."""
    pairs: list[tuple[Rows, Rows]] = []

    def of(raw: Rows) -> Rows:
        pairs.append((raw, _made(hooks, raw, (pairs or [(raw, raw)])[0][0])))
        return pairs[-1][1]

    data = in_splits(_each(read(place, task), of), task, seed=seed, place=place)
    raw_name, raw = _held_out(data, pairs)
    ((name, tensor),) = data.train.inputs.items()
    vectors = golden(lambda rows: _called(hooks, rows), raw, raw_name=raw_name, name=name)
    note = (
        f"Preprocess: host. The application makes `{name}` {tensor.dtype} {list(tensor.shape[1:])} of a sample "
        f"`{raw_name}` {raw.dtype} {list(raw.shape[1:])} as host(rows) of {hooks.file.name} does, at its own cost: no "
        f"figure here has that time in it. {GOLDEN_FILE} holds {len(raw)} held-out samples to check it by."
    )
    return Hosted(data, vectors, note)


def _each(found: Data | Collection, of: Callable[[Rows], Rows]) -> Data | Collection:
    """The same with every array of samples replaced."""

    def rows(one: Labelled) -> Labelled:
        return replace(one, inputs=of(one.inputs))

    def aside(inputs: Rows | None) -> Rows | None:
        return None if inputs is None else of(inputs)

    if isinstance(found, Collection):
        splits = {name: rows(one) for name, one in found.splits.items()}
        return replace(found, splits=splits, unlabelled=aside(found.unlabelled))
    return replace(
        found,
        train=rows(found.train),
        validation=rows(found.validation),
        test=rows(found.test),
        views=tuple(rows(view) for view in found.views),
        unlabelled=aside(found.unlabelled),
        reference=aside(found.reference),
    )


def _made(hooks: Builder, inputs: Rows, first: Rows) -> Rows:
    if len(inputs) != 1:
        raise RequestError(f"host(rows) takes samples of one input: the data have {', '.join(inputs)}")
    (array,), (one,) = inputs.values(), first.values()
    if (array.shape[1:], array.dtype) != (one.shape[1:], one.dtype):
        raise RequestError(
            f"host(rows) takes raw samples of one shape and dtype: expected {one.dtype}{list(one.shape[1:])} as in the "
            f"first split, got {array.dtype}{list(array.shape[1:])}; bring all splits to one"
        )
    tensor = _called(hooks, array)
    return {kind_of(tensor, f"{hooks.file}: host(rows) gave"): tensor}


def _called(hooks: Builder, rows: Array) -> Array:
    assert hooks.host is not None
    view = rows.view()
    view.flags.writeable = False  # the golden vectors hold these very samples
    made = hooks.host(view)
    if not isinstance(made, np.ndarray) or made.ndim == 0 or len(made) != len(rows):
        got = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
        raise RequestError(
            f"{hooks.file}: host(rows) gave {got} for {len(rows)} samples: expected an array with one row for each, in "
            "their order; leave out samples in the data"
        )
    return np.ascontiguousarray(made)


def _held_out(data: Data, pairs: list[tuple[Rows, Rows]]) -> tuple[str, Array]:
    """Raw samples of which rows were made that no weight is trained on; equal rows are on one side of the split."""
    rows = data.validation.inputs if data.reference is None else data.reference
    wanted = row_digests(take(rows, slice(0, GOLDEN_ROWS)))
    found: dict[bytes, Array] = {}
    for raw, made in pairs:
        ((name, samples),) = raw.items()
        for i, digest in enumerate(row_digests(made)):
            if digest in wanted:
                found.setdefault(digest, samples[i])
    return name, np.stack([found[digest] for digest in wanted])
