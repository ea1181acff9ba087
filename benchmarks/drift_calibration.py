"""Does an alarm on one window mean something: at 50 rows as at 5,000, and for shifts that matter?

    python benchmarks/drift_calibration.py [--quick] [--json]

Windows of 50, 200, 1,000 and 5,000 rows go to our window test and to the rules that people use, all on the same rows:

    ours              the hub's test (`window_p` with its trend, Simes over channels) at p <= .05
    psi               PSI > .2 in any channel
    ks                Kolmogorov-Smirnov over the same cells, p <= .05 by Simes
    evidently         Evidently 0.7.23, `DataDriftPreset` as it comes: half of the columns drifted or more
    evidently_column  the same, any column

on the digits of an 8x8 sensor, as 64 pixels and as the 22 channels that the compiler's monitor counts, and on the nine
readings of a space shuttle. What the windows are, how they shift, and which code counts them: benchmarks/windows.

`false_alarm`: share of windows without any shift on which ours alarms at the nominal rate, by size; the worst of the
three sets of channels. `false_alarms`: of all rules and sets.
`power`: share of shifted windows found when all rules are set to 1 % false alarms on the same windows; of the set of
channels where ours wins fewer cells (`power_of`); `power_elsewhere`: of the others. A peer's channels are compared in
standard deviations of their null, which no peer does; it helps them.
`power_without_trend`: of our test as if no cells lay in an order.
`cells_won`: of 9 shifts x 3 sizes, where ours finds at least what the best peer finds, less .05.
`evidently_check`: what Evidently itself said in 20 reports a size, half of them on shifted windows, and how often the
fast version said the same of a column (within 1e-6 of its distance) and of the whole. The tool gets a venv of its own.
`cpu_us`: of judging one window of 200 rows, in calls of hundreds.

`--quick`: fewer windows, no check; under a minute; results are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
from provenance import ROOT, provenance
from windows import evidently_reports, rules, shuttle
from windows.counting import Reference, Windows
from windows.digits import SHIFTS, Digits
from windows.rules import NOMINAL, Verdicts

SIZES: Final = (50, 200, 1000, 5000)
POWER_SIZES: Final = SIZES[:3]
MATCHED: Final = 0.01
SLACK: Final = 0.05
REFERENCE: Final = 20_000
ROWS: Final = 100_000  # drawn at once
PEERS: Final = ("psi", "ks", "evidently", "evidently_column")


class Plan(msgspec.Struct, frozen=True):
    null: dict[int, int]  # windows by size
    shifted: dict[int, int]
    splits: int  # of the shuttle's rows
    reports: int  # of Evidently, a size


FULL: Final = Plan({50: 3000, 200: 3000, 1000: 1000, 5000: 400}, {50: 1000, 200: 600, 1000: 200}, 60, 20)
QUICK: Final = Plan({50: 800, 200: 800, 1000: 150, 5000: 40}, {50: 200, 200: 100, 1000: 30}, 12, 0)

Found = dict[tuple[str, str, int], dict[str, Verdicts]]  # (set, shift or "", n) → rule


def of_digits(digits: Digits, references: dict[str, Reference], plan: Plan, rng: np.random.Generator) -> Found:
    found: Found = {}
    for shift, sizes in (("", plan.null), *((shift, plan.shifted) for shift in SHIFTS)):
        for n, count in sizes.items():
            parts: dict[str, list[dict[str, Verdicts]]] = {name: [] for name in references}
            for images in _draws(digits, rng, n, count, shift):
                for name, outputs in digits.outputs(images).items():
                    windows = references[name].windows(outputs, n)
                    parts[name].append(rules.verdicts(references[name], windows))
            for name, several in parts.items():
                found[name, shift, n] = _joined(several)
        print(f"digits {shift or 'as they are'}: {time.process_time():.0f} s of CPU", flush=True)
    return found


def of_shuttle(plan: Plan, rng: np.random.Generator) -> Found:
    parts: dict[tuple[str, str, int], list[dict[str, Verdicts]]] = {}
    table = shuttle.readings()
    for _ in range(plan.splits):
        rows, others = shuttle.split(rng, table)
        reference = Reference(shuttle.FEATURES, {"readings": rows})
        for shift in ("", *shuttle.SHIFTS):
            for n in POWER_SIZES if shift else SIZES:
                count = min(len(others) // n, 50)
                drawn = others[rng.permutation(len(others))[: count * n]]
                windows = reference.windows({"readings": shuttle.shifted(rng, drawn, shift)}, n)
                parts.setdefault(("shuttle", shift, n), []).append(rules.verdicts(reference, windows))
    return {key: _joined(several) for key, several in parts.items()}


def power(null: Verdicts, shifted: Verdicts) -> float:
    """Share of shifted windows whose score is above that of all but MATCHED of the null windows."""
    mean, deviation = null.scores.mean(0), np.maximum(null.scores.std(0), 1e-12)
    before, after = (((v.scores - mean) / deviation).max(1) for v in (null, shifted))
    return float((after > np.quantile(before, 1 - MATCHED, method="higher")).mean())


def powers(found: Found, name: str, shifts: tuple[str, ...]) -> dict[str, Any]:
    return {
        shift: {
            str(n): {
                rule: round(power(found[name, "", n][rule], found[name, shift, n][rule]), 3)
                for rule in ("ours", *PEERS)
            }
            for n in POWER_SIZES
        }
        for shift in shifts
    }


def without_trend(found: Found, name: str) -> dict[str, Any]:
    rule = "without_trend"
    return {
        shift: {str(n): round(power(found[name, "", n][rule], found[name, shift, n][rule]), 3) for n in POWER_SIZES}
        for shift in SHIFTS
    }


def won(table: dict[str, Any]) -> int:
    cells = [cell for by_size in table.values() for cell in by_size.values()]
    return sum(cell["ours"] >= max(cell[peer] for peer in PEERS) - SLACK for cell in cells)


def costs(reference: Reference, windows: Windows) -> dict[str, float]:
    """CPU microseconds a window."""
    taken = {}
    for name in ("ours", "psi", "ks", "evidently"):
        given = (reference.ordered,) if name == "ours" else ()
        began = time.process_time()
        getattr(rules, name)(reference, windows, *given)
        taken[name] = round((time.process_time() - began) / len(windows.cells) * 1e6, 1)
    return taken


def _write(result: dict[str, Any]) -> None:
    target = ROOT / "benchmarks" / "results" / "drift_calibration.json"
    target.write_text(json.dumps({**result, **provenance()}, indent=2) + "\n")


def _draws(digits: Digits, rng: np.random.Generator, n: int, count: int, shift: str) -> Iterator[Any]:
    step = max(1, ROWS // n)
    for start in range(0, count, step):
        yield digits.draw(rng, n * min(step, count - start), shift)[0]


def _joined(several: list[dict[str, Verdicts]]) -> dict[str, Verdicts]:
    return {rule: Verdicts(*(np.concatenate([one[rule][i] for one in several]) for i in (0, 1))) for rule in several[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer windows; under a minute; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    digits, rng = Digits(), np.random.default_rng(1)
    outputs = digits.outputs(digits.draw(rng, REFERENCE)[0])
    references = {name: Reference(features, outputs[name]) for name, features in digits.features.items()}
    found = {**of_digits(digits, references, plan, rng), **of_shuttle(plan, rng)}
    sets = (*references, "shuttle")
    alarms = {
        name: {
            rule: {str(n): round(float(found[name, "", n][rule].alarm.mean()), 4) for n in SIZES}
            for rule in ("ours", "without_trend", *PEERS)
        }
        for name in sets
    }
    tables = {name: powers(found, name, shuttle.SHIFTS if name == "shuttle" else SHIFTS) for name in sets}
    wins = {name: won(tables[name]) for name in references}
    least = min(wins, key=lambda name: wins[name])
    timed = digits.outputs(digits.draw(rng, 200 * 300)[0])
    result: dict[str, Any] = {
        "nominal": NOMINAL,
        "false_alarm": {str(n): max(alarms[name]["ours"][str(n)] for name in sets) for n in SIZES},
        "power_of": least,
        "power": tables[least],
        "cells_won": wins[least],
        "cells": len(SHIFTS) * len(POWER_SIZES),
        "cells_won_of": wins,
        "power_without_trend": {name: without_trend(found, name) for name in references},
        "false_alarms": alarms,
        "power_elsewhere": {name: table for name, table in tables.items() if name != least},
        "channels": {**{name: len(one.channels) for name, one in references.items()}, "shuttle": shuttle.READINGS},
        "windows": {
            "null": {str(n): w for n, w in plan.null.items()},
            "shifted": {str(n): w for n, w in plan.shifted.items()},
        },
        "cpu_us": {name: costs(one, one.windows(timed[name], 200)) for name, one in references.items()},
    }
    for name in sets:
        print(f"{name}: false alarms of ours {alarms[name]['ours']}; cells won {wins.get(name, '-')}")
    if plan.reports:
        _write(result)  # what follows takes minutes, and needs a network the first time
        result["evidently_check"] = evidently_reports.check(digits, references["monitor"], rng, SIZES, plan.reports)
        _write(result)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
