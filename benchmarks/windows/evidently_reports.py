"""Does the fast version of Evidently's rule say what Evidently says? Real reports on the same windows.

The tool has a venv of its own, .edgewright/venvs/evidently-0.7.23 (about 1 GB, made once): it needs pandas < 3.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from . import rules
from .counting import Reference
from .digits import SHIFTS, Digits

ROOT: Final = Path(__file__).resolve().parents[2]
VENV: Final = ROOT / ".edgewright" / "venvs" / "evidently-0.7.23"
WITHIN: Final = 1e-6
CHANNELS: Final = slice(1, None, 2)  # of the monitor's 22; the last one is the class


def venv() -> Path:
    """Its Python."""
    python, done = VENV / "bin" / "python", VENV / "installed"
    if not done.exists():
        print(f"making {VENV.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "evidently==0.7.23", "pandas<3"], check=True)
        done.touch()
    return python


def check(
    digits: Digits, reference: Reference, rng: np.random.Generator, sizes: tuple[int, ...], reports: int
) -> dict[str, Any]:
    """By window size: of how many reports and columns both said the same. Every second window is shifted. A report
    takes seconds for some columns, so it gets every second channel, the predicted class among them."""
    found = {}
    for n in sizes:
        drawn = [digits.draw(rng, n, SHIFTS[i // 2 % len(SHIFTS)] if i % 2 else None)[0] for i in range(reports)]
        outputs = digits.outputs(np.concatenate(drawn))["monitor"]
        windows = reference.windows(outputs, n)
        distances = rules.evidently_distances(reference, windows)[:, CHANNELS]
        said = _asked(reference, windows.values)
        scores = np.array([one["scores"] for one in said])
        drifted = np.array([one["drifted"] for one in said])
        ours = (distances >= rules.COLUMN).sum(1)
        columns = scores.shape[1]
        found[str(n)] = {
            "reports": reports,
            "same_verdict": int(((drifted / columns >= rules.DATASET) == (ours / columns >= rules.DATASET)).sum()),
            "same_count_of_columns": int((drifted == ours).sum()),
            "columns": int(scores.size),
            "same_distance": int((np.abs(scores - distances) <= WITHIN).sum()),
            "drifted_columns_said": int(drifted.sum()),
            "drifted_columns_ours": int(ours.sum()),
            "methods": ", ".join(sorted({method for one in said for method in one["methods"]})),
            "cpu_s_a_report": round(statistics.median(one["cpu_s"] for one in said), 2),
        }
    return found


def _asked(reference: Reference, values: list[Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        given, answers = Path(folder) / "windows.npz", Path(folder) / "answers.json"
        rows = np.stack(values[CHANNELS], axis=2).astype(np.float64)  # [windows, n, columns]
        np.savez(
            given,
            reference=np.stack(reference.values[CHANNELS], axis=1).astype(np.float64),
            categorical=np.array([channel.kind == "categorical" for channel in reference.channels[CHANNELS]]),
            **{f"window-{i}": window for i, window in enumerate(rows)},
        )
        script = Path(__file__).with_name("evidently_tool.py")
        alone = {**os.environ, "PYTHONPATH": "", "DO_NOT_TRACK": "1"}
        subprocess.run([venv(), script, given, answers], check=True, env=alone)
        found: list[dict[str, Any]] = json.loads(answers.read_text())
    return found
