"""What docs/drift.md says about questions that no formula settles, by simulation with the hub's own streams.

    python benchmarks/drift_questions.py [--json] [QUESTION ...]

gradual    the tilt of one channel grows by so much a day, on all devices, after three days; found within 14 days, and
           how large it was then: as it is, with a baseline fixed after three days, and with one that learns at once
rhythm     all channels swing over the day: false alarms in a week, and the delay of a shift after the fifth day
subset     one device in twenty moves: how many of those are reported, how many others, and whether the cohort is
clearing   an alarm is raised and the shift stays, or goes: is the alarm still there after ten days?
small      autocorrelated fleets of 1, 4 and 16 devices: false alarms in 1,000 windows

A tilt of .1 is a Jensen-Shannon distance of .02, .3 of .06, 1 of .19. All but `small` and `subset` (200 heterogeneous)
on 40 independent streams.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from provenance import ROOT, provenance
from streams import CHANNELS, DAY, Floats, need, streams, watch

from edgewright_hub.drift import budget, cohorts, groups
from edgewright_hub.drift.groups import DriftPolicy

DEVICES: Final = 40
A: Final = 1e4
PLACE: Final = ROOT / "benchmarks" / "results" / "drift_questions.json"


def one(tilt: float) -> Floats:
    out = np.zeros(CHANNELS)
    out[0] = tilt
    return out


def found(first: Floats, begin: int) -> dict[str, float]:
    late = first[np.isfinite(first) & (first > begin)] - begin
    return {
        "early": float((first <= begin).mean()),
        "found": float(late.size / first.size),
        "days": float(np.median(late) / DAY) if late.size else float("nan"),
    }


def gradual() -> dict[str, Any]:
    """By growth a day and by rule of the baseline."""
    begin, result = 3 * DAY, {}
    rules = {
        "as it is": (DriftPolicy(), groups.REST),
        "fixed after 3 days": (DriftPolicy(learn_ms=3 * 24 * 3600_000), groups.REST),
        "learns at once": (DriftPolicy(), 1e9),
    }
    for a_day in (0.03, 0.2):
        for name, (policy, rest) in rules.items():
            groups.REST = rest  # type: ignore[misc]
            grows = lambda w, a=a_day: one(a * max(0, w - begin) / DAY)  # noqa: E731
            seen = watch(
                streams("independent", DEVICES, 5), 17 * DAY, log_need=need(A), tilt=grows, policy=policy, freeze=True
            )
            told = found(seen.first, begin)
            result[f"{a_day} a day, {name}"] = {**told, "tilt_then": told["days"] * a_day}
    groups.REST = rules["as it is"][1]  # type: ignore[misc]
    return result


def rhythm() -> dict[str, Any]:
    result, begin = {}, 5 * DAY
    for swing in (0.0, 0.3):
        for shift in (0.0, 0.3):
            tilt: Callable[[int], Floats] = lambda w, s=swing, d=shift: (  # noqa: E731
                s * np.sin(2 * np.pi * w / DAY) + one(d if w >= begin else 0.0)
            )
            seen = watch(streams("independent", DEVICES, 6), 8 * DAY, log_need=need(A), tilt=tilt, freeze=True)
            spread = seen.group.dispersion
            result[f"swing {swing}, shift {shift}"] = {
                **found(seen.first, begin),
                "c_f": float(spread.c_f(0, 0).mean()),
                "c_f_24h": float(spread.c_f(0, 3).mean()),
            }
    return result


def subset() -> dict[str, Any]:
    result, begin, devices = {}, 2 * DAY, 200
    allowed = budget.Budget(1.0)
    for shift in (0.2, 0.3, 0.5):
        moved = np.arange(devices) % 20 == 0
        tilts = np.zeros((devices, CHANNELS))
        tilts[moved, 0] = shift
        tilt = lambda w, t=tilts: t if w >= begin else 0.0  # noqa: E731
        log_need = allowed.device_need(devices)
        seen = watch(streams("heterogeneous", devices, 7), 4 * DAY, log_need=log_need, tilt=tilt)
        group = seen.group
        at = np.arange(devices)
        alarm, since = np.isfinite(seen.first), np.zeros(devices, np.int64)
        whole = cohorts.cohort(
            group.streams.devices, group.log_e(at), alarm, alarm & False, since, need=allowed.cohort_need(1)
        )
        result[f"shift {shift}"] = {
            "reported": float(alarm[moved].mean()),
            "others": float(alarm[~moved].mean()),
            "days": float(np.median(seen.first[moved & alarm] - begin) / DAY)
            if (moved & alarm).any()
            else float("nan"),
            "cohort_alarm": float(whole.alarm),
            "listed": len(whole.devices),
            "listed_falsely": sum(not moved[group.streams.index[d]] for d in whole.devices),
        }
    return result


def clearing() -> dict[str, Any]:
    result, begin = {}, 3 * DAY
    for shift in (0.0, 0.1, 0.2, 0.3):
        drawn = streams("independent", DEVICES, 8)
        tilt = lambda w, d=shift: one(0.0 if w < begin else 1.0 if w < begin + DAY // 4 else d)  # noqa: E731
        seen = watch(drawn, 13 * DAY, log_need=need(A), tilt=tilt, freeze=True)
        result[f"shift that stays {shift}"] = {"still_in_alarm": float(seen.group.streams.alarm[:DEVICES].mean())}
    return result


def small() -> dict[str, Any]:
    result = {}
    for kind in ("independent", "autocorrelated"):
        for devices in (1, 4, 16):
            fleets = max(2, min(10, 30 // devices))
            firsts = [watch(streams(kind, devices, seed), 1000, log_need=need(A)).first for seed in range(fleets)]
            result[f"{kind}, {devices}"] = {
                "streams": fleets * devices,
                "false_alarm": float(np.isfinite(np.concatenate(firsts)).mean()),
            }
    return result


QUESTIONS: Final = {f.__name__: f for f in (subset, clearing, rhythm, gradual, small)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    result = json.loads(PLACE.read_text()) if PLACE.exists() else {}
    for name in options.questions or QUESTIONS:
        result[name] = QUESTIONS[name]()
        for case, figures in result[name].items():
            print(f"{name}: {case}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()), flush=True)
        PLACE.write_text(json.dumps({**result, **provenance()}, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
