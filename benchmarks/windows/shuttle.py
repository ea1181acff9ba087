"""Telemetry of a space shuttle (UCI Statlog, as river 0.26.1 carries it): 49,097 rows of nine readings.

Rows are split at random, again and again: 29,097 are the reference, and windows are drawn from the others without
putting back. So rows of window and reference may be exchanged, and the null is exactly true.
"""

from __future__ import annotations

import gzip
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_compiler.graph.features import Feature
from edgewright_contracts.channels import Source
from edgewright_models.anomaly.data import PIN, READINGS
from edgewright_models.carriers import wheel_member

SHIFTS: Final = ("scale", "null")
WINDOW_ROWS: Final = 20_000
FEATURES: Final = tuple(
    Feature(f"reading-{i + 1}", "input", "numeric", Source("readings", "column", i)) for i in range(READINGS)
)

Readings = npt.NDArray[np.float32]  # [n, 9]


def readings() -> Readings:
    """Raises Unavailable when the telemetry cannot be had."""
    lines = gzip.decompress(wheel_member(*PIN)).decode().splitlines()
    return np.loadtxt(lines, np.float32, delimiter=",", skiprows=1)[:, :READINGS]


def split(rng: np.random.Generator, rows: Readings) -> tuple[Readings, Readings]:
    """Reference, and the rows that windows are drawn from."""
    mixed = rows[rng.permutation(len(rows))]
    return mixed[WINDOW_ROWS:], mixed[:WINDOW_ROWS]


def shifted(rng: np.random.Generator, rows: Readings, shift: str | None) -> Readings:
    """scale: the first reading x1.05; null: it is missing in 5 % of rows."""
    rows = rows.copy()
    if shift == "scale":
        rows[:, 0] *= np.float32(1.05)
    if shift == "null":
        rows[rng.random(len(rows)) < 0.05, 0] = np.nan
    return rows
