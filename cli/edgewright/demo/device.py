"""One device: an agent in the process of its application, fed with held-out digits, some of which get a label later.

    python -m edgewright.demo.device --home DIR --seed 3 --rate 50 --labels 0.5

Ends on SIGTERM. `DIR/feed.json` is read again while it runs: {"shift": "sensor-noise+dead-row"} shifts the input from
then on. `DIR/tally` is the driver's own count (see tally.py).
"""

from __future__ import annotations

import argparse
import heapq
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np

from edgewright_agent import Agent
from edgewright_contracts.errors import EdgewrightError
from edgewright_models.digits import data

from .tally import Tally

LABEL_DELAY_S: Final = 1.0
TICK_S: Final = 0.02
POOL: Final = 4000  # draws made at once; a new pool when it is used up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=50.0, help="inferences per second")
    parser.add_argument("--labels", type=float, default=0.0, help="share of inferences that get a label later")
    options = parser.parse_args()

    stop = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    rng = np.random.default_rng(options.seed)
    tally = Tally(options.home / "tally")
    feed = Feed(options.home / "feed.json", rng)
    due: list[tuple[float, int, int]] = []  # (when, prediction id, truth)

    with Agent(options.home) as agent:
        model = agent.model(options.model)
        while not stop and not model.wait(timeout=0.2):
            pass
        start, made = time.monotonic(), 0
        while not stop:
            now = time.monotonic()
            while made < (now - start) * options.rate and not stop:
                image, truth = feed.next()
                made += 1
                try:
                    prediction = model.predict({"image": image})
                except EdgewrightError as error:
                    tally.failed()
                    print(f"predict: {error}", file=sys.stderr)  # noqa: T201
                    continue
                tally.predicted(time.monotonic_ns() // 1_000_000)
                if rng.random() < options.labels:
                    heapq.heappush(due, (now + LABEL_DELAY_S, prediction.id, truth))
            while due and due[0][0] <= now:
                _, identifier, truth = heapq.heappop(due)
                agent.label(identifier, truth)
                tally.labelled()
            time.sleep(TICK_S)


class Feed:
    """Images and truths one at a time, drawn in pools; follows `feed.json`."""

    def __init__(self, control: Path, rng: np.random.Generator) -> None:
        self._control = control
        self._rng = rng
        self._shift: str | None = None
        self._changed = 0.0
        self._draw()

    def next(self) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], int]:
        self._at += 1
        if self._at >= POOL or (self._at % 25 == 0 and self._read_control()):
            self._draw()
        return self._images[self._at], int(self._truths[self._at])

    def _read_control(self) -> bool:
        try:
            changed = self._control.stat().st_mtime
            if changed == self._changed:
                return False
            self._changed = changed
            shift = json.loads(self._control.read_text()).get("shift")
        except (FileNotFoundError, json.JSONDecodeError):  # being written: read it at the next turn
            return False
        changed_shift = shift != self._shift
        self._shift = shift
        return bool(changed_shift)

    def _draw(self) -> None:
        self._images, self._truths = data.feed(self._rng, POOL, shift=self._shift)
        self._at = 0


if __name__ == "__main__":
    main()
