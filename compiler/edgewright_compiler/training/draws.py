"""What an epoch is trained on: rows, augmented anew or copy by copy, by generators of (seed, purpose, epoch) alone.

So no generator has a state to be kept, and any epoch can be drawn again at any time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from edgewright_contracts.errors import RequestError

from ..recipe import Augment
from ..rows import Array, Labelled, Rows

Draw = Callable[[int], tuple[Array, Array]]  # epoch → raw rows [n, *shape] and labels [n, …], of one n for all epochs


def draws(
    train: Labelled, augment: Augment | None, seed: int, unlabelled: Rows | None = None, *, copies: int = 0
) -> Draw:
    """Every epoch all rows once, augmented anew by a generator that depends on (seed, epoch) alone; or, with `copies`,
    one after the other of so many augmented copies.

    Unlabelled rows join with labels -1 (classes) or NaN (values), which no loss counts.
    """
    name = next(iter(train.inputs))
    raw, labels = np.asarray(train.inputs[name]), np.asarray(train.labels)
    if unlabelled is not None and len(unlabelled[name]):
        _same_rows("unlabelled rows", raw, unlabelled[name])
        none = -1 if np.issubdtype(labels.dtype, np.integer) else np.nan
        raw = np.concatenate([raw, unlabelled[name]])
        labels = np.concatenate([labels, np.full((len(unlabelled[name]), *labels.shape[1:]), none, labels.dtype)])

    def draw(epoch: int) -> tuple[Array, Array]:
        if augment is None:
            return raw, labels
        seen = augment(generator(seed, "augment", epoch % copies if copies else epoch), raw)
        _same_rows("augmented rows", raw, seen)
        if len(seen) != len(raw):
            raise RequestError(f"augmented rows: expected {len(raw)} as there were before, got {len(seen)}")
        return seen, labels

    return draw


def _same_rows(what: str, expected: Array, got: Array) -> None:
    if got.dtype != expected.dtype or got.shape[1:] != expected.shape[1:]:
        raise RequestError(
            f"{what}: expected {expected.dtype} {list(expected.shape[1:])} as the training rows are, got {got.dtype} "
            f"{list(got.shape[1:])}"
        )


def as_tensor(array: Array) -> Tensor:
    """Sharing its memory, unless that may not be written: torch knows no such tensors, and warns."""
    whole = np.ascontiguousarray(array)
    return torch.from_numpy(whole if whole.flags.writeable else whole.copy())


def generator(seed: int, purpose: str, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), epoch])
