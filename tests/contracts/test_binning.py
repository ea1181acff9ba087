"""Varints, the log grid and its quantiles: exact, canonical, bounded."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewright_contracts.binning import (
    GRID_CELLS,
    GRID_EDGES_NS,
    add,
    add_grid,
    grid_index,
    grid_quantile_ns,
    pack,
    pack_grid,
    quantile_edges,
    unpack,
    unpack_grid,
)
from edgewright_contracts.channels import numeric_cells
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.errors import ContractError
from sim.reports import grid_counts

# small cells are likely, so that runs of one-byte varints and borders of 7 bits both come up
CELL = st.one_of(st.integers(0, 300), st.integers(0, MAX_COUNT), st.sampled_from([127, 128, 2**14, 2**35, MAX_COUNT]))
CELLS = st.lists(CELL, max_size=60)
T = TypeVar("T")


def attempt(call: Callable[[], T]) -> T | ContractError:
    try:
        return call()
    except ContractError as error:
        return error


DURATIONS = st.lists(st.one_of(st.integers(0, 10**6), st.integers(0, 10**12)), max_size=80)


@given(CELLS)
@example([MAX_COUNT])
def test_varints_come_back_as_they_were(cells: list[int]) -> None:
    assert unpack(pack(cells), count=len(cells)).tolist() == cells


@given(st.binary(max_size=60))
def test_bytes_are_refused_or_are_the_only_form_of_their_numbers(data: bytes) -> None:
    cells = attempt(lambda: unpack(data))
    if isinstance(cells, ContractError):
        assert cells.field == "cells"
    else:
        assert pack(cells) == data


@given(CELLS, st.integers(0, 59), st.integers(1, 5))
def test_a_varint_padded_with_zeros_is_refused(cells: list[int], index: int, padding: int) -> None:
    assume(index < len(cells))
    one = pack([cells[index]])
    padded = one[:-1] + bytes([one[-1] | 128]) + b"\x80" * (padding - 1) + b"\x00"
    with pytest.raises(ContractError, match=r"shortest form|at most 6 bytes"):
        unpack(pack(cells[:index]) + padded + pack(cells[index + 1 :]))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x01\xff",
        b"\x80\x80\x80\x80\x80\x40",  # 2**41
        b"\x81\x80\x80\x80\x80\x20",  # 2**40 + 1
        b"\xff" * 9 + b"\x01",  # 2**64 - 1
        b"\xff" * 65536,
    ],
)
def test_a_varint_that_is_cut_too_long_or_too_large_is_refused(data: bytes) -> None:
    with pytest.raises(ContractError, match=r"^window\.cells: "):
        unpack(data, field="window.cells")


@pytest.mark.parametrize("cells", [[-1], [MAX_COUNT + 1], [0, 5, -(2**40)]])
def test_a_cell_outside_its_range_is_not_written(cells: list[int]) -> None:
    with pytest.raises(ContractError, match="cells"):
        pack(cells)


def test_another_number_of_cells_is_refused() -> None:
    with pytest.raises(ContractError, match="expected 4 cells, got 3"):
        unpack(pack([1, 2, 3]), count=4)
    with pytest.raises(ContractError, match="expected 3 cells, got 2"):
        add(pack([1, 2, 3]), pack([1, 2]))


@given(st.lists(st.tuples(*[st.integers(0, MAX_COUNT // 3)] * 3), max_size=40))
def test_packed_cells_add_in_any_order(rows: list[tuple[int, int, int]]) -> None:
    a, b, c = (pack([row[i] for row in rows]) for i in range(3))
    assert add(add(a, b), c) == add(a, add(b, c)) == add(c, add(b, a)) == pack([sum(row) for row in rows])
    assert add(a, b"") == add(b"", a) == a


def test_a_sum_beyond_the_largest_cell_is_refused() -> None:
    with pytest.raises(ContractError, match="cells"):
        add(pack([MAX_COUNT]), pack([1]))


def test_the_grid_is_the_same_everywhere() -> None:
    """Edges are whole nanoseconds, far enough from a half that no machine's `pow` rounds one the other way."""
    assert GRID_EDGES_NS.tolist() == [round(1000 * Fraction(21, 20) ** i) for i in range(GRID_CELLS)]
    assert GRID_EDGES_NS[[0, 1, 2, 100, 200, 300, 400]].tolist() == [
        1000,
        1050,
        1102,
        131501,
        17292581,
        2273996129,
        299033351249,
    ]
    assert (np.diff(GRID_EDGES_NS) > 0).all()


def test_a_duration_on_an_edge_belongs_to_the_cell_above_and_the_ends_take_the_rest() -> None:
    assert grid_index(GRID_EDGES_NS).tolist() == list(range(GRID_CELLS))
    assert grid_index(GRID_EDGES_NS[1:] - 1).tolist() == list(range(GRID_CELLS - 1))
    assert grid_index([0, 999, 2**62]).tolist() == [0, 0, GRID_CELLS - 1]


@given(st.lists(st.integers(1000, 299_000_000_000), min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_from_the_grid_is_within_5_percent(durations: list[int], q: float) -> None:
    exact = sorted(durations)[min(len(durations) - 1, int(q * len(durations)))]
    found = grid_quantile_ns(grid_counts(durations), q)
    assert found is not None
    assert abs(found - exact) <= 0.05 * exact


def test_no_durations_have_no_quantile() -> None:
    assert grid_quantile_ns(grid_counts([]), 0.5) is None


@given(DURATIONS, DURATIONS, DURATIONS)
def test_grids_come_back_and_add_in_any_order(x: list[int], y: list[int], z: list[int]) -> None:
    a, b, c = (pack_grid(grid_counts(d)) for d in (x, y, z))
    assert (unpack_grid(a) == grid_counts(x)).all()
    assert add_grid(add_grid(a, b), c) == add_grid(a, add_grid(c, b)) == pack_grid(grid_counts(x + y + z))


@given(st.binary(max_size=40))
def test_grid_bytes_are_refused_or_are_the_only_form_of_their_counts(data: bytes) -> None:
    counts = attempt(lambda: unpack_grid(data))
    if isinstance(counts, ContractError):
        assert counts.field == "latency"
    else:
        assert pack_grid(counts) == data


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([3], "pairs"),
        ([3, 0], "count of 0"),
        ([GRID_CELLS, 1], "below 401"),
        ([GRID_CELLS - 1, 1, 0, 1], "below 401"),
        ([MAX_COUNT, 1] * 401, "below 401"),
        ([0, 1] * 402, "at most 401"),
    ],
)
def test_a_grid_of_other_cells_is_refused(pairs: list[int], reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        unpack_grid(pack(pairs))


@given(hnp.arrays(np.float64, st.integers(0, 60), elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_quantile_edges_are_float32_and_rise_or_nothing_can_be_counted(values: np.ndarray) -> None:
    edges = attempt(lambda: quantile_edges(values))
    if isinstance(edges, ContractError):
        assert edges.field == "values"
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        assert len(set(narrow[np.isfinite(narrow)].tolist())) < 2
        return
    assert 2 <= len(edges) <= 11
    assert list(edges) == sorted(set(edges))
    assert all(np.float32(e) == e and np.isfinite(e) for e in edges)
    assert not any(e == 0 and np.signbit(e) for e in edges)


def test_a_value_rounded_differently_by_another_cpu_stays_in_its_cell() -> None:
    levels = (np.random.default_rng(0).integers(0, 65, 20_000) / np.float32(64)).astype(np.float32)
    edges = np.array(quantile_edges(levels), np.float32)
    cells = np.bincount(numeric_cells(levels, edges), minlength=edges.size + 2)
    for neighbour in (np.float32(-9), np.float32(9)):
        other = np.bincount(numeric_cells(np.nextafter(levels, neighbour), edges), minlength=edges.size + 2)
        assert (other == cells).all()
