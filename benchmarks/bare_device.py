"""An application with an agent in it and nothing else: what `agent_footprint.py` and `update_gap.py` measure.

    python bare_device.py HOME MODEL INPUTS.npy RUNTIME EVERY_S [ANSWERS.npy]

INPUTS.npy holds rows with a field for each input (an .npz takes a library of archives to read). Predicts one row every
EVERY_S seconds; a line on stdin with another number changes that (0 pauses), the end of stdin ends it. Prints
`answered` after the first prediction, and at the end how many were asked and how many were not answered. ANSWERS.npy
gets a row (when asked, when answered; monotonic ns) for each answer. Imports numpy and the agent only, so that what is
measured is theirs.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path

import numpy as np

from edgewright_agent import Agent
from edgewright_contracts.errors import Unavailable


def main(home: str, name: str, inputs: str, runtime: str, every: str, answers: str = "") -> None:
    rows = [dict(zip(row.dtype.names, row, strict=True)) for row in np.load(inputs)]
    every_s, asked, failed = float(every), 0, []
    times: list[tuple[int, int]] = []
    with Agent(Path(home), runtimes=[runtime]) as agent:
        model = agent.model(name)
        while not model.wait(timeout=0.1):
            if _said(0.0) == "":
                return
        due, said = time.monotonic(), None
        while said != "":
            now = time.monotonic()
            if every_s and now >= due:
                due = max(due + every_s, now - 0.1)  # after a stall it does not catch up in one burst
                began = time.monotonic_ns()
                try:
                    model.predict(rows[asked % len(rows)])
                except Unavailable as error:
                    failed.append(str(error))
                asked += 1
                if answers:
                    times.append((began, time.monotonic_ns()))
                if asked == 1:
                    sys.stdout.write("answered\n")
                    sys.stdout.flush()
                now = time.monotonic()
            said = _said(max(0.0, due - now) if every_s else 0.5)
            if said:
                every_s, due = float(said), time.monotonic()
    if answers:
        np.save(answers, np.array(times, np.int64).reshape(-1, 2))
    sys.stdout.write(json.dumps({"asked": asked, "failed": failed}) + "\n")


def _said(wait_s: float) -> str | None:
    """The line on stdin; "" at its end, None when nothing came in time. Unbuffered, so that select sees all."""
    if not select.select([0], [], [], wait_s)[0]:
        return None
    return os.read(0, 100).decode()


if __name__ == "__main__":
    main(*sys.argv[1:])
