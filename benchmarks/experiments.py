"""Does the interval of an experiment hold the truth, and what can it see? On simulated fleets, with the hub's own code.

    python benchmarks/experiments.py [--runs N] [--json]

Each device makes 60 runs an hour, of which 5 % fail; devices differ by a CV, and the rate swings by 30 % over the day.
Counts are Poisson times `phi`. Chance picks the treated devices. Everybody looks every 6 hours, for 14 days (1,000
devices: 7), and the experiment ends at the first look at which the release is called better or worse.

    left_out     share of the runs in which one of the looks left out the truth, without an effect
    called       share of the runs without an effect in which the release was called better or worse
    sees         the smallest of RATIOS that is called worse in 80 % of the runs; null: none of them
    days         until then, in the middle
    apart        so far the devices alone may lie apart at the end, in the middle; null: no bound

About 3 minutes of CPU with 200 runs. The same seeds give the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Final, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from edgewright_hub.rollouts.effect import Comparison, Effect, compared, effect
from edgewright_hub.rollouts.likeness import likeness
from edgewright_hub.rollouts.processes import Counts, Floats, interval

RATIOS: Final = (1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
LOOK_H: Final = 6
OFTEN: Final = 0.8
RATE: Final = 0.05
RUNS_AN_HOUR: Final = 60.0


class Case(NamedTuple):
    devices: int
    share: float = 0.5
    hours: float = 24.0  # counted before
    phi: float = 1.0
    cv: float = 0.3
    wander: float = 0.0  # so much a device's rate changes between then and now, as a share
    first: float = 0.0  # days for which one device alone has the release before


CASES: Final = (
    *(Case(devices) for devices in (8, 20, 100, 1000)),
    *(Case(devices, hours=2) for devices in (8, 20)),
    *(Case(devices, hours=0) for devices in (8, 20, 100)),
    *(Case(devices, phi=3) for devices in (8, 20)),
    Case(20, hours=0, phi=3),
    Case(20, cv=0.7),
    Case(8, hours=0, cv=0.7),
    Case(20, share=0.1),
    Case(20, share=0.9),
    Case(20, wander=0.2),
    Case(100, wander=0.2),
    Case(20, first=3),
)


class Run(NamedTuple):
    left_out: bool
    called: float | None  # days; None: neither better nor worse
    worse: bool
    last: Effect


def experiment(case: Case, ratio: float, rng: np.random.Generator) -> Run:
    def counted(hours: float, rate: Floats) -> Counts:
        runs = np.full((1, case.devices), RUNS_AN_HOUR * hours)
        return Counts(runs, case.phi * rng.poisson(runs * np.minimum(rate, 1.0) / case.phi).astype(np.float64))

    rate = RATE * rng.gamma(case.cv**-2, case.cv**2, case.devices)
    pre = counted(case.hours, rate)
    rate = rate * np.exp(case.wander * rng.standard_normal(case.devices))
    order = rng.permutation(case.devices)
    phi = case.phi if case.hours else 1.0  # it is estimated from the period before
    comparison, since, left_out = Comparison(), np.zeros((2, 1, case.devices)), False
    for hour in range(0, 24 * (7 if case.devices >= 1000 else 14), LOOK_H):
        treated = order < (1 if hour < 24 * case.first else max(1, round(case.share * case.devices)))
        swing = 1 + 0.3 * np.sin(2 * np.pi * hour / 24)
        now = counted(LOOK_H, swing * rate * np.where(treated, ratio, 1.0))
        mine, others = (Counts(now.trials * side, now.events * side) for side in (treated, ~treated))
        since = since + np.stack((others.trials, others.events))
        alike = likeness(0, mine, others, Counts(since[0], since[1]), pre, phi)
        comparison = compared(comparison, interval(0, mine, others, pre, phi), alike)
        found = effect("error", comparison, phi)
        assert found is not None
        left_out |= not found.ratio_low <= ratio <= (found.ratio_high or ratio)
        left_out |= ratio == 1 and not found.difference_low <= 0 <= found.difference_high
        if hour >= 24 * case.first and (found.better or found.worse):
            return Run(left_out, (hour + LOOK_H) / 24, found.worse, found)
    return Run(left_out, None, False, found)


def measured(case: Case, runs: int) -> dict[str, float | None]:
    rng = np.random.default_rng(list(repr(case).encode()))
    null = [experiment(case, 1.0, rng) for _ in range(runs)]
    apart = [np.inf if one.last.apart is None else one.last.apart for one in null]
    told: dict[str, float | None] = {
        "left_out": sum(one.left_out for one in null) / runs,
        "called": sum(one.called is not None for one in null) / runs,
        "apart": None if np.isinf(np.median(apart)) else round(float(np.median(apart)), 3),
        "sees": None,
        "days": None,
    }
    few = max(10, runs // 4)
    for ratio in RATIOS:
        if ratio - 1 < (told["apart"] or 0.0) / 2:
            continue
        found = [experiment(case, ratio, rng) for _ in range(few)]
        if sum(one.worse for one in found) >= OFTEN * few:
            days = [np.inf if one.called is None else one.called for one in found]
            return {**told, "sees": ratio, "days": float(np.median(days))}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = []
    for case in CASES:
        figures.append({**case._asdict(), **measured(case, arguments.runs)})
        if not arguments.json:
            print("  ".join(f"{name} {value}" for name, value in figures[-1].items()), flush=True)
    if arguments.json:
        print(json.dumps({"runs": arguments.runs, "cases": figures}))


if __name__ == "__main__":
    main()
