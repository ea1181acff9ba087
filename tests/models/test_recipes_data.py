"""The rows of activity, intents, anomaly and announcer: what splits promise, and what each recipe says of itself.

Carriers are downloaded once into the data cache; a test is skipped where that is not possible.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from types import ModuleType

import numpy as np
import pytest

from edgewright_compiler.rows import Data, Labelled
from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_models.activity import data as activity
from edgewright_models.announcer import data as announcer
from edgewright_models.anomaly import data as anomaly
from edgewright_models.intents import data as intents
from edgewright_models.intents.templates import expand

MODULES = {"activity": activity, "intents": intents, "anomaly": anomaly, "announcer": announcer}
GROUPED = ("activity", "intents", "announcer")


@cache
def rows(name: str) -> Data:
    try:
        made: Data = MODULES[name].data()
    except Unavailable as error:
        pytest.skip(str(error))
    return made


def splits(name: str) -> tuple[Labelled, ...]:
    data = rows(name)
    return data.train, data.validation, data.test


def only(split: Labelled) -> np.ndarray:
    (array,) = split.inputs.values()
    return np.asarray(array)


@pytest.mark.parametrize("name", MODULES)
def test_no_row_lies_in_two_splits(name: str) -> None:
    seen = [{row.tobytes() for row in only(split)} for split in splits(name)]
    assert not any(a & b for a, b in combinations(seen, 2))


@pytest.mark.parametrize("name", GROUPED)
def test_no_group_lies_in_two_splits(name: str) -> None:
    groups = [set(np.asarray(split.groups).tolist()) for split in splits(name)]
    assert not any(a & b for a, b in combinations(groups, 2))


@pytest.mark.parametrize("name", MODULES)
def test_rows_have_one_origin_each_and_labels_in_range(name: str) -> None:
    for split in splits(name):
        assert len(split.origins) == len(split) == len(only(split))
        assert len(set(split.origins)) == len(split)
        assert split.labels.dtype == np.int64
        assert 0 <= split.labels.min() <= split.labels.max() <= max(len(rows(name).labels) - 1, 1)


@pytest.mark.parametrize("name", GROUPED)
def test_every_split_has_every_class(name: str) -> None:
    for split in splits(name):
        assert set(split.labels.tolist()) == set(range(len(rows(name).labels)))


@pytest.mark.parametrize("name", ["activity", "intents", "anomaly"])
def test_reading_twice_gives_the_same_rows(name: str) -> None:
    assert MODULES[name].data().fingerprint == rows(name).fingerprint


@pytest.mark.parametrize("module", [activity, announcer], ids=["activity", "announcer"])
def test_equal_generators_augment_equally_and_keep_shape_and_dtype(module: ModuleType) -> None:
    raw = only(rows(module.__name__.split(".")[1]).train)[:16]
    one, same, other = (module.augment(np.random.default_rng(seed), raw) for seed in (1, 1, 2))
    assert (one.shape, one.dtype) == (raw.shape, raw.dtype)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_activity_augments_by_turning_the_watch_which_keeps_how_strong_a_movement_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activity, "NOISE", 0.0)
    monkeypatch.setattr(activity, "GAIN", 0.0)
    raw = np.random.default_rng(0).standard_normal((8, activity.WINDOW, 6)).astype(np.float32)
    turned = activity.augment(np.random.default_rng(1), raw)
    for axes in (slice(0, 3), slice(3, 6)):
        strength = np.linalg.norm(raw[..., axes], axis=2)
        assert np.allclose(np.linalg.norm(turned[..., axes], axis=2), strength, atol=1e-5)
    assert np.abs(turned - raw).max() > 0.1


def test_anomaly_trains_on_normal_rows_only_and_prints_its_baseline() -> None:
    data = rows("anomaly")
    assert not data.train.labels.any()
    assert data.test.labels.any()
    scores = anomaly.largest_z(data.train, data.test)
    assert anomaly.auroc(scores, data.test.labels) == pytest.approx(0.9928, abs=5e-5)
    assert any("0.9928" in note for note in data.notes)


def test_auroc_counts_ties_as_half() -> None:
    labels = np.array([0, 0, 1, 1])
    assert anomaly.auroc(np.array([1.0, 2, 3, 4]), labels) == 1.0
    assert anomaly.auroc(np.array([1.0, 1, 1, 1]), labels) == 0.5
    assert anomaly.auroc(np.array([1.0, 2, 2, 3]), labels) == 0.875


def test_intents_say_that_they_are_expanded_from_templates() -> None:
    data = rows("intents")
    assert any("expanded from templates" in note for note in data.notes)
    sentences = [origin.strip("'\"") for split in splits("intents") for origin in split.origins]
    assert len(set(sentences)) == len(sentences)
    assert max(len(sentence.encode()) for sentence in sentences) <= intents.LENGTH


def test_an_utterance_is_its_bytes_in_lower_case_with_zeros_behind() -> None:
    row = intents.row("Turn ON the lámp")
    assert bytes(row).rstrip(b"\0").decode() == "turn on the lámp"
    assert row.shape == (intents.LENGTH,)
    assert bytes(intents.row("x" * 100)) == b"x" * intents.LENGTH


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("turn on", {"turn on"}),
        ("(open|close) it", {"open it", "close it"}),
        ("[please] stop", {"please stop", "stop"}),
        ("(now;stop)", {"now stop", "stop now"}),
        ("<turn> {thing:name}", {"turn lamp", "switch lamp"}),
        ("fan[s [of mine]]", {"fan", "fans", "fans of mine"}),
        ("{n}( |-)hour", {"n hour", "n-hour"}),
    ],
)
def test_a_template_expands_to_all_that_its_grammar_allows(template: str, said: set[str]) -> None:
    rng = np.random.default_rng(0)
    fill: Callable[[np.random.Generator, str], str] = lambda _rng, name: "lamp" if name == "thing" else name  # noqa: E731
    assert {expand(template, {"turn": "(turn|switch)"}, fill, rng) for _ in range(200)} == said


@pytest.mark.parametrize("template", ["(open|close", "open]", "<nobody>"])
def test_a_template_that_is_broken_is_named(template: str) -> None:
    with pytest.raises(RequestError, match="template"):
        expand(template, {}, lambda _rng, name: name, np.random.default_rng(0))


def test_announcer_cuts_the_loudest_second_at_8_khz() -> None:
    rate = 44100
    time = np.arange(3 * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * time) * ((time >= 1.5) & (time < 2.5)) + 0.01 * np.sin(
        2 * np.pi * 9000 * time
    )
    second = announcer.loudest_second(tone, rate)
    assert second.shape == (8000,)
    assert np.sqrt(np.mean((second / 32768.0) ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    spectrum = np.abs(np.fft.rfft(second))
    assert spectrum.argmax() == 440  # in Hz, one second; what lay above 4 kHz is gone
    assert spectrum[1000:].max() < 0.01 * spectrum.max()


def test_announcer_pads_a_short_clip_with_silence_on_both_sides() -> None:
    second = announcer.loudest_second(np.full(4000, 0.25), 8000)
    assert not second[:1900].any()
    assert not second[-1900:].any()
    assert second[2500:5500].mean() == pytest.approx(8192, rel=0.01)


def test_announcer_holds_words_out_whatever_the_language() -> None:
    assert announcer.split_of("camel") == announcer.split_of("camel")
    words = [f"word{i}" for i in range(2000)]
    shares = {name: sum(announcer.split_of(word) == name for word in words) / 2000 for name in announcer.SHARES}
    assert shares == pytest.approx(dict(announcer.SHARES), abs=0.03)
