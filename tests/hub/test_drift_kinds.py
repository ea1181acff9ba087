"""What kind of drift it is follows from what moved, by one table."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_hub.drift import feed, kinds
from edgewright_hub.drift.moves import Channels, Moved, moved


def _moved(name: str, of: str = "numeric", far: float = 0.2, **more: object) -> Moved:
    known = {"name": name, "p": 1e-9, "js": far, "js_beyond_chance": far, "psi": 1.0, "psi_chance": 0.1, "of": of}
    return Moved(**known | more)  # type: ignore[arg-type]


CLASS = _moved("class", "categorical")


@pytest.mark.parametrize(
    ("moves", "alarms", "skewed", "named"),
    [
        ({"output": [CLASS]}, {"output"}, set(), ["label shift"]),
        ({"output": [CLASS], "embedding": [_moved("p1", far=0.1)]}, {"output", "embedding"}, set(), ["label shift"]),
        ({"output": [CLASS], "embedding": [_moved("p1", far=0.4)]}, {"output", "embedding"}, set(), []),
        ({"input": [_moved("mean", cells="missing")]}, {"input"}, set(), ["missing values", "input shift, unfelt"]),
        ({"embedding": [_moved("distance-all", up=True)]}, {"embedding"}, set(), ["new classes"]),
        ({"embedding": [_moved("distance-all")]}, {"embedding"}, set(), []),
        (
            {"output": [_moved("class", "categorical", cells="outside")]},
            {"output"},
            set(),
            ["new classes", "label shift"],
        ),
        ({"input": [_moved("mean")]}, set(), {"input"}, ["training-serving skew"]),
        ({"feed": [_moved("repeated", "feed")]}, {"feed"}, set(), ["stale or repeated input"]),
        ({"input": [_moved("mean")]}, {"input"}, set(), ["input shift, unfelt"]),
        ({"input": [_moved("mean")], "output": [CLASS]}, {"input", "output"}, set(), ["input shift, felt"]),
        ({"output": [_moved("confidence", "score")]}, {"output"}, set(), ["output shift"]),
        ({}, set(), set(), []),
    ],
)
def test_what_moved_has_a_name(
    moves: dict[str, list[Moved]], alarms: set[str], skewed: set[str], named: list[str]
) -> None:
    seen = kinds.evidence(moves, alarms=frozenset(alarms), skewed=frozenset(skewed))
    assert list(kinds.kinds(seen)) == named


def test_severity_counts_the_verdicts_that_moved_and_not_the_feed() -> None:
    assert kinds.severity(kinds.evidence({}, alarms=frozenset({"input", "output", "feed"}))) == 2


def test_a_channel_says_which_of_its_cells_grew() -> None:
    channels = Channels(names=("a", "b", "c"), kinds=("numeric", "numeric", "categorical"), widths=(6, 6, 4))
    R = np.array([[1, 500, 500, 500, 1, 0], [1, 500, 500, 500, 1, 0], [700, 600, 200, 1, 0, 0]], float)
    C = np.array([[0, 100, 90, 90, 0, 40], [0, 90, 90, 90, 50, 0], [90, 90, 40, 60, 0, 0]], float)
    found = {m.name: m for m in moved(channels, C, R, np.full(3, 1e-9), np.ones(3), 0.05)}
    assert {name: m.cells for name, m in found.items()} == {"a": "missing", "b": "outside", "c": "outside"}
    assert found["b"].up


def test_inputs_are_counted_by_whether_they_repeat_and_by_age() -> None:
    from edgewright_contracts.binning import pack_grid

    grid = np.zeros(401, np.int64)
    grid[[0, 400]] = 7, 3

    class Row:
        n, repeated, input_age = 10, 4, pack_grid(grid)

    told = feed.counts(Row)
    assert told[0, :2].tolist() == [6, 4]
    assert (told[1, 0], told[1, -1], told[1].sum()) == (7, 3, 10)
