"""Mixed-up labels and odd rows are found where they were put, and hardly elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from edgewright_compiler.data.suspects import suspects
from edgewright_compiler.rows import Labelled
from edgewright_contracts.errors import RequestError

NAMES = tuple(str(i) for i in range(10))


@pytest.fixture(scope="module")
def digits() -> Labelled:
    found = load_digits()
    origins = tuple(f"{i:04d}.png" for i in range(len(found.target)))
    return Labelled("train", {"image": found.images.astype(np.uint8)}, found.target.astype(np.int64), origins=origins)


def test_labels_that_were_mixed_up_are_listed_with_file_and_likely_class(digits):
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(digits), 50, replace=False)
    labels = digits.labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, 50)) % 10
    found = suspects(replace(digits, labels=labels), NAMES, seed=0)
    listed = {s.index: s for s in found.labels}
    caught = [i for i in wrong if i in listed]
    assert len(caught) >= 44
    assert sum(listed[i].likely == str(digits.labels[i]) for i in caught) >= 43
    assert found.n_labels <= 110
    first = found.labels[0]
    assert (first.origin, first.given) == (f"{first.index:04d}.png", str(labels[first.index]))
    assert [s.score for s in found.labels] == sorted((s.score for s in found.labels), reverse=True)


def test_clean_labels_give_a_short_list_and_equal_lists_for_equal_seeds(digits):
    found = suspects(digits, NAMES, seed=0)
    assert found.n_labels < 80
    assert found == suspects(digits, NAMES, seed=0)


def test_a_row_that_looks_like_no_class_is_an_outlier(digits):
    images = digits.inputs["image"].copy()
    images[17] = 16 * (np.indices((8, 8)).sum(axis=0) % 2)
    found = suspects(replace(digits, inputs={"image": images}), NAMES, seed=0)
    assert found.outliers[0].index == 17
    assert found.n_outliers < 0.02 * len(digits)


def test_answers_and_embeddings_may_be_a_teachers_own(digits):
    answers = np.full((len(digits), 10), 0.01)
    answers[np.arange(len(digits)), digits.labels] = 0.91
    answers[3] = 0.0
    answers[3, 7] = 1.0
    found = suspects(digits, NAMES, answers=answers, seed=0)
    assert [(s.index, s.likely) for s in found.labels] == [(3, "7")]
    with pytest.raises(RequestError, match="answers"):
        suspects(digits, NAMES, answers=answers[:5], seed=0)
