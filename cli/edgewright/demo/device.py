"""One device: an agent in the process of its application, fed with held-out digits, some of which get a label later.

    python -m edgewright.demo.device --home DIR --seed 3 --rate 50 --labels 0.5

Ends on SIGTERM. `DIR/feed.json` is read again while it runs: {"shift": "sensor-noise+dead-row"} shifts what the sensor
sees from then on, {"paused": true} stops the application asking. `DIR/tally` is the driver's own count (see tally.py).
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
POOL: Final = 2000  # draws made at once; a new pool when it is used up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=50.0, help="inferences per second")
    parser.add_argument("--labels", type=float, default=0.0, help="share of inferences that get a label later")
    parser.add_argument("--runtime", help="the runtime to use; all that work here when it is not named")
    options = parser.parse_args()

    stop = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    rng = np.random.default_rng(options.seed)
    tally = Tally(options.home / "tally", mono_ms=time.monotonic_ns() // 1_000_000)
    feed = Feed(options.home / "feed.json", rng)
    due: list[tuple[float, int, int]] = []  # (when, prediction id, truth)

    with Agent(options.home, runtimes=[options.runtime] if options.runtime else None) as agent:
        model = agent.model(options.model)
        while not stop and not model.wait(timeout=0.2):
            pass
        next_at = time.monotonic()
        while not stop:
            feed.follow()
            now = time.monotonic()
            if feed.paused:
                next_at = now
            while next_at <= now and not feed.paused and not stop:
                next_at += 1 / options.rate
                image, truth = feed.next()
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
    """Images and truths one at a time, drawn in pools; `follow` reads `feed.json` when it has changed."""

    def __init__(self, control: Path, rng: np.random.Generator) -> None:
        self.paused = False
        self._control = control
        self._rng = rng
        self._shift: str | None = None
        self._changed = 0
        self._draw()

    def follow(self) -> None:
        try:
            changed = self._control.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed == self._changed:
            return
        self._changed = changed
        wanted = json.loads(self._control.read_text())
        self.paused = bool(wanted.get("paused"))
        if wanted.get("shift") != self._shift:
            self._shift = wanted.get("shift")
            self._draw()

    def next(self) -> tuple[data.Images, int]:
        self._at += 1
        if self._at == POOL:
            self._draw()
        return self._images[self._at], int(self._truths[self._at])

    def _draw(self) -> None:
        self._images, self._truths = data.feed(self._rng, POOL, shift=self._shift)
        self._at = 0


if __name__ == "__main__":
    main()
