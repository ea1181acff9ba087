"""How others stage a release, on the same fleets: many rollouts at once, summed by group of devices.

    hawkBit-like   the next group when 90 % of this one say that they finished; stop when more than 10 % of it failed.
                   It sees failures only (Eclipse hawkBit's rollout groups with their default conditions).
    thresholds     12 checks a stage; back after 5 bad ones: errors above 2 %, p95 above 1.2 times what it was, or more
                   than 10 % of the devices failed
    fixed z        2 h a stage, then one two-proportion test for each metric at .05, with inferences as units
    peek z         the same tests after every window
    fixed DiD      2 h a stage, then the log rate ratio of treated over control and of after over before, with the
                   dispersion of the period before, at .05 / 3; and at once when more than 10 % of the devices failed

A group is the devices that one stage adds. Its counts are drawn at once: the sum of its devices' bursts is a gamma
variable of the same mean and variance. Everything else is as in edgewright_hub.simulation, whose worlds and releases
are used. A rollout counts as fully out when the last group is given the release.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from edgewright_hub.simulation.fleet import Fleet
from edgewright_hub.simulation.world import CRASHES, Release, World

Floats = npt.NDArray[np.float64]
STAGES: Final = (0.01, 0.05, 0.25, 1.0)
SOAK: Final = 24  # windows of 5 minutes: 2 h
CHECKS, BAD_CHECKS = 12, 5
PROMOTE, STAY, BACK = 1, 0, -1


@dataclass
class Groups:
    """Of many fleets: sums over the devices of each group, float64[runs, groups]."""

    world: World
    size: Floats
    error: Floats  # sum of the devices' error rates, and of their squares
    error2: Floats
    slow: Floats  # sum of slow shares, and what bursts add to its variance
    slow2: Floats
    slow_z: Floats  # mean place of the slow edge
    wrong: Floats
    hour_s: Floats  # [runs]
    pre_n: Floats  # [metrics, runs, groups]
    pre_k: Floats

    @classmethod
    def drawn(cls, world: World, runs: int, rng: np.random.Generator) -> Groups:
        ends = [max(1, math.ceil(share * world.devices)) for share in STAGES]
        starts = [0, *ends[:-1]]
        columns: dict[str, list[Any]] = {name: [] for name in ("error", "error2", "slow", "slow2", "z", "wrong", "h")}
        for _ in range(runs):
            fleet = Fleet.drawn(world, rng)
            p = norm.sf(fleet.slow_z * world.latency_sd / math.hypot(world.latency_sd, world.latency_burst_sd))
            steep = norm.pdf(fleet.slow_z) * world.latency_burst_sd / world.latency_sd
            for name, values in (("error", fleet.error), ("error2", fleet.error**2), ("slow", p),
                                 ("slow2", steep**2), ("z", fleet.slow_z), ("wrong", fleet.wrong)):  # fmt: skip
                columns[name].append(np.add.reduceat(values, starts))
            columns["h"].append(fleet.hour_s)
        size = np.broadcast_to(np.diff([0, *ends]).astype(float), (runs, len(ends)))
        a = {name: np.array(values) for name, values in columns.items()}
        n = size * world.inferences * (1 - world.lost) * world.before_s / world.window_s
        trials = np.stack((n, n, n * world.labelled))
        rates = np.stack((a["error"], a["slow"], a["wrong"])) / size
        return cls(
            world, size, a["error"], a["error2"], a["slow"], a["slow2"], a["z"] / size, a["wrong"], a["h"],
            pre_n=trials, pre_k=rng.poisson(trials * rates).astype(float),
        )  # fmt: skip


@dataclass
class Seen:
    """By all the rollouts in the stage that each is in: [metrics, runs, groups], since the stage began or before."""

    groups: Groups
    stage: npt.NDArray[np.intp]
    turns: npt.NDArray[np.intp]  # windows in this stage
    n: Floats
    k: Floats
    now_n: Floats
    now_k: Floats
    failed: Floats  # devices, [runs, groups]
    heard: Floats  # devices that said at least once that they run the release
    bad: npt.NDArray[np.intp]  # bad checks so far

    def sides(self, n: Floats, k: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """(n, k) of the treated groups and of the others, [metrics, runs]."""
        treated = self.treated
        return (n * treated).sum(2), (k * treated).sum(2), (n * ~treated).sum(2), (k * ~treated).sum(2)

    @classmethod
    def nothing(cls, groups: Groups) -> Seen:
        empty, runs = groups.size.shape, len(groups.size)
        n, k, now_n, now_k = (np.zeros((3, *empty)) for _ in range(4))
        stage, turns, bad = (np.zeros(runs, np.intp) for _ in range(3))
        return cls(groups, stage, turns, n, k, now_n, now_k, np.zeros(empty), np.zeros(empty), bad)

    @property
    def treated(self) -> npt.NDArray[np.bool_]:
        return np.asarray(np.arange(self.failed.shape[1]) <= self.stage[:, None])

    @property
    def broken(self) -> npt.NDArray[np.bool_]:
        """More than 10 % of the devices failed."""
        return np.asarray((self.failed * self.treated).sum(1) > 0.1 * (self.groups.size * self.treated).sum(1))


Policy = Callable[[Seen], npt.NDArray[np.intp]]  # PROMOTE, STAY or BACK of each run


def hawkbit(seen: Seen) -> npt.NDArray[np.intp]:
    mine = np.take_along_axis
    stage = seen.stage[:, None]
    size = mine(seen.groups.size, stage, 1)[:, 0]
    failed = mine(seen.failed, stage, 1)[:, 0]
    finished = mine(seen.heard, stage, 1)[:, 0] - failed >= 0.9 * size
    return np.where(failed > 0.1 * size, BACK, np.where(finished, PROMOTE, STAY))


def thresholds(seen: Seen) -> npt.NDArray[np.intp]:
    n, k, _, _ = seen.sides(seen.now_n, seen.now_k)
    before_n, before_k, _, _ = seen.sides(seen.groups.pre_n, seen.groups.pre_k)
    now, before = (norm.isf(np.clip(x[1] / np.maximum(y[1], 1), 1e-6, 1)) for x, y in ((k, n), (before_k, before_n)))
    p95 = np.exp(seen.groups.world.latency_sd * (before - now))  # times what it was, as latencies are lognormal
    bad = (k[0] > 0.02 * n[0]) | (p95 > 1.2) | seen.broken
    seen.bad += bad
    return np.where(seen.bad >= BAD_CHECKS, BACK, np.where(seen.turns >= CHECKS, PROMOTE, STAY))


def fixed_z(seen: Seen) -> npt.NDArray[np.intp]:
    over = seen.turns >= SOAK
    return np.where(over & _differs(seen), BACK, np.where(over, PROMOTE, STAY))


def peek_z(seen: Seen) -> npt.NDArray[np.intp]:
    return np.where(_differs(seen), BACK, np.where(seen.turns >= SOAK, PROMOTE, STAY))


def fixed_did(seen: Seen) -> npt.NDArray[np.intp]:
    n_t, k_t, n_c, k_c = seen.sides(seen.n, seen.k)
    b_n_t, b_k_t, b_n_c, b_k_c = seen.sides(seen.groups.pre_n, seen.groups.pre_k)
    half = 0.5  # of an event: so that none can be compared
    ratio = np.log((k_t + half) / (n_t + 1) * (k_c + half) ** -1 * (n_c + 1))
    ratio -= np.log((b_k_t + half) / (b_n_t + 1) * (b_k_c + half) ** -1 * (b_n_c + 1))
    world = seen.groups.world
    phi = np.array([1 + world.inferences * world.error * world.burst_cv**2, 1.5, 1.0])[:, None]
    spread = np.sqrt(phi * sum(1 / (k + half) for k in (k_t, k_c, b_k_t, b_k_c)))
    worse = (ratio / spread > norm.isf(0.05 / 3)).any(0)
    over = seen.turns >= SOAK
    return np.where(seen.broken | (over & worse), BACK, np.where(over, PROMOTE, STAY))


POLICIES: Final[dict[str, Policy]] = {
    "hawkBit-like": hawkbit,
    "thresholds": thresholds,
    "fixed z": fixed_z,
    "peek z": peek_z,
    "fixed DiD": fixed_did,
}


def _differs(seen: Seen) -> npt.NDArray[np.bool_]:
    n_t, k_t, n_c, k_c = seen.sides(seen.n, seen.k)
    treated = seen.treated
    n_t, n_c = (np.vstack((n, (seen.groups.size * side).sum(1))) for n, side in ((n_t, treated), (n_c, ~treated)))
    k_t, k_c = (np.vstack((k, (seen.failed * side).sum(1))) for k, side in ((k_t, treated), (k_c, ~treated)))
    both = np.clip((k_t + k_c) / np.maximum(n_t + n_c, 1), 1e-12, 1 - 1e-12)
    spread = np.sqrt(both * (1 - both) * (1 / np.maximum(n_t, 1) + 1 / np.maximum(n_c, 1)))
    z = (k_t / np.maximum(n_t, 1) - k_c / np.maximum(n_c, 1)) / spread
    return np.asarray(((z > norm.isf(0.05)) & (k_t > 0)).any(0))


@dataclass
class Ended:
    """Arrays over runs."""

    full: npt.NDArray[np.bool_]
    back: npt.NDArray[np.bool_]
    minutes: Floats  # until it was fully out, or went back
    exposed: Floats  # share of the devices


def run(groups: Groups, release: Release, policy: Policy, rng: np.random.Generator, *, longest_s: float) -> Ended:
    world = groups.world
    runs, count = groups.size.shape
    seen = Seen.nothing(groups)
    going, full = np.ones(runs, np.bool_), np.zeros(runs, np.bool_)
    minutes = np.full(runs, longest_s / 60)
    harmed = rng.binomial(groups.size.astype(int), release.share) / groups.size
    fragile = rng.binomial(groups.size.astype(int), release.crash).astype(float)
    silenced = np.zeros((runs, count))
    arrives = -math.expm1(-world.window_s / world.label_delay_s)
    waiting = world.inferences * world.labelled / arrives
    right, wrong = rng.poisson(waiting * (groups.size - groups.wrong)), rng.poisson(waiting * groups.wrong)
    began = np.where(np.arange(count) == 0, 0, -1) * np.ones((runs, 1))  # window in which a group was given it
    right[:, 0] = wrong[:, 0] = 0
    for turn in range(int(longest_s // world.window_s)):
        treated = seen.treated
        grown = np.clip((turn - began) * world.window_s / release.over_s, 0, 1) if release.over_s else 1.0
        alive = (groups.size - silenced) / groups.size
        crashed = rng.binomial(fragile.astype(int), CRASHES) * treated
        fragile = fragile - crashed
        itself = rng.binomial((groups.size - seen.failed).clip(0).astype(int), world.failure)
        seen.failed = seen.failed + itself + (0 if release.silent else crashed)
        silenced = silenced + (crashed if release.silent else 0)
        hears = rng.binomial((groups.size * alive).astype(int), 1 - world.lost) / groups.size
        n = groups.size * hears * world.inferences
        factor = np.where(treated, 1 + (release.error - 1) * harmed * grown, 1.0)
        more = np.where(treated, release.more_errors * harmed * grown, 0.0) * groups.size
        hour = 2 * math.pi * (groups.hour_s + turn * world.window_s) / 86_400
        shock = _gamma(np.ones(runs), np.full(runs, world.shock_cv**2), rng)
        common = (1 + world.daily * np.sin(hour)) * shock
        rate = common[:, None] * _gamma(groups.error, world.burst_cv**2 * groups.error2, rng) * factor + more
        errors = rng.poisson(rate * hears * world.inferences)
        shift = rng.normal(0, world.latency_shock_sd, (runs, 1)) / world.latency_sd
        shift = shift + np.where(treated, np.log1p((release.latency - 1) * grown) / world.latency_sd, 0.0)
        whole = math.hypot(1, world.latency_burst_sd / world.latency_sd)
        ratio = norm.sf((groups.slow_z - shift) / whole) / norm.sf(groups.slow_z / whole)
        ratio = 1 + (ratio - 1) * np.where(treated & (release.share < 1), harmed, 1.0)
        slow = rng.poisson(_gamma(groups.slow, groups.slow2, rng) * ratio * hears * world.inferences)
        new = rng.poisson(groups.size * alive * world.inferences * world.labelled)
        wrongly = groups.wrong / groups.size + np.where(treated, release.wrong * harmed * grown, 0.0)
        new_wrong = rng.binomial(new, np.clip(wrongly, 0, 1))
        right, wrong = right + new - new_wrong, wrong + new_wrong
        came_right, came_wrong = rng.binomial(right, arrives), rng.binomial(wrong, arrives)
        right, wrong = right - came_right, wrong - came_wrong
        seen.now_n = np.stack((n, n, came_right + came_wrong))
        seen.now_k = np.stack((np.minimum(errors, n), np.minimum(slow, n), came_wrong))
        seen.n, seen.k = seen.n + seen.now_n, seen.k + seen.now_k
        seen.heard = np.maximum(seen.heard, np.where(treated, groups.size * hears, 0))
        seen.turns += 1
        said = np.where(going, policy(seen), STAY)
        back, on = said == BACK, said == PROMOTE
        minutes[back | (on & (seen.stage == count - 2))] = (turn + 1) * world.window_s / 60
        going &= ~back
        seen.stage = seen.stage + on
        full |= on & (seen.stage == count - 1)
        going &= ~full
        fresh = on[:, None] & (np.arange(count) == seen.stage[:, None])
        began = np.where(fresh, turn + 1, began)
        right, wrong = np.where(fresh, 0, right), np.where(fresh, 0, wrong)
        seen.turns[on] = seen.bad[on] = 0
        seen.n[:, on] = seen.k[:, on] = 0
        if not going.any():
            break
    return Ended(full, ~full & ~going, minutes, (groups.size * seen.treated).sum(1) / groups.size.sum(1))


def _gamma(mean: Floats, variance: Floats, rng: np.random.Generator) -> Floats:
    """Variables of that mean and variance; the mean itself where there is none."""
    scale = np.divide(variance, mean, out=np.zeros_like(mean), where=mean > 0)
    shape = np.divide(mean, scale, out=np.ones_like(mean), where=scale > 0)
    return np.where(scale > 0, rng.standard_gamma(shape) * scale, mean)
