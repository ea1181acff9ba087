"""Edges are cut where features vary, and counts are each variant's own."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_compiler.graph.features import Feature, by_frequency, of_monitor, of_outputs
from edgewright_compiler.graph.reference import count, cut, run
from edgewright_contracts.channels import Source
from edgewright_contracts.errors import ContractError

RNG = np.random.default_rng(5)
FEATURES = (
    *of_monitor((("mean", "input"), ("dark-share", "input"), ("pca-1", "embedding"), ("confidence", "output"))),
    *of_outputs("classification", size=3),
)


def outputs(rows: int) -> dict[str, np.ndarray]:
    monitor = RNG.normal(size=(rows, 4)).astype(np.float32)
    monitor[:, 1] = 0  # no image of the reference was ever dark
    monitor[:, 3] = RNG.uniform(0, 1, rows)
    return {"probabilities": RNG.dirichlet(np.ones(3), rows).astype(np.float32), "monitor": monitor}


def test_a_feature_that_never_varies_is_left_out() -> None:
    channels = cut(FEATURES, outputs(500))
    assert [c.name for c in channels] == ["mean", "pca-1", "confidence", "class"]
    assert [c.kind for c in channels] == ["numeric", "numeric", "score", "categorical"]
    assert len(channels[0].edges) == 11


def test_a_reference_of_equal_rows_is_told() -> None:
    same = {name: np.repeat(array[:1], 30, axis=0) for name, array in outputs(1).items()}
    with pytest.raises(ContractError, match="rows that differ in one monitored number at least, got 30 alike"):
        cut(FEATURES, same)


def test_a_detector_that_found_nothing_counts_no_areas() -> None:
    none = {"boxes": np.zeros((9, 4, 4), "f4"), "scores": np.zeros((9, 4), "f4"), "classes": np.zeros((9, 4), "i4")}
    features = (*of_outputs("detection", size=2), Feature("x", "input", "numeric", Source("x")))
    assert [c.name for c in cut(features, {**none, "x": np.arange(9.0)})] == ["boxes", "score", "class", "x"]


def test_every_row_is_counted_once_in_every_channel() -> None:
    found = outputs(700)
    channels = cut(FEATURES, found)
    assert count(channels, found).n == 700


def test_the_most_frequent_classes_are_listed_and_padding_is_none() -> None:
    labels = np.array([5] * 3 + [2] * 3 + [9] + [-1] * 20)
    assert by_frequency(labels) == (2, 5, 9)
    many = np.repeat(np.arange(30), np.arange(30) + 1)
    (listed,) = of_outputs("classification", size=30, frequent=by_frequency(many))
    assert listed.values == tuple(range(10, 30))


def test_rows_are_run_in_batches_and_stay_in_order() -> None:
    class Doubling:
        runtime, version, concurrent = "none", "0", True
        sizes: list[int] = []  # noqa: RUF012

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.sizes.append(len(inputs["x"]))
            return {"y": inputs["x"] * 2}

    session = Doubling()
    rows = np.arange(1300)
    assert (run(session, {"x": rows})["y"] == rows * 2).all()
    assert session.sizes == [512, 512, 276]
