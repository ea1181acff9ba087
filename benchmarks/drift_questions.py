"""What docs/drift.md says about questions that no formula settles: virtual fleets, watched by the hub's own code.

    python benchmarks/drift_questions.py [--quick] [--json] [QUESTION ...]

small      calm fleets of 1 to 300 devices: are there more false pages than the budget allows? `too_many`: the chance
           of as many or more if it is kept (Poisson), from .01 on it holds
rhythm     all devices see day and night, as a slow swing or as lamps that are switched: false pages; and how soon a
           shift of all devices is paged after four such days
installed  at noon, where lamps are on from six to six: false pages of the first days, also when devices ran for twenty
           minutes the day before, or were switched off from three o'clock until the third day
gradual    inputs of all devices move by so much more each day, after three days: how far they had come at the page
silent     half of the devices say nothing for a day: false pages when they come back, and how soon a shift of the
           others is paged meanwhile
subset     one device in fifteen moves: how many of those alarm, how many of the others, and does the cohort page
clearing   an alarm is raised and the shift stays, or goes: is the alarm still there after ten days?

Fleets as in `watched_fleets`, whoever is woken acknowledges at once: a tilt of .1 standard deviations is a
Jensen-Shannon distance of .05, .3 of .14, 1 of .4. `clearing`: 20 independent `streams`, where .3 is .06 and 1 is .19.
The budget is ten false pages a month, ten times the usual one, so that too many would show. `--quick`: fewer fleets and
days, under a minute; results are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import watched_fleets
from provenance import ROOT, provenance
from scipy.stats import poisson
from streams import CHANNELS, DAY, need, streams, watch
from watched_fleets import DAY_S, WINDOW_S, Fleet

BUDGET: Final = 10.0
LEARNT: Final = 1.0  # days until pages begin
PLACE: Final = ROOT / "benchmarks" / "results" / "drift_questions.json"
Figures = dict[str, dict[str, float | None]]

CALM: Final = {1: 8, 5: 8, 10: 5, 30: 2, 300: 1}  # devices: fleets
SEEDS: Final = 2


def small(quick: bool) -> Figures:
    found: Figures = {}
    for devices, fleets in ({5: 4, 10: 2} if quick else CALM).items():
        days, pages, skewed = 3.0 if quick else 4.0, 0, 0
        for seed in range(fleets):
            fleet = Fleet(devices, seed, budget=BUDGET)
            fleet.live(days)
            pages, skewed = pages + len(fleet.pages), skewed + len(fleet.skewed)
        found[f"{devices} devices"] = {
            "fleets": fleets, **kept(pages, fleets * (days - LEARNT)), "skewed": skewed / (fleets * devices),
        }  # fmt: skip
    return found


def kept(pages: int, fleet_days: float) -> dict[str, float]:
    allowed = BUDGET * fleet_days / 30
    return {"pages": pages, "allowed": allowed, "too_many": float(poisson.sf(pages - 1, allowed))}


def rhythm(quick: bool) -> Figures:
    worlds: dict[str, Callable[[float], float]] = {
        "no rhythm": lambda _: 0.0,
        "a swing of 1": lambda day: float(np.sin(2 * np.pi * day)),
        "lamps, a tilt of 1": lambda day: float(day % 1 > 0.5),
    }
    begin, found = 4.0, Figures()
    for world, light in worlds.items():
        if quick and light(0.75) != 1.0:
            continue
        pages, hours, fleets = 0, [], 1 if quick else SEEDS
        for seed in range(fleets):
            fleet = Fleet(5, seed, budget=BUDGET)
            fleet.live(begin, tilt=light)
            pages += len(fleet.pages)
            while fleet.day < begin + 3 and not np.isfinite(delay(fleet, begin)):
                fleet.live(0.25, tilt=lambda day, of=light: of(day) + 1)
            hours.append(24 * delay(fleet, begin))
        shifted = {"hours_to_1": number(float(np.median(hours)))}
        found[world] = {"fleets": fleets, **kept(pages, fleets * (begin - LEARNT)), **shifted}
    return found


def installed(quick: bool) -> Figures:
    tested = WINDOW_S / DAY_S / 2
    worlds: dict[str, watched_fleets.Speaks] = {
        "and left running": lambda _: True,
        "a day after a test": lambda day: day < tested or day >= 1,
        "a day after a test of one": lambda day: (np.arange(5) < (day < tested)) | (day >= 1),
        "and off for a weekend": lambda day: day < 0.125 or day >= 3,
    }
    found: Figures = {}
    for world, speaks in worlds.items():
        pages, fleets = 0, 1 if quick else SEEDS
        for seed in range(fleets):
            fleet = Fleet(5, seed, budget=BUDGET)
            fleet.live(5.0, tilt=lambda day: float(0.25 <= day % 1 < 0.75), speaks=speaks)
            pages += len(fleet.pages)
        found[world] = {"pages": pages, "fleets": fleets}
    return found


def delay(fleet: Fleet, begin: float) -> float:
    """Days until the first page after the shift began; inf without one."""
    return min((page.day - begin for page in fleet.pages if page.day > begin), default=np.inf)


def number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def gradual(quick: bool) -> Figures:
    begin, found = 3.0, Figures()
    for a_day in (0.3,) if quick else (0.03, 0.1, 0.3):
        days = []
        for seed in range(1 if quick else SEEDS):
            fleet = Fleet(5, seed, budget=BUDGET)
            fleet.live(begin)
            grows = lambda day, a=a_day: a * (day - begin)  # noqa: E731
            while not fleet.pages and fleet.day < (6 if quick else 15):
                fleet.live(0.5, tilt=grows)
            days.append(delay(fleet, begin))
        typical = float(np.median(days))
        found[f"{a_day} a day"] = {"days": number(typical), "tilt_then": number(typical * a_day)}
    return found


def silent(quick: bool) -> Figures:
    devices, begin = 10, 2.0
    back, hours = 0, []
    for seed in range(1 if quick else SEEDS):
        speak = np.arange(devices) % 2 == 0
        fleet = Fleet(devices, seed, budget=BUDGET)
        fleet.live(begin)
        fleet.live(1.0, speaks=lambda _, s=speak: s)
        fleet.live(0.5 if quick else 1.0)
        back += len(fleet.pages)
        fleet = Fleet(devices, seed, budget=BUDGET)
        fleet.live(begin)
        fleet.live(0.5, speaks=lambda _, s=speak: s, tilt=lambda _: 0.5)
        hours.append(24 * delay(fleet, begin))
    return {
        "come back": {"pages": back, "fleets": len(hours)},
        "the others move": {"hours_to_0.5": number(float(np.median(hours))), "fleets": len(hours)},
    }


def subset(quick: bool) -> Figures:
    devices, begin, found = 30, 2.0, Figures()
    moved = np.arange(devices) % 15 == 0
    for shift in (0.5,) if quick else (0.3, 0.5):
        fleet = Fleet(devices, 7, budget=BUDGET)
        fleet.live(begin)
        calm = len(fleet.pages)
        fleet.live(0.5 if quick else 1.0, tilt=lambda _, d=shift: d * moved, ack=False)
        alarms = {name: group for group in fleet.watch.groups.values() for name in alarmed(group)}
        mine = {fleet.names[at] for at in np.flatnonzero(moved).tolist()}
        found[f"tilt {shift}"] = {
            "found": len(mine & set(alarms)) / len(mine),
            "others": len(set(alarms) - mine) / (devices - len(mine)),
            "hours_to_page": number(24 * delay(fleet, begin)),
            "cohort_pages": sum(page.scope == "cohort" for page in fleet.pages[calm:]),
        }
    return found


def alarmed(group: Any) -> list[str]:
    s = group.streams
    return [s.devices[at] for at in np.flatnonzero(s.alarm[: len(s.devices)]).tolist()]


def clearing(quick: bool) -> Figures:
    result, begin, devices = Figures(), 3 * DAY, 20
    for shift in (0.0,) if quick else (0.0, 0.3):

        def tilt(window: int, d: float = shift) -> np.ndarray:
            out = np.zeros(CHANNELS)
            out[0] = 0.0 if window < begin else 1.0 if window < begin + DAY // 4 else d
            return out

        days = 8 if quick else 13
        seen = watch(streams("independent", devices, 8), days * DAY, log_need=need(1e4), tilt=tilt, freeze=True)
        result[f"{shift} stays"] = {"still_in_alarm": float(seen.group.streams.alarm[:devices].mean())}
    return result


QUESTIONS: Final[dict[str, Callable[[bool], Figures]]] = {
    one.__name__: one for one in (rhythm, installed, gradual, silent, subset, clearing, small)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument(
        "--quick", action="store_true", help="fewer fleets and days, under a minute; nothing is written"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    began = time.process_time()
    result: dict[str, Any] = json.loads(PLACE.read_text()) if PLACE.exists() and not options.quick else {}
    for name in options.questions or QUESTIONS:
        result[name] = QUESTIONS[name](options.quick)
        for case, figures in result[name].items():
            told = ", ".join(f"{k} {'-' if v is None else format(v, '.3g')}" for k, v in figures.items())
            print(f"{name}: {case}: {told}", flush=True)
        if not options.quick:
            world = {"window_s": watched_fleets.WINDOW_S, "rows": watched_fleets.ROWS, "budget": BUDGET}
            PLACE.write_text(json.dumps({**result, "world": world, **provenance()}, indent=1) + "\n")
    result["cpu_s"] = round(time.process_time() - began, 1)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
