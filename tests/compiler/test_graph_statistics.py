"""Input statistics are what their names say, for every kind of sample, and bad ones are told what is expected."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgewright_compiler.graph.blocks.text import encoded
from edgewright_compiler.graph.moments import principal
from edgewright_compiler.graph.statistics import statistics
from edgewright_compiler.recipe import Statistics as Kind
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import TensorIn

RNG = np.random.default_rng(3)
Columns = dict[str, npt.NDArray[np.float32]]


def columns(
    kind: Kind, rows: npt.NDArray[np.generic], seen: npt.NDArray[np.generic] | None = None, **declared: object
) -> Columns:
    """Name → values of `seen`, for statistics fitted on `rows`."""
    tensor = TensorIn(name="x", dtype=rows.dtype.name, shape=rows.shape[1:], **declared)  # type: ignore[arg-type]
    made = statistics(kind, tensor, rows)
    got = made(torch.from_numpy(rows if seen is None else seen)).numpy()
    assert got.dtype == np.float32
    assert len(set(made.names)) == len(made.names) == got.shape[1]
    return dict(zip(made.names, got.T, strict=True))


def test_an_image_of_whole_levels_is_described_exactly() -> None:
    x = RNG.integers(0, 17, (50, 8, 8)).astype(np.uint8)
    got = columns("image", x, valid=(0, 16))
    dark_border = np.pad(x.astype(int), ((0, 0), (0, 1), (0, 1)))
    expected = {
        "mean": x.mean((1, 2)),
        "row-gradient": np.maximum(-np.diff(dark_border, axis=1), 0)[:, :, :8].mean((1, 2)),
        "column-gradient": np.maximum(-np.diff(dark_border, axis=2), 0)[:, :8].mean((1, 2)),
        "dark-share": (x == 0).mean((1, 2)),
        "bright-share": (x == 16).mean((1, 2)),
        "strong": np.maximum(x.astype(int) - 8, 0).mean((1, 2)),
        "top-bottom": x[:, :4].mean((1, 2)) - x[:, 4:].mean((1, 2)),
        "left-right": x[:, :, :4].mean((1, 2)) - x[:, :, 4:].mean((1, 2)),
        "quietest-row": x.mean(2).min(1),
    }
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert (got[name] == values.astype(np.float32)).all(), name


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_a_colour_image_has_a_mean_for_each_colour_wherever_they_lie(layout: str) -> None:
    x = RNG.integers(0, 256, (20, 8, 12, 3)).astype(np.uint8)
    got = columns("image", x if layout == "hwc" else np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    for colour in range(3):
        np.testing.assert_allclose(got[f"colour-{colour + 1}"], x[..., colour].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(got["mean"], x.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(got["quietest-row"], x.mean((2, 3)).min(1), rtol=1e-5)


def test_an_image_of_fractions_is_described_in_the_levels_of_its_range() -> None:
    levels = RNG.integers(0, 256, (20, 10, 10))
    whole, fractions = columns("image", levels.astype(np.uint8)), columns("image", (levels / 127.5 - 1).astype("f4"))
    for name in ("mean", "dark-share", "bright-share", "strong", "top-bottom", "left-right"):
        np.testing.assert_allclose(fractions[name], whole[name], rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("shape", [(2, 2), (3, 7), (28, 28), (97, 65), (480, 640)])
def test_images_of_any_size_are_looked_at_on_a_grid(shape: tuple[int, int]) -> None:
    rows = np.linspace(0, 255, shape[0])[:, None] + RNG.normal(0, 1, (3, *shape))
    got = columns("image", np.clip(rows, 0, 255).astype(np.uint8))
    assert (got["top-bottom"] < 0).all()
    assert (np.abs(got["left-right"]) < 5).all()
    assert (np.abs(got["mean"] - 127) < 8).all()


def test_a_dead_row_is_seen_in_a_large_image() -> None:
    x = RNG.integers(100, 200, (4, 300, 300)).astype(np.uint8)
    dead = x.copy()
    dead[:, 171] = 0
    assert (columns("image", x, dead)["quietest-row"] == 0).all()


def test_a_series_is_described_channel_by_channel_in_standard_deviations() -> None:
    x = (RNG.normal(5, 2, (40, 30, 3)) * [1, 10, 0.1]).astype(np.float32)
    got = columns("series", x)
    z = (x - x.mean((0, 1))) / x.std((0, 1))
    tail = z[:, 1:]  # a step needs the value before it
    for c in range(3):
        np.testing.assert_allclose(got[f"mean-{c + 1}"], tail[..., c].mean(1), atol=1e-4)
        np.testing.assert_allclose(got[f"magnitude-{c + 1}"], np.abs(tail[..., c]).mean(1), atol=1e-4)
        rising = np.maximum(np.diff(z[..., c], axis=1), 0).mean(1)
        np.testing.assert_allclose(got[f"roughness-{c + 1}"], rising, atol=1e-4)
    np.testing.assert_allclose(got["quietest"], np.maximum(np.diff(z, axis=1), 0).mean(1).min(1), atol=1e-4)
    np.testing.assert_allclose(got["loudest"], np.abs(tail).mean(1).max(1), atol=1e-4)


def test_of_many_channels_the_averages_are_told_and_a_dead_one_is_seen() -> None:
    x = RNG.normal(0, 1, (40, 30, 20)).astype(np.float32)
    dead = x.copy()
    dead[:, :, 7] = 0.5
    got = columns("series", x, dead)
    assert list(got) == ["mean", "magnitude", "roughness", "quietest", "loudest"]
    assert (np.abs(got["quietest"]) < 1e-6).all()


def test_whole_samples_of_sound_are_a_series_of_one_channel() -> None:
    x = RNG.integers(-3000, 3000, (10, 500)).astype(np.int16)
    got = columns("series", x)
    assert list(got) == ["mean", "magnitude", "roughness"]
    np.testing.assert_allclose(got["magnitude"], np.abs((x - x.mean()) / x.std())[:, 1:].mean(1), rtol=1e-3)


def test_a_short_vector_tells_its_values_and_a_long_one_its_components() -> None:
    x = RNG.normal(3, 2, (100, 4)).astype(np.float32)
    short = columns("vector", x)
    assert list(short) == ["input-1", "input-2", "input-3", "input-4", "spread"]
    assert (short["input-2"] == x[:, 1]).all()
    z = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(short["spread"], (z * z).mean(1), rtol=1e-3)
    long = columns("vector", RNG.normal(0, 1, (200, 30)).astype(np.float32))
    assert list(long) == [*(f"input-pca-{i + 1}" for i in range(8)), "spread"]
    assert abs(long["input-pca-1"].std() - 1) < 1e-2


def test_a_value_that_never_varied_counts_when_it_does() -> None:
    x = RNG.normal(0, 1, (50, 3)).astype(np.float32)
    x[:, 1] = 7
    moved = x.copy()
    moved[:, 1] = 9
    assert (columns("vector", x, moved)["spread"] > columns("vector", x)["spread"] + 1).all()


def test_tokens_tell_their_length_and_how_rare_they_are() -> None:
    x = np.array([[2, 2, 2, 3], [2, 2, 4, 0], [2, 0, 0, 0], [0, 0, 0, 0]], np.int32)
    got = columns("tokens", x)
    counts = {2: 6.5, 3: 1.5, 4: 1.5, 1: 0.5}
    bits = {i: -np.log2(c / sum(counts.values())) for i, c in counts.items()}
    assert got["length"].tolist() == [4, 3, 1, 0]
    expected = [(3 * bits[2] + bits[3]) / 4, (2 * bits[2] + bits[4]) / 3, bits[2], 0]
    np.testing.assert_allclose(got["surprise"], expected, rtol=1e-5)
    np.testing.assert_allclose(got["strangest"], [bits[3], bits[4], bits[2], 0], rtol=1e-5)


def test_an_id_that_no_table_has_is_the_last_one_and_stops_nothing() -> None:
    x = np.array([[1, 2, 3], [1, 1, 2]], np.int64)
    assert np.isfinite(columns("tokens", x, np.array([[99, 1, 1]]))["surprise"]).all()


def test_bytes_tell_which_kinds_of_signs_they_are() -> None:
    x = encoded(["Turn ON!", "größe 12"], 16)
    got = columns("tokens", x)
    assert got["length"].tolist() == [8, 10]
    assert (got["letters"] * 16).round().tolist() == [6, 3]
    assert (got["capitals"] * 16).round().tolist() == [3, 0]
    assert (got["digits"] * 16).round().tolist() == [0, 2]
    assert (got["spaces"] * 16).round().tolist() == [1, 1]
    assert (got["signs"] * 16).round().tolist() == [1, 0]
    assert (got["foreign"] * 16).round().tolist() == [0, 4]


def test_directions_are_found_when_there_are_fewer_rows_than_numbers() -> None:
    x = RNG.normal(0, 1, (12, 40)) * np.linspace(1, 9, 40)
    project, offset = principal(x, 5)
    scores = x @ project + offset
    np.testing.assert_allclose(np.cov(scores.T), np.eye(5), atol=1e-9)
    wide, wide_offset = principal(np.concatenate([x] * 4), 5)
    same = np.abs(np.sum((x @ wide + wide_offset) * scores, 0)) / (x @ wide + wide_offset).std(0) / scores.std(0) / 12
    np.testing.assert_allclose(same, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("image", np.zeros((4, 9), np.uint8), r"statistics 'image' take samples of 2 or 3 dimensions, got the shape"),
        ("image", np.zeros((4, 9, 9, 5), np.uint8), r"1, 3 or 4 colours, first or last, got the shape \(9, 9, 5\)"),
        ("image", np.zeros((4, 1, 9), np.uint8), r"at least 2 x 2 pixels, got 1 x 9"),
        ("image", np.zeros((4, 9, 9), np.float32), r"every value is 0.0: an image needs a range"),
        ("series", np.zeros((4, 1, 3), np.float32), r"at least 2 steps"),
        ("series", np.full((4, 9, 1), np.nan, np.float32), r"no finite value"),
        ("vector", np.zeros((4, 9, 2), np.float32), r"'vector' take samples of 1 dimensions"),
        ("vector", np.zeros((4, 20), np.float32), r"never vary"),
        ("tokens", np.zeros((4, 9), np.float32), r"tokens are whole numbers, got float32"),
        ("tokens", np.full((4, 9), -1, np.int64), r"tokens are not negative, got -1"),
    ],
)
def test_samples_that_do_not_fit_their_kind_are_told_what_is_expected(
    kind: Kind, rows: npt.NDArray[np.generic], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        columns(kind, rows)
