"""Watched for ever: how often does a stream without drift alarm, and how soon does one with drift?

    python benchmarks/drift_continuous.py [--quick] [--json]

`false_alarm`: share of 1,000 null streams that alarm within 1,000 windows of five minutes at A = 1e4, so that theory
bounds it by `bound` = .10. The streams are counts (benchmarks/streams.py), and go through all that a hub does with
them: the window test, baselines that grow, dispersion that is estimated from the same windows, four time scales.
`one_test` and `naive` say what the same streams do to a single-scale detector, and to p < .01, on p-values that believe
in independent rows, in a quarter of the time.
`delay_windows`: median windows to the alarm after z-scores shift by d, after 200 null windows, as in the literature on
detectors; four scales as the hub has them, the merged ones made of the same scores. `delay_counts` is the same from
counts, for shifts whose windows have a mean z-score of d. `combination`: ways of putting four scales together, by their
false alarms and delays.

`--quick`: 250 null streams of each kind; under a minute; results are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from provenance import ROOT, provenance
from streams import CHANNELS, ROWS, Floats, need, streams, watch

from edgewright_hub.drift import detectors, measures

A: Final = 1e4
WINDOWS: Final = 1000
KINDS: Final = ("independent", "autocorrelated", "heterogeneous")
SHIFTS: Final = (0.5, 1.0, 2.0, 4.0)
MERGED: Final = (1, 12, 72, 288)  # windows of each scale
NULL_WINDOWS: Final = 200
PLACE: Final = ROOT / "benchmarks" / "results" / "drift_continuous.json"


def false_alarms(devices: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"false_alarm": {}, "one_test": {}, "naive": {}, "learned": {}}
    for kind in KINDS:
        seen = watch(streams(kind, devices, seed), WINDOWS, log_need=need(A))
        spread = seen.group.dispersion
        found["false_alarm"][kind] = float(np.isfinite(seen.first).mean())
        found["learned"][kind] = {"c_f": float(spread.c_f(0, 0).mean()), "c_f_6h": float(spread.c_f(0, 2).mean())}
        found["one_test"][kind], found["naive"][kind] = believing(kind, devices // 4, seed)
    return found


def believing(kind: str, devices: int, seed: int) -> tuple[float, float]:
    """Share of streams that alarm when each window is tested against training as if its rows were independent: by a
    detector at A, and by p < .01 in any window."""
    drawn, log_r = streams(kind, devices, seed), detectors.fresh(devices)
    reference = np.tile(watch(drawn, 0, log_need=0).group.baselines.training, (devices, 1))
    detected, naive = np.zeros(devices, bool), np.zeros(devices, bool)
    for _ in range(WINDOWS // 4):
        cells = drawn.draw()
        p = measures.simes_rows(measures.window_p(cells.reshape(-1, 12), reference).reshape(devices, -1))
        log_r = detectors.advanced(log_r, detectors.score(p))
        detected |= detectors.level(log_r) >= np.log(A)
        naive |= p < 0.01
    return float(detected.mean()), float(naive.mean())


# Scores that shift.


RULES: Final = {
    "windows only": lambda level, per: level[:, 0] - np.log(per[0]),
    "Bonferroni": lambda level, per: (level - np.log(per)).max(1) - np.log(4),
    "A times 4": lambda level, per: level.max(1) - np.log(4 * per[0]),
    "mean": lambda level, per: np.logaddexp.reduce(level - np.log(per), axis=1) - np.log(4),
    "weighted mean": lambda level, per: np.logaddexp.reduce(level - np.log(per) + np.log(detectors.WEIGHTS), axis=1),
}


def first_alarms(z: Floats) -> dict[str, Floats]:
    """By rule, the window of each stream's first alarm; `z`: [windows, streams]."""
    streams_n = z.shape[1]
    per = WINDOWS / np.array(MERGED, float)
    log_r, waiting = detectors.fresh(streams_n, 4), np.zeros((4, streams_n))
    first = {rule: np.full(streams_n, np.inf) for rule in RULES}
    for window, scores in enumerate(z):
        for scale, merged in enumerate(MERGED):
            waiting[scale] += scores
            if (window + 1) % merged == 0:
                log_r[:, scale] = detectors.advanced(log_r[:, scale], waiting[scale] / np.sqrt(merged))
                waiting[scale] = 0
        level = detectors.level(log_r)
        for rule, log_e in RULES.items():
            first[rule][(log_e(level, per) >= np.log(A / WINDOWS)) & np.isinf(first[rule])] = window + 1
    return first


def delays(streams_n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    null = first_alarms(rng.standard_normal((WINDOWS, streams_n)))
    combination: dict[str, dict[str, float]] = {r: {"false_alarm": float(np.isfinite(null[r]).mean())} for r in RULES}
    for shift in SHIFTS:
        z = rng.standard_normal((2 * NULL_WINDOWS + 100, streams_n))
        z[NULL_WINDOWS:] += shift
        for rule, first in first_alarms(z).items():
            combination[rule][f"{shift:g}"] = float(np.median(first[first > NULL_WINDOWS] - NULL_WINDOWS))
    return {
        "delay_windows": {f"{d:g}": combination["weighted mean"][f"{d:g}"] for d in SHIFTS},
        "combination": combination,
    }


def delay_counts(devices: int, seed: int) -> dict[str, float]:
    """From counts: one channel is tilted so far that the first window's score has a mean of d."""
    found = {}
    for shift in SHIFTS:
        tilt = np.zeros(CHANNELS)
        tilt[0] = _tilt_of(shift, seed)

        def moving(window: int, tilt: Floats = tilt) -> Floats | float:
            return tilt if window >= NULL_WINDOWS else 0.0

        seen = watch(streams("independent", devices, seed), 2 * NULL_WINDOWS, log_need=need(A), tilt=moving)
        late = seen.first[seen.first > NULL_WINDOWS] - NULL_WINDOWS
        found[f"{shift:g}"] = float(np.median(late))
    return found


def _tilt_of(shift: float, seed: int) -> float:
    """The tilt of one channel with which a window's score is `shift` in the mean, against what is exactly known."""
    reference = np.tile(watch(streams("independent", 1, seed), 0, log_need=0).group.baselines.training * 50, (2000, 1))
    low, high = 0.0, 3.0
    for _ in range(12):
        tilt = np.zeros(CHANNELS)
        tilt[0] = (low + high) / 2
        cells = streams("independent", 2000, seed).draw(tilt).reshape(-1, 12)
        p = measures.simes_rows(measures.window_p(cells, reference).reshape(2000, -1))
        if float(np.clip(detectors.score(p), -2.5, None).mean()) < shift:
            low = tilt[0]
        else:
            high = tilt[0]
    return (low + high) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the streams, in under a minute")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    began = time.process_time()
    devices = 250 if options.quick else 1000
    result: dict[str, Any] = {"bound": WINDOWS / A, "streams": devices, "windows": WINDOWS, "rows": ROWS}
    result |= false_alarms(devices, seed=1)
    result |= delays(devices, seed=2)
    if not options.quick:
        result["delay_counts"] = delay_counts(300, seed=3)
    result["cpu_s"] = round(time.process_time() - began, 1)
    print(f"false alarms in {WINDOWS} windows, at most {result['bound']:g} by theory:")
    for kind in KINDS:
        print(
            f"  {kind:15} {result['false_alarm'][kind]:.3f} (rows believed independent: {result['one_test'][kind]:.2f})"
        )
    print("windows to the alarm:", ", ".join(f"d = {d}: {w:g}" for d, w in result["delay_windows"].items()))
    if not options.quick:
        PLACE.write_text(json.dumps({**provenance(), **result}, indent=1) + "\n")
        print(f"written to {PLACE.relative_to(ROOT)}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
