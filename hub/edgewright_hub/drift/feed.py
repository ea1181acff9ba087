"""How inputs reach a model, as the agent counts it beside the channels: equal ones in a row, and their age when used.

Two channels of a part of its own, `feed`. No package has a reference for them: what is usual is a device's own past, so
a stream of them is tested only against its own baseline or its cohort's.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import numpy as np

from edgewright_contracts.binning import GRID_CELLS, Cells, unpack_grid
from edgewright_contracts.errors import ContractError

from .moves import Channels

AGES: Final = 12  # cells; each is a factor of five wide
CHANNELS: Final = Channels(names=("repeated", "age"), kinds=("feed", "feed"), widths=(2, AGES))
_CELL: Final = np.minimum(np.arange(GRID_CELLS) * AGES // GRID_CELLS, AGES - 1)


def counts(row: Any) -> Cells:
    """int64[2, AGES] of a row of telemetry.windows: (not repeated, repeated), and inputs by age."""
    out = np.zeros((2, AGES), np.int64)
    repeated = min(int(row.repeated), int(row.n))
    out[0, :2] = row.n - repeated, repeated
    with contextlib.suppress(ContractError):  # ingest dead-letters such a report: nothing is hidden by it here
        np.add.at(out[1], _CELL, unpack_grid(bytes(row.input_age)))
    return out
