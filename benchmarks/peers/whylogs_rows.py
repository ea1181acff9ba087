"""What whylogs needs to log rows: one by one, and by batches of several lengths.

    .venv-whylogs/bin/python benchmarks/peers/whylogs_rows.py ROWS.npz

Run by `agent_overhead.py` in an environment of its own, which it says how to make: whylogs 1.6.4 takes strings only
with numpy 1 (whylabs/whylogs#1600). ROWS.npz holds `numbers`, float64[n, columns], and `classes`, their names. Rows are
dicts, as `track(row=...)` takes them, batches are data frames; to make either is not counted. Prints one JSON object,
in microseconds of processor time a row.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["WHYLOGS_NO_ANALYTICS"] = "True"

import numpy as np
import pandas as pd
import whylogs as why

SINGLE = 200
BATCHES = (100, 1000, 10_000)  # longer ones cost no less
REPEATS = 3


def us(call: Callable[[], Any], rows: int) -> float:
    """The least of `REPEATS`, per row."""
    took = []
    for _ in range(REPEATS):
        began = time.process_time_ns()
        call()
        took.append(time.process_time_ns() - began)
    return min(took) / rows / 1e3


def main() -> None:
    with np.load(sys.argv[1]) as found:
        numbers, classes = found["numbers"], found["classes"].astype(str)
    names = [f"c{i}" for i in range(numbers.shape[1])]
    frame = pd.DataFrame(numbers, columns=names)
    frame["class"] = classes
    rows = frame.iloc[:SINGLE].to_dict("records")

    def one_by_one() -> None:
        profile = why.log(row=rows[0]).profile()
        for row in rows[1:]:
            profile.track(row=row)

    print(
        json.dumps(
            {
                "version": why.__version__ if hasattr(why, "__version__") else "",
                "row_us": us(one_by_one, SINGLE),
                "batch_us": {str(n): us(lambda n=n: why.log(frame.iloc[:n]), n) for n in BATCHES if n <= len(frame)},
            }
        )
    )


if __name__ == "__main__":
    main()
