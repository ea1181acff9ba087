"""What Evidently itself says of windows; run by the venv that `evidently_reports` makes.

    .edgewright/venvs/evidently-0.7.23/bin/python evidently_tool.py WINDOWS.npz ANSWERS.json

Reads `reference` float64[rows, columns], `categorical` bool[columns], and `window-0`, `window-1`, … Writes a list with,
for each window: drift scores and methods of the columns, how many of them drifted, and the CPU seconds of the report.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset


def main(source: str, target: str) -> None:
    given = np.load(source)
    categorical = given["categorical"]
    names = [f"c{i}" for i in range(len(categorical))]
    definition = DataDefinition(
        numerical_columns=[name for name, is_class in zip(names, categorical, strict=True) if not is_class],
        categorical_columns=[name for name, is_class in zip(names, categorical, strict=True) if is_class],
    )

    def dataset(rows: Any) -> Dataset:
        return Dataset.from_pandas(pd.DataFrame(rows, columns=names), data_definition=definition)

    reference = dataset(given["reference"])
    answers = []
    for i in range(len(given.files) - 2):
        began = time.process_time()
        metrics = Report([DataDriftPreset()]).run(dataset(given[f"window-{i}"]), reference).dict()["metrics"]
        taken = time.process_time() - began
        columns = {m["config"]["column"]: m for m in metrics if "column" in m["config"]}
        counted = next(m["value"] for m in metrics if "column" not in m["config"])
        answers.append(
            {
                "scores": [float(columns[name]["value"]) for name in names],
                "methods": [columns[name]["config"]["method"] for name in names],
                "drifted": int(counted["count"]),
                "cpu_s": taken,
            }
        )
        print(f"report {i + 1}: {taken:.1f} s of CPU", file=sys.stderr, flush=True)
    Path(target).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
