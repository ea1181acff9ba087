"""Binning is exact: however rows are cut into batches and windows, the same cells come out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright_contracts import baseline
from edgewright_contracts.channels import (
    SCORE_ONE,
    Binner,
    Channel,
    Kind,
    Reduce,
    Source,
    edge_hash,
    numeric_cells,
    width,
)
from edgewright_contracts.errors import ContractError

Outputs = dict[str, npt.NDArray[np.generic]]

EDGES = (-1.0, -0.5, 0.0, 0.25, 1.0)


def of(kind: Kind, reduce: Reduce = "column", tensor: str = "x", **more: object) -> Channel:
    source = Source(tensor, reduce, mask=str(more.pop("mask", "")))
    return Channel(name=f"{kind}-{reduce}-{tensor}", group="output", kind=kind, source=source, **more)  # type: ignore[arg-type]


EVERY = (
    of("numeric", edges=EDGES),
    of("numeric", "each", edges=(0.0, 1.0)),
    of("numeric", "area", "boxes", edges=(0.0, 0.125, 0.5, 1.0), mask="scores"),
    of("categorical", "argmax", values=(0, 2)),
    of("categorical", "each", "classes", values=(0, 1, 7), mask="scores"),
    of("score", "max"),
    of("score", "each", "scores"),
    of("count", "above", "scores"),
)

VALUE = st.one_of(
    st.sampled_from([*EDGES, -0.0, np.nan, np.inf, -np.inf, 1e300, -1e300, 1.0005, -0.0005]),
    st.floats(-2, 2),
    st.floats(allow_nan=True, allow_infinity=True),
)
ROW = st.tuples(
    st.lists(VALUE, min_size=3, max_size=3),
    st.lists(VALUE, min_size=8, max_size=8),
    st.lists(VALUE, min_size=2, max_size=2),
    st.lists(st.sampled_from([0.0, 1.0, 7.0, 8.0, np.nan]), min_size=2, max_size=2),
)
Rows = list[tuple[list[float], list[float], list[float], list[float]]]


def outputs(rows: Rows) -> Outputs:
    n = len(rows)
    return {
        "x": np.array([r[0] for r in rows], np.float64).reshape(n, 3),
        "boxes": np.array([r[1] for r in rows], np.float64).reshape(n, 2, 4),
        "scores": np.array([r[2] for r in rows], np.float64).reshape(n, 2),
        "classes": np.array([r[3] for r in rows], np.float64).reshape(n, 2),
    }


@given(st.lists(ROW, max_size=12), st.lists(st.integers(0, 12), max_size=5), st.integers(0, 5))
def test_any_partition_into_batches_and_windows_counts_the_same(rows: Rows, cuts: list[int], take_every: int) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        whole = Binner(EVERY)
        whole.add(outputs(rows))

        parts, windows = Binner(EVERY), []
        borders = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
        for i, (start, end) in enumerate(itertools.pairwise(borders)):
            parts.add(outputs(rows[start:end]))
            if take_every and i % take_every == 0:
                windows.append(parts.take())
        windows.append(parts.take())
    assert np.array_equal(np.sum(windows, axis=0), whole.cells)


@given(st.lists(ROW, max_size=12))
def test_every_value_is_counted_once(rows: Rows) -> None:
    binner = Binner(EVERY)
    binner.add(outputs(rows))
    per = baseline.per_channel(EVERY, binner.cells)
    n = len(rows)
    masked = int((outputs(rows)["scores"] > 0.5).sum())  # type: ignore[operator]
    assert [int(c.sum()) for c in per] == [n, 3 * n, masked, n, masked, n, 2 * n, n]
    assert binner.cells.size == width(EVERY)
    assert (binner.cells >= 0).all()


# research: reference vectors. `edges` and `values` were written before rounding to float32; null is NaN.
def test_numeric_cells_equal_the_reference_vectors(stats_counts: Mapping[str, list[list[float]]]) -> None:
    for edges, values, cells, reference in zip(
        stats_counts["edges"],
        stats_counts["values"],
        stats_counts["cells"],
        stats_counts["reference_cells"],
        strict=True,
    ):
        kept = tuple(float(np.float32(e)) for e in edges)
        channel = Channel(name="x", group="input", kind="numeric", source=Source("x"), edges=kept)
        x = np.array([np.nan if v is None else float(v) for v in values], np.float32)
        binner = Binner((channel,))
        binner.add({"x": x.reshape(-1, 1)})
        assert binner.cells.tolist() == cells[: channel.width]
        assert not any(cells[channel.width :])

        raw = np.array(reference[: channel.width], np.int64)
        raw[[0, len(kept)]] = 0  # before `make` raises the tails to 1
        made = baseline.make((channel,), raw, n=int(raw.sum()))
        assert made.cells().tolist() == reference[: channel.width]


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=30))
def test_numeric_cells_follow_their_definition(values: list[float]) -> None:
    edges = np.array(EDGES, np.float32)
    for x, cell in zip(values, numeric_cells(np.array(values), edges).tolist(), strict=True):
        if np.isnan(x):
            assert cell == 6
        elif x < -1:
            assert cell == 0
        elif x > 1:
            assert cell == 5
        elif x == 1:
            assert cell == 4  # the last edge closes its cell
        else:
            assert EDGES[cell - 1] <= x < EDGES[cell]


def test_a_score_counts_its_bin_and_adds_its_fixed_point() -> None:
    binner = Binner((of("score"),))
    binner.add({"x": np.array([[0.0], [0.05], [0.999], [1.0], [1.0005], [-0.0005], [1.1], [np.nan], [-np.inf]])})
    cells = binner.take()
    assert cells[:20].tolist() == [2, 1, *[0] * 17, 3]
    assert cells[20] == 3  # 1.1, NaN, -inf
    assert cells[21] == round(0.05 * SCORE_ONE) + round(0.999 * SCORE_ONE) + 2 * SCORE_ONE


def test_a_count_has_a_top_and_a_place_for_what_is_none() -> None:
    binner = Binner((of("count"),))
    binner.add({"x": np.array([[0.0], [9.0], [9.5], [10.0], [1e9], [np.inf], [-1.0], [np.nan]])})
    assert binner.take().tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 2]


def test_the_class_of_a_row_with_nan_is_other() -> None:
    binner = Binner((of("categorical", "argmax", values=(0, 1)),))
    binner.add({"x": np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0, 0.1, 0.9], [np.nan, 0.9, 0]])})
    assert binner.take().tolist() == [1, 1, 2]


def test_an_empty_batch_and_a_batch_without_boxes_count_nothing_wrong() -> None:
    binner = Binner(EVERY)
    binner.add(outputs([]))
    assert not binner.take().any()
    none = {"x": np.ones((2, 3)), "boxes": np.ones((2, 0, 4)), "scores": np.ones((2, 0)), "classes": np.ones((2, 0))}
    binner.add(none)
    per = baseline.per_channel(EVERY, binner.take())
    assert [int(c.sum()) for c in per] == [2, 6, 0, 2, 0, 2, 0, 2]
    rowless = Binner((of("score", "max"), of("categorical", "argmax", values=(0,))))
    rowless.add({"x": np.ones((2, 0), np.float32)})
    score, classes = baseline.per_channel(rowless.channels, rowless.take())
    assert score.tolist() == [*[0] * 20, 2]
    assert classes.tolist() == [0, 2]


def test_values_beyond_float32_lie_outside_the_edges() -> None:
    edges = np.array(EDGES, np.float32)
    assert numeric_cells(np.array([1e300, -1e300]), edges).tolist() == [5, 0]


@pytest.mark.parametrize(
    ("channel", "tensors", "field"),
    [
        (of("score"), {"y": np.ones((1, 1))}, "outputs"),
        (of("score"), {"x": np.float32(1)}, "x"),
        (Channel(name="c", group="input", kind="score", source=Source("x", "column", 3)), {"x": np.ones((1, 3))}, "x"),
        (of("numeric", "area", edges=EDGES), {"x": np.ones((1, 6))}, "x"),
        (of("score", "each", mask="m"), {"x": np.ones((1, 6)), "m": np.ones((1, 5))}, "m"),
        (of("score", "each", mask="m"), {"x": np.ones((1, 6)), "m": np.ones((2, 3))}, "m"),
    ],
)
def test_outputs_that_do_not_fit_a_channel_name_the_tensor(channel: Channel, tensors: Outputs, field: str) -> None:
    with pytest.raises(ContractError) as caught:
        Binner((channel,)).add(tensors)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("kind", "more", "field"),
    [
        ("numeric", {"edges": ()}, "edges"),
        ("numeric", {"edges": (1.0,)}, "edges"),
        ("numeric", {"edges": (1.0, 1.0)}, "edges"),
        ("numeric", {"edges": (2.0, 1.0)}, "edges"),
        ("numeric", {"edges": (-0.0, 0.0)}, "edges"),
        ("numeric", {"edges": (0.0, float("nan"))}, "edges"),
        ("numeric", {"edges": (0.0, float("inf"))}, "edges"),
        ("numeric", {"edges": (0.0, 1e39)}, "edges"),
        ("numeric", {"edges": (0.0, 0.1)}, "edges"),  # no float32
        ("numeric", {"edges": (0.0, 1.0), "values": (1,)}, "values"),
        ("score", {"edges": (0.0, 1.0)}, "edges"),
        ("categorical", {}, "values"),
        ("categorical", {"values": (1, 1)}, "values"),
    ],
)
def test_a_channel_that_cannot_count_is_refused_by_name(kind: Kind, more: dict[str, object], field: str) -> None:
    with pytest.raises(ContractError) as caught:
        of(kind, **more)  # type: ignore[arg-type]
    assert caught.value.field == f"channels[{kind}-column-x].{field}"


def test_the_edge_hash_depends_on_definitions_only() -> None:
    numpy_edges = of("numeric", edges=tuple(np.array([0, 1, 2], np.float32)))
    assert edge_hash((numpy_edges,)) == edge_hash((of("numeric", edges=(0, 1, 2)),)) == "3d5a192d05a98e0f"
    assert edge_hash((of("numeric", edges=(0, 1, 3)),)) != edge_hash((numpy_edges,))
    assert edge_hash(EVERY) != edge_hash(EVERY[::-1])


def test_a_baseline_whose_hash_or_counts_do_not_fit_is_refused() -> None:
    good = baseline.make(EVERY, np.zeros(width(EVERY), np.int64), n=0)
    with pytest.raises(ContractError, match="edge_hash"):
        baseline.Baseline(edge_hash="0" * 16, n=0, channels=EVERY, counts=good.counts)
    with pytest.raises(ContractError, match="counts"):
        baseline.Baseline(edge_hash=good.edge_hash, n=0, channels=EVERY, counts=good.counts[:-1])
    with pytest.raises(ContractError, match="channels"):
        baseline.make((EVERY[0], EVERY[0]), np.zeros(2 * EVERY[0].width, np.int64), n=0)


@given(st.lists(st.integers(0, 2**40), min_size=width(EVERY), max_size=width(EVERY)))
def test_a_baseline_comes_back_with_its_tails_raised(counts: list[int]) -> None:
    made = baseline.make(EVERY, np.array(counts, np.int64), n=5)
    back = baseline.decode_baseline(baseline.encode_baseline(made))
    assert back == made
    at = 0
    for channel in EVERY:
        tails = (at, at + len(channel.edges)) if channel.kind == "numeric" else ()
        expected = [max(1, c) if i in tails else c for i, c in enumerate(counts)]
        assert back.cells()[at : at + channel.width].tolist() == expected[at : at + channel.width]
        at += channel.width
