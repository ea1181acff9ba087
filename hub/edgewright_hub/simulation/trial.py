"""One rollout on a virtual fleet, in arrays: the hub's own engine and gate, without its databases.

What the engine is told is what a hub would know: who reported, what it counted, who failed. A device takes the release
in the window after it was asked, says so, and reports with it at the window's end. A device promises its next report
within two windows (`next_due_s`): when they did not come it is not present, and when as many more did not come it is
silent, which counts against the release (`evidence.PATIENCE`). A device that fails with the release goes back by
itself. Cost: about 0.6 µs for a device and window, besides the engine's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec
import numpy as np

from ..rollouts import rollout
from ..rollouts.evidence import PATIENCE, UNNOTICED_H
from ..rollouts.gates import GatePolicy, Ledger, SequentialGate
from ..rollouts.hearing import Said
from ..rollouts.members import HAPPENINGS, Members
from ..rollouts.processes import Counts, Process
from ..rollouts.rollout import Observation
from ..rollouts.specification import RolloutSpec
from ..rollouts.state import RolloutState
from ..rollouts.wishes import KINDS, Wishes
from .fleet import Bools, Fleet, Floats, Labels, Numbers
from .world import Release

STAGES = ("1%", "5%", "25%", "100%")
PROMISED: Final = 2  # windows, within which a device reports again
SILENT: Final = PATIENCE * PROMISED  # windows that did not come
_OLD, _NEW = "0" * 64, "1" * 64
_ACTIVATE, _COMMIT, _FAIL = (HAPPENINGS.index(one) for one in ("activate", "commit", "fail"))

Ending = Literal["promoted", "rolled back", "held"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    ending: Ending  # held: nothing was decided until the time was over
    full: bool  # everyone was given the release, whatever came then
    full_s: float | None  # after the start
    ended_s: float
    exposed: int  # devices that were given it
    stage: int
    reason: str


@dataclass(frozen=True, slots=True)
class Start:
    """What a rollout begins with; one start may serve many trials."""

    fleet: Fleet
    pre: Counts
    phi: Floats
    labels: Labels

    @classmethod
    def of(cls, fleet: Fleet, rng: np.random.Generator) -> Start:
        return cls(fleet, *fleet.before(rng), fleet.labels(rng))


def run(
    start: Start, release: Release, gate: GatePolicy, rng: np.random.Generator, *, longest_s: float,
    stages: tuple[str | int, ...] = STAGES,
) -> Outcome:  # fmt: skip
    """Until the engine has decided, or `longest_s` are over."""
    window_s = start.fleet.world.window_s
    judge = SequentialGate(gate)
    spec, state = begun(start, gate, stages)
    devices = Devices(start)
    full_s: float | None = None
    state, wishes = rollout.step(state, spec, Observation(present=~devices.gone), judge, 0)
    now_s = 0.0
    for turn in range(int(longest_s // window_s)):
        devices.take(wishes)
        seen = devices.window(turn, release, rng)
        now_s += window_s
        state, wishes = rollout.step(state, spec, seen, judge, int(1000 * now_s))
        if full_s is None and state.stage == len(stages) - 1 and state.state in ("running", "done"):
            full_s = now_s
        if state.state != "running":
            break
    endings: dict[str, Ending] = {"done": "promoted", "running": "held"}
    return Outcome(
        ending=endings.get(state.state, "rolled back"),
        full=full_s is not None,
        full_s=full_s,
        ended_s=now_s,
        exposed=state.exposed,
        stage=state.stage,
        reason=state.reason,
    )


def begun(start: Start, gate: GatePolicy, stages: tuple[str | int, ...]) -> tuple[RolloutSpec, RolloutState]:
    """The rollout, running, before anyone was asked."""
    size, window_s = start.fleet.world.devices, start.fleet.world.window_s
    members = Members.new(
        [f"d{i}" for i in range(size)],
        (_OLD,),
        previous=np.zeros(size, np.int16),
        pre=np.stack((start.pre.trials, start.pre.events)),
    )
    ledger = Ledger(tuple(Process(phi=float(phi)) for phi in start.phi))
    spec = RolloutSpec(model="virtual", digest=_NEW, stages=stages, gate=gate, window_s=window_s)
    state = RolloutState(id="virtual", members=members, ledger=ledger)
    return spec, rollout.command(state, spec, "start", "simulated", 0)[0]


class Devices:
    """What each runs, and what the hub hears of them."""

    def __init__(self, start: Start) -> None:
        size = start.fleet.world.devices
        self._fleet = start.fleet
        self._labels = replace(start.labels, right=start.labels.right.copy(), wrong=start.labels.wrong.copy())
        self._asked, self._runs, self._given, self._dead = (np.zeros(size, np.bool_) for _ in range(4))
        self._failed_once, self._silent_once = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        self._unsaid = np.zeros(size, np.bool_)  # failures that the hub did not hear of yet
        self._since = np.zeros(size, np.int64)  # windows with the release
        self._missed = np.zeros(size, np.int64)  # windows that did not come, in a row
        self._until_s = np.zeros(start.fleet.world.sites)  # a site is without link

    @property
    def gone(self) -> Bools:
        return np.asarray(self._missed >= PROMISED)

    def take(self, wishes: Wishes) -> None:
        give = np.isin(wishes.kind, [KINDS.index("give"), KINDS.index("again")])
        self._asked[wishes.device[give]] = True
        back = wishes.device[wishes.kind == KINDS.index("back")]
        self._asked[back] = self._runs[back] = False

    def window(self, turn: int, release: Release, rng: np.random.Generator) -> Observation:
        """One window of the devices' life, and what the hub knows at its end."""
        fleet, world = self._fleet, self._fleet.world
        link = (rng.random(world.devices) >= world.lost) & ~self._offline(turn, rng)[fleet.site]
        new = self._asked & link & ~self._dead
        self._asked &= ~new
        self._runs |= new
        self._given |= new
        self._labels.forget(new)
        self._since[new] = 0
        since_s = np.multiply(self._since, world.window_s, dtype=np.float64)
        counts = fleet.window(turn, release, self._runs, since_s, self._labels, rng)
        harmed, by_itself = fleet.crashes(release, self._runs, rng)
        if release.silent:
            self._dead |= harmed
        else:
            by_itself |= harmed
        self._unsaid |= by_itself & ~self._dead
        said = self._unsaid & link
        self._unsaid &= ~said
        heard = link & ~self._dead
        reports, control = self._runs & heard & ~said, ~self._given & ~self._asked
        self._missed = np.where(heard, 0, self._missed + 1)
        first_failure = said & ~self._failed_once
        first_silence = (self._missed >= SILENT) & ~self._silent_once
        hours = heard * (world.window_s / 3600)
        trials = np.stack((
            *(counts.trials * heard),
            np.where(self._failed_once, 0.0, hours + UNNOTICED_H * first_failure),
            np.where(self._silent_once, 0.0, hours + UNNOTICED_H * first_silence),
        ))  # fmt: skip
        events = np.stack((*(counts.events * heard), first_failure, first_silence))
        seen = Observation(
            present=~self.gone,
            said=_said(new, reports, said & self._runs),
            windows=reports.astype(np.int32),
            treated=Counts(trials * self._runs, events * self._runs),
            control=Counts(trials * control, events * control),
            lost=first_silence,
        )
        self._failed_once |= first_failure
        self._silent_once |= first_silence
        self._since += self._runs
        self._runs &= ~said  # it goes back by itself
        return seen

    def _offline(self, turn: int, rng: np.random.Generator) -> Bools:
        world = self._fleet.world
        now_s = turn * world.window_s
        if world.outages:
            begins = rng.random(world.sites) < world.outages * world.window_s / 86_400
            lasts = now_s + rng.exponential(world.outage_s, world.sites)
            self._until_s = np.where(begins, np.maximum(self._until_s, lasts), self._until_s)
        return np.asarray(self._until_s > now_s)


def _said(activated: Bools, committed: Bools, failed: Bools) -> Said:
    places = [np.flatnonzero(who) for who in (activated, committed, failed)]
    device: Numbers = np.concatenate(places)
    return Said(
        device=device,
        happening=np.repeat(np.array([_ACTIVATE, _COMMIT, _FAIL], np.int8), [one.size for one in places]),
        cause=np.zeros(device.size, np.int8),
        refused=np.zeros(device.size, np.bool_),
        reasons={},
    )
