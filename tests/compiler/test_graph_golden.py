"""Golden vectors are made of a transform that a device can run: one sample at a time, the same each time."""

from __future__ import annotations

import io

import numpy as np
import pytest

from edgewright_compiler.graph.blocks.text import Vocabulary, encoded
from edgewright_compiler.graph.golden import GOLDEN_ROWS, golden
from edgewright_contracts.errors import RequestError

TEXTS = [f"turn {'on' if i % 2 else 'off'} light {i}" for i in range(40)]
WORDS = Vocabulary.fit(TEXTS, 20)
RAW = encoded(TEXTS, 24)


def texts(raw):
    return [bytes(row).rstrip(b"\0").decode() for row in raw]


def tokens(raw):
    return WORDS.encode(texts(raw), 6)


def vectors(transform, raw=RAW) -> bytes:
    return golden(transform, raw, raw_name="text", name="tokens")


def test_equal_samples_give_equal_bytes_of_the_first_rows():
    data = vectors(tokens)
    assert data == vectors(tokens, RAW.copy())
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["raw:text"], RAW[:GOLDEN_ROWS])
        np.testing.assert_array_equal(archive["tensor:tokens"], tokens(RAW[:GOLDEN_ROWS]))


def padded_to_the_longest(raw):
    words = [WORDS.encode([text], 9)[0] for text in texts(raw)]
    return np.stack(words)[:, : max(int((one > 0).sum()) for one in words)]


def less_the_mean(raw):
    return raw - raw.mean(axis=0, dtype=np.float32)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda raw: np.random.default_rng().normal(size=raw.shape), "makes 'tokens' anew each time"),
        (lambda raw: raw[:2], r"32 samples gave \(2, 24\) of 'tokens': expected a row each"),
        (lambda raw: np.array(texts(raw)), "'tokens' is <U17: expected an array of numbers; give text as UTF-8 bytes"),
        (lambda raw: raw.tolist(), "'tokens' is list: expected an array"),
        (less_the_mean, r"a sample alone gives another 'tokens' than among others: sample 0: expected -?\d"),
    ],
)
def test_a_transform_that_no_device_could_repeat_makes_no_vectors(transform, message):
    with pytest.raises(RequestError, match=message):
        vectors(transform)


def test_padding_to_the_longest_of_a_batch_is_found_out():
    raw = encoded(["turn on light 1", "light 2"], 24)
    message = (
        r"sample 1: expected int32\[1, 4\], got int32\[1, 2\]; a device has one at a time: .*pad to a fixed length"
    )
    with pytest.raises(RequestError, match=message):
        vectors(padded_to_the_longest, raw)


def test_no_sample_makes_no_vectors():
    with pytest.raises(RequestError, match="at least one raw sample"):
        vectors(tokens, RAW[:0])
