"""Golden vectors hold an application to the preprocessing that a package was made with."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from edgewright_compiler.graph.blocks.text import Vocabulary, encoded
from edgewright_compiler.graph.golden import GOLDEN_ROWS, check, golden
from edgewright_contracts.errors import ContractError, Refused, RequestError

Arrays = Mapping[str, npt.NDArray[np.generic]]
TEXTS = [f"turn {'on' if i % 2 else 'off'} light {i}" for i in range(40)]
WORDS = Vocabulary.fit(TEXTS, 20)
RAW = {"text": encoded(TEXTS, 24)}


def tokens(raw: Arrays) -> Arrays:
    texts = [bytes(row).rstrip(b"\0").decode() for row in np.asarray(raw["text"])]
    return {"ids": WORDS.encode(texts, 6)}


def loud(raw: Arrays) -> Arrays:
    return {"x": np.asarray(raw["sound"], np.float32) / 3}


def test_the_transform_that_made_them_reproduces_them() -> None:
    data = golden(tokens, RAW)
    check(data, tokens)
    assert data == golden(tokens, {"text": RAW["text"].copy()}), "equal arrays, equal bytes"
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        assert archive["raw:text"].shape == (GOLDEN_ROWS, 24)
        assert archive["tensor:ids"].dtype == np.int32


def test_another_vocabulary_is_refused_with_the_sample_that_differs() -> None:
    other = Vocabulary(WORDS.words[::-1])
    with pytest.raises(Refused, match=r"ids: sample 0 differs at element 0: expected \d+, got \d+; 32 of 32 samples"):
        check(golden(tokens, RAW), lambda raw: {"ids": other.encode(TEXTS[:GOLDEN_ROWS], 6)})


def test_fractions_may_differ_by_a_rounding_and_by_no_more() -> None:
    raw = {"sound": np.arange(60, dtype=np.int16).reshape(5, 12)}
    data = golden(loud, raw)
    check(data, lambda rows: {"x": loud(rows)["x"] + np.float32(1e-6)})
    with pytest.raises(Refused, match="x: sample 0 differs at element 0"):
        check(data, lambda rows: {"x": loud(rows)["x"] + np.float32(1e-2)})
    with pytest.raises(Refused, match=r"expected \(5, 12\) of float32, got \(5, 12\) of float64"):
        check(data, lambda rows: {"x": loud(rows)["x"].astype(np.float64)})
    with pytest.raises(Refused, match="makes no tensor 'x', only y"):
        check(data, lambda rows: {"y": loud(rows)["x"]})


def test_a_transform_that_is_random_or_answers_other_rows_makes_no_vectors() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(RequestError, match="makes 'x' anew each time"):
        golden(lambda raw: {"x": rng.normal(size=(5, 2))}, {"sound": np.zeros((5, 12), np.int16)})
    with pytest.raises(RequestError, match="5 samples gave 2 rows of 'x'"):
        golden(lambda raw: {"x": np.zeros((2, 2))}, {"sound": np.zeros((5, 12), np.int16)})
    with pytest.raises(RequestError, match="'text' is <U2: expected numbers; give text as UTF-8 bytes"):
        golden(lambda raw: {"x": np.zeros((1, 2))}, {"text": np.array(["ab"])})
    with pytest.raises(RequestError, match="at least one raw sample"):
        golden(loud, {"sound": np.zeros((0, 12), np.int16)})


def test_a_file_that_holds_no_vectors_is_no_contract() -> None:
    with pytest.raises(ContractError, match="an npz archive without pickles"):
        check(b"PK nothing", tokens)
