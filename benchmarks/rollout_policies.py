"""Which releases reach the fleet? Our rollout engine against how others stage a release, on simulated fleets.

    python benchmarks/rollout_policies.py [--quick] [--json]

Ours (`edgewright`) is the engine and the gate that the hub runs, with their defaults: edgewright_hub.simulation draws
each device and window, and tells the engine what a hub would know; the dispersion is estimated from 24 h before, as the
hub does. The others (rollout_peers.py) are written here from what they document, on the same kind of fleets.

Fleet: windows of 5 minutes, 60 inferences of each device and window, 5 % of the windows lost, truth for 2 % of the
inferences after 1 h on average; devices differ (CV .5 of errors, .3 of wrong answers), bursts of CV .7, error rates
swing by 30 % over the day and all together from window to window; each device fails by itself at 2e-4 a window. Errors
1 %, wrong answers 8 %. Stages 1 %, 5 %, 25 %, 100 %; a rollout is given 12 h.

    good                 harmless. good_false_rollback: share taken back at any time, even after everyone had it;
                         good_minutes: median until everyone is given it
    err15, err5          errors 1 % to 1.5 %, to 5 %
    crash20, silent20    20 % of the devices crash within their first windows, and say so or only fall silent
    p95                  latencies times 1.3
    acc2                 wrong answers 8 % to 10 %
    gradual              errors grow to three times theirs within 4 h of running it
    some                 five times the errors on 20 % of the devices
    patient_*            the same with 6 soak windows in each stage instead of 3; 10,000 devices only
    quiet, quiet_bad     errors 1e-4 and none; good, and half a point more errors. quiet_hours: median until everyone is
                         given it, of the slower of both; quiet_full: share within 12 h, of the worse of both

*_full: share of the runs in which everyone was given the release, whatever came then; *_back: share taken back, before
or after that; *_exposed_share: mean share of the devices that were given it.

Full, about 20 minutes of CPU: 1000 runs with 1,000 devices (200 of releases other than good, err15 and acc2) and 100
with 10,000, of quiet fleets 100 and 10; `--quick`: 16, 3, 4 and 1. The others run 500 times, or 200. The same seeds
give the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
import rollout_peers as peers
from provenance import ROOT, provenance

from edgewright_hub.rollouts import rollout
from edgewright_hub.rollouts.gates import GatePolicy, SequentialGate
from edgewright_hub.rollouts.progress import packed, unpacked
from edgewright_hub.simulation import trial
from edgewright_hub.simulation.fleet import Fleet
from edgewright_hub.simulation.world import GOOD, RELEASES, Release, World

LONGEST_S: Final = 12 * 3600.0
NORMAL: Final[dict[str, Release]] = {
    "good": GOOD,
    "err15": RELEASES["errors"],
    "err5": RELEASES["many-errors"],
    "crash20": RELEASES["crash"],
    "silent20": RELEASES["silent-crash"],
    "p95": RELEASES["slow"],
    "acc2": RELEASES["accuracy"],
    "gradual": RELEASES["gradual"],
    "some": RELEASES["some-devices"],
}
PATIENT: Final = GatePolicy(soak_windows=6)
PATIENTLY: Final[dict[str, Release]] = {"patient_gradual": RELEASES["gradual"], "patient_good": GOOD}
QUIET: Final[dict[str, Release]] = {"good": GOOD, "bad": Release(more_errors=0.005)}
CLOSE: Final = ("good", "err15", "acc2")  # rare outcomes matter: every fleet; the others only the first PLAIN fleets
PLAIN: Final = 200
BASES: Final = (1e-4, 0.0)  # error rates of quiet fleets


class Size(NamedTuple):
    runs: dict[int, int]  # by number of devices
    quiet: dict[int, int]
    peers: int


FULL = Size({1000: 1000, 10_000: 100}, {1000: 100, 10_000: 10}, 500)
QUICK = Size({1000: 16, 10_000: 3}, {1000: 4, 10_000: 1}, 200)


class Summary(NamedTuple):
    """Of the runs of one release."""

    full: float
    back: float
    minutes: float | None  # median of those that everyone was given
    exposed: float


class Job(NamedTuple):
    """One fleet, and all releases on it."""

    world: World
    seed: int
    number: int

    @property
    def key(self) -> str:
        return f"{self.world.devices}/{self.world.error:g}/{self.number}"

    @property
    def releases(self) -> dict[str, Release]:
        if self.world.error != World().error:
            return QUIET
        every = NORMAL | PATIENTLY if self.world.devices > 1000 else NORMAL
        return every if self.number < PLAIN else {name: every[name] for name in CLOSE}


class Kept(msgspec.Struct, frozen=True):
    """What a job found; a line of the file that `--keep` names."""

    key: str
    cpu_s: float
    found: dict[str, trial.Outcome]


def jobs(size: Size, devices: int) -> list[Job]:
    normal = [Job(World(devices=devices), devices, i) for i in range(size.runs[devices])]
    quiet = [World(devices=devices, error=base) for base in BASES]
    return [Job(world, devices + 1, i) for world in quiet for i in range(size.quiet[devices])] + normal


def played(job: Job) -> Kept:
    began = time.process_time()
    rng = np.random.default_rng([job.seed, job.number])
    start = trial.Start.of(Fleet.drawn(job.world, rng), rng)
    found = {}
    places = tuple(QUIET if job.releases is QUIET else NORMAL | PATIENTLY)
    for name, release in job.releases.items():
        gate = PATIENT if name in PATIENTLY else GatePolicy()
        randomness = np.random.default_rng([job.seed, job.number, places.index(name)])
        found[name] = trial.run(start, release, gate, randomness, longest_s=LONGEST_S)
    return Kept(job.key, time.process_time() - began, found)


def all_played(
    todo: list[Job], keep: Path | None, each: Callable[[Callable[[Job], Kept], list[Job]], Iterable[Kept]]
) -> dict[str, Kept]:
    """By key. What `keep` holds is not played again, and what is played is added to it at once. `each`: a `map`."""
    wanted = {job.key: job for job in todo}
    lines = keep.read_bytes().splitlines() if keep and keep.exists() else []
    done = {one.key: one for one in (msgspec.json.decode(line, type=Kept) for line in lines) if one.key in wanted}
    began, before = time.monotonic(), len(done)
    with (keep or Path(os.devnull)).open("ab") as file:
        for kept in each(played, [job for key, job in wanted.items() if key not in done]):
            done[kept.key] = kept
            file.write(msgspec.json.encode(kept) + b"\n")
            file.flush()
            if len(done) % 50 == 0:
                told = f"{len(done)} of {len(wanted)} fleets, {before} of them before"
                print(f"{told}; {kept.key}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return done


def ours(todo: list[Job], done: dict[str, Kept]) -> dict[str, Summary]:
    """Of jobs with the same releases."""
    summaries = {}
    for name in todo[0].releases:
        outcomes = [done[job.key].found[name] for job in todo if name in job.releases]
        summaries[name] = _summary(
            np.array([one.full for one in outcomes]),
            np.array([one.ending == "rolled back" for one in outcomes]),
            np.array([(one.full_s or 0.0) / 60 for one in outcomes]),
            np.array([one.exposed for one in outcomes]) / todo[0].world.devices,
        )
    return summaries


def others(world: World, releases: dict[str, Release], runs: int, seed: int) -> dict[str, dict[str, Summary]]:
    groups = peers.Groups.drawn(world, runs, np.random.default_rng(seed))
    found: dict[str, dict[str, Summary]] = {}
    for policy, decide in peers.POLICIES.items():
        found[policy] = {}
        for place, (name, release) in enumerate(releases.items()):
            ended = peers.run(groups, release, decide, np.random.default_rng([seed, place]), longest_s=LONGEST_S)
            found[policy][name] = _summary(ended.full, ended.back, ended.minutes, ended.exposed)
    return found


def _summary(full: Any, back: Any, minutes: Any, exposed: Any) -> Summary:
    median = float(np.median(minutes[full])) if full.any() else None
    return Summary(float(full.mean()), float(back.mean()), median, float(exposed.mean()))


def figures(normal: dict[str, Summary], quiet: list[dict[str, Summary]]) -> dict[str, Any]:
    hours = [one["good"].minutes for one in quiet]
    out = {
        "good_false_rollback": normal["good"].back,
        "good_minutes": normal["good"].minutes,
        "good_full": normal["good"].full,
        "err15_full": normal["err15"].full,
        "err15_exposed_share": normal["err15"].exposed,
        **{f"{name}_full": normal[name].full for name in normal if name not in ("good", "err15", "patient_good")},
        "gradual_back": normal["gradual"].back,
        "acc2_exposed_share": normal["acc2"].exposed,
        "quiet_hours": None if None in hours else max(hour for hour in hours if hour is not None) / 60,
        "quiet_full": min(one["good"].full for one in quiet),
        "quiet_bad_full": max(one["bad"].full for one in quiet),
        "quiet_bad_exposed_share": max(one["bad"].exposed for one in quiet),
        **{f"{name}_minutes": normal[name].minutes for name in normal if name == "patient_good"},
    }
    return {name: value if value is None else round(value, 5) for name, value in out.items()}


def cost(devices: int) -> dict[str, float]:
    """Milliseconds of CPU of one step of the engine with its gate, and of keeping its state; bytes of that state."""
    rng = np.random.default_rng(0)
    start = trial.Start.of(Fleet.drawn(World(devices=devices, before_s=3600.0), rng), rng)
    spec, state = trial.begun(start, GatePolicy(), trial.STAGES)
    gate, virtual, steps, took = SequentialGate(GatePolicy()), trial.Devices(start), 40, 0.0
    for turn in range(steps):
        seen = virtual.window(turn, GOOD, rng)
        began = time.process_time()
        state, wishes = rollout.step(state, spec, seen, gate, 300_000 * (turn + 1))
        took += time.process_time() - began
        virtual.take(wishes)
    began = time.process_time()
    document = json.dumps(packed(state))
    written = time.process_time()
    unpacked(json.loads(document))
    return {
        "step_ms": round(1000 * took / steps, 2),
        "write_ms": round(1000 * (written - began), 2),
        "read_ms": round(1000 * (time.process_time() - written), 2),
        "state_bytes": len(document),
    }


BARS: Final = {  # of `edgewright`: at most
    "good_false_rollback": 0.008, "err15_full": 0.0, "err15_exposed_share": 0.02, "acc2_full": 0.008,
    "quiet_hours": 12.0, "quiet_bad_full": 0.0,
}  # fmt: skip
MINUTES: Final = {1000: 210.0, 10_000: 75.0}


def missed(result: dict[str, Any]) -> list[str]:
    out = []
    for devices, most in MINUTES.items():
        mine = result[str(devices)]["edgewright"]
        for name, bar in {**BARS, "good_minutes": most}.items():
            if mine[name] is None or mine[name] > bar:
                out.append(f"{devices} devices: {name} {mine[name]} above {bar:g}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    parser.add_argument("--keep", type=Path, help="a file of runs: begin where a run that was interrupted ended")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    began = time.process_time()
    todo = {devices: jobs(size, devices) for devices in size.runs}
    with ProcessPoolExecutor() as pool:
        done = all_played([job for some in todo.values() for job in some], arguments.keep, pool.map)
    result: dict[str, Any] = {}
    for devices in size.runs:
        world, seed = World(devices=devices), devices
        quiet = [World(devices=devices, error=base) for base in BASES]
        by_world = [ours([job for job in todo[devices] if job.world == one], done) for one in (world, *quiet)]
        result[str(devices)] = {"edgewright": figures(by_world[0], by_world[1:])}
        normal, still = (others(world, NORMAL, size.peers, seed), [others(w, QUIET, size.peers, seed) for w in quiet])
        for policy in peers.POLICIES:
            result[str(devices)][policy] = figures(normal[policy], [one[policy] for one in still])
    result["runs"] = {
        "edgewright": {str(n): runs for n, runs in size.runs.items()},
        f"edgewright, but {', '.join(CLOSE)}": {str(n): min(runs, PLAIN) for n, runs in size.runs.items()},
        "edgewright, quiet": {str(n): runs for n, runs in size.quiet.items()},
        "others": {str(n): size.peers for n in size.runs},
    }
    result["engine"] = {str(devices): cost(devices) for devices in size.runs}
    result["cpu_s"] = round(time.process_time() - began + sum(kept.cpu_s for kept in done.values()), 1)
    result["missed"] = missed(result)
    if not arguments.quick:
        path: Path = ROOT / "benchmarks" / "results" / "rollout_policies.json"
        about = {key: value for key, value in provenance().items() if key != "runtimes"}  # none runs here
        path.write_text(json.dumps({**about, **result}, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(result))
    else:
        for devices in size.runs:
            for policy, row in result[str(devices)].items():
                print(devices, policy, json.dumps(row))
        print(json.dumps({name: result[name] for name in ("engine", "runs", "cpu_s", "missed")}))


if __name__ == "__main__":
    main()
