"""The power is cut at every disk call of a device's life, and a device is killed again and again: what is left then?

    python benchmarks/power_cuts.py [--quick] [--json]

States: distinct disk images, five kinds for each call (tests/sim/disk.py), of a life that installs, updates over a link
that breaks, refuses, rolls back and reports (tests/sim/power.py). A device starts on each of them, beside a hub that
knows what it knew at that moment: a good model must answer within that start, and every sealed count must reach the hub
once. On some of them the device goes on until the right package runs. SIGKILLs: of a real agent in a process of its
own, updating and reporting over mosquitto to the hub's own ingest (tests/sim/kills.py).
It starts on every second state and kills 50 times; `--quick` on every seventh, and five times.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from provenance import provenance  # noqa: E402

from sim import kills, power  # noqa: E402


class Size(NamedTuple):
    every: int  # of the states, one in so many is started on
    to_the_end: int  # of those, one in so many goes on until the right package runs
    kills: int


FULL, QUICK = Size(2, 25, 50), Size(7, 110, 5)
AT_ONCE = 3  # starts; most of their time they wait


def cut(folder: Path, size: Size) -> tuple[int, list[power.Verdict], int]:
    """(states started on, what came of them, disk calls of the life)."""
    with power.served(folder) as life:
        power.live(life, folder)
        found = list(power.cuts(life))
        chosen = found[:: size.every]
        print(f"{len(life.calls)} disk calls, {len(found)} distinct states; starting on {len(chosen)}", flush=True)

        def start(numbered: tuple[int, power.Cut]) -> power.Verdict:
            number, one = numbered
            verdict = power.restart(life, one, folder / f"r{number}", to_the_end=number % size.to_the_end == 0)
            if verdict.why:
                print(f"{verdict}", flush=True)
            return verdict

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return len(chosen), list(pool.map(start, enumerate(chosen))), len(life.calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer starts and kills; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # of the agents: they tell at length what they find
    size = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two, ThreadPoolExecutor(1) as beside:
        killing = beside.submit(kills.kill, Path(two), size.kills)
        states, verdicts, calls = cut(Path(one), size)
        tally = killing.result()
    result = {
        "states": states,
        "sigkills": tally.sigkills,
        "bricked": sum(not (v.answered and v.settled) for v in verdicts) + tally.bricked,
        "counts_lost": sum(v.lost for v in verdicts) + tally.counts_lost,
        "counts_doubled": sum(v.doubled for v in verdicts) + tally.counts_doubled,
        "calls": calls,
        "to_the_end": len(verdicts[:: size.to_the_end]),
        "starts_of_the_killed": tally.starts,
        "inferences_of_the_killed": tally.inferences,
        "versions_of_the_killed": tally.versions,
    }
    for name, value in result.items():
        print(f"{name:26} {value}")
    if not arguments.quick:
        full = {**result, **provenance()}
        (ROOT / "benchmarks" / "results" / "power_cuts.json").write_text(json.dumps(full, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))
    sys.exit(1 if result["bricked"] or result["counts_lost"] or result["counts_doubled"] else 0)


if __name__ == "__main__":
    main()
