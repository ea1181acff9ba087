"""Splits keep together what belongs together, and classes their shares."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_compiler.data.splits import three_way
from edgewright_compiler.rows import Labelled
from edgewright_contracts.errors import RequestError


def rows(n: int, classes: int = 3, seed: int = 0, groups: int | None = None) -> Labelled:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    keys = None if groups is None else rng.integers(0, groups, n)
    return Labelled("all", {"row": rng.normal(size=(n, 4)).astype(np.float32)}, y, keys)


def test_every_row_is_in_exactly_one_split_and_classes_keep_their_shares():
    all_rows = rows(1000)
    parts = three_way(all_rows, seed=1, stratify=all_rows.labels)
    np.testing.assert_allclose([len(p) for p in parts], [700, 150, 150], atol=2)
    assert sum(map(len, parts)) == 1000
    assert [p.name for p in parts] == ["train", "validation", "test"]
    seen = np.concatenate([p.inputs["row"] for p in parts])
    assert len(np.unique(seen, axis=0)) == 1000
    for part in parts:
        np.testing.assert_allclose(np.bincount(part.labels) / len(part), np.bincount(all_rows.labels) / 1000, atol=0.01)


def test_a_split_depends_on_the_seed_and_on_nothing_else():
    a, b, c = (three_way(rows(200), seed=seed)[0].inputs["row"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert a.shape == c.shape
    assert not np.array_equal(a, c)


def test_no_group_is_in_two_splits():
    all_rows = rows(600, groups=25)
    parts = three_way(all_rows, seed=3, stratify=all_rows.labels, groups=all_rows.groups)
    groups = [set(p.groups.tolist()) for p in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 25
    assert all(abs(len(p) / 600 - share) < 0.06 for p, share in zip(parts, (0.7, 0.15, 0.15), strict=True))


def test_equal_rows_stay_together_even_when_their_groups_differ():
    one = rows(100, groups=10)
    x = one.inputs["row"].copy()
    x[50:] = x[:50]
    parts = three_way(Labelled("all", {"row": x}, one.labels), seed=0)
    sides = [{row.tobytes() for row in p.inputs["row"]} for p in parts]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]


def test_too_few_rows_or_groups_are_named_with_the_limit():
    with pytest.raises(RequestError, match="9 samples cannot be split: expected at least 10"):
        three_way(rows(9), seed=0)
    two = rows(100, groups=2)
    with pytest.raises(RequestError, match="2 groups cannot fill 3 splits"):
        three_way(two, seed=0, groups=two.groups)


def test_a_class_with_few_rows_reaches_every_split():
    y = np.zeros(300, np.int64)
    y[:4] = 1
    part = Labelled("all", {"row": np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)}, y)
    parts = three_way(part, seed=0, stratify=y)
    assert [int(p.labels.sum()) for p in parts] == [2, 1, 1]
