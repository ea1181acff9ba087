"""Devices in arrays: what each is like, and what it counts in a window. Randomness is passed in.

Counts of one window of all devices are rows as `processes.Counts` has them: runs, runs and labels; failed, slow and
wrong ones. A run is slow above the grid edge next above the device's own 95th percentile, as in the hub. The truth
comes late: labels wait in a pool of their device, from which each window takes an exponential share.

Cost: about 0.4 µs for a device and window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from edgewright_contracts.binning import GRID_GROWTH

from ..rollouts.dispersion import dispersion
from ..rollouts.processes import Counts
from .world import CRASHES, GOOD, Release, World

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DAY_S: Final = 86_400.0
_P95: Final = 1.6448536269514722
_CHUNK: Final = 400_000  # device-windows drawn at once


@dataclass(frozen=True, slots=True)
class Fleet:
    world: World
    error: Floats  # rate of each device
    wrong: Floats
    slow_z: Floats  # where its slow runs begin, in standard deviations of log latency
    site: Numbers
    fragile: Floats  # its place in [0, 1) among those that a release harms or crashes
    hour_s: float  # of the day, at which the rollout begins

    @classmethod
    def drawn(cls, world: World, rng: np.random.Generator) -> Fleet:
        size = world.devices
        whole = math.hypot(world.latency_sd, world.latency_burst_sd, world.latency_shock_sd)
        return cls(
            world,
            error=np.minimum(world.error * _spread(world.error_cv, size, rng), 1.0),
            wrong=np.minimum(world.wrong * _spread(world.wrong_cv, size, rng), 1.0),
            slow_z=(_P95 * whole + rng.random(size) * math.log(GRID_GROWTH)) / world.latency_sd,
            site=rng.integers(0, world.sites, size),
            fragile=rng.random(size),
            hour_s=float(rng.uniform(0, DAY_S)),
        )

    def before(self, rng: np.random.Generator) -> tuple[Counts, Floats]:
        """What they counted before the rollout, with the dispersion that the hub estimates from it, for each metric."""
        world, size = self.world, self.world.devices
        windows = round(world.before_s / world.window_s)
        at_once = max(1, _CHUNK // size)
        trials, events = np.zeros((3, windows, size)), np.zeros((3, windows, size))
        for start in range(0, windows, at_once):
            rows = np.arange(start, min(start + at_once, windows))
            heard = rng.random((rows.size, size)) >= world.lost
            errors, slow = self._runs(
                (rows - windows).astype(np.float64), GOOD, np.zeros(size, np.bool_), np.zeros(size), rng
            )
            labels = rng.poisson(world.inferences * world.labelled, (rows.size, size))
            wrong = rng.binomial(labels, self.wrong)
            n = np.full_like(errors, world.inferences)
            trials[:, rows] = np.stack((n, n, labels)) * heard
            events[:, rows] = np.stack((errors, slow, wrong)) * heard
        device = np.broadcast_to(np.arange(size), (windows, size)).ravel()
        slot = np.repeat(np.arange(windows), size)
        phi = np.array([dispersion(e.ravel(), n.ravel(), device, slot) for e, n in zip(events, trials, strict=True)])
        return Counts(trials.sum(1), events.sum(1)), phi

    def labels(self, rng: np.random.Generator) -> Labels:
        """Those that wait when the rollout begins."""
        world = self.world
        waiting = world.inferences * world.labelled / _share_that_comes(world)
        wrong = rng.poisson(waiting * self.wrong)
        return Labels(right=rng.poisson(waiting * (1 - self.wrong)), wrong=wrong)

    def window(
        self, turn: int, release: Release, runs: Bools, since_s: Floats, labels: Labels, rng: np.random.Generator
    ) -> Counts:
        """Of window number `turn` of the rollout: `runs` says who has the release, `since_s` for how long."""
        world = self.world
        harmed, grown = self.harm(release, runs, since_s)
        errors, slow = self._runs(np.array([float(turn)]), release, harmed, grown, rng)
        right, wrong = labels.came(world, self.wrongly(release, harmed, grown), rng)
        n = np.full(world.devices, float(world.inferences))
        return Counts(np.stack((n, n, right + wrong)), np.stack((errors[0], slow[0], wrong.astype(np.float64))))

    def harm(self, release: Release, runs: Bools, since_s: Floats) -> tuple[Bools, Floats]:
        """Whom it harms, and how far the harm has grown there."""
        grown = np.minimum(1.0, since_s / release.over_s) if release.over_s else np.ones(runs.size)
        return runs & (self.fragile < release.share), grown

    def wrongly(self, release: Release, harmed: Bools, grown: Floats) -> Floats:
        """Share of wrong answers."""
        return np.minimum(1.0, self.wrong + np.where(harmed, release.wrong * grown, 0.0))

    def crashes(self, release: Release, runs: Bools, rng: np.random.Generator) -> tuple[Bools, Bools]:
        """Devices that crash in a window because of the release, and those that fail by themselves."""
        fails = rng.random(self.world.devices) < self.world.failure
        if not release.crash:
            return np.zeros_like(fails), fails
        return runs & (self.fragile < release.crash) & (rng.random(fails.size) < CRASHES), fails

    def mood(
        self, turns: Floats, release: Release, harmed: Bools, grown: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Error rates, and by how much log latencies are moved, float64[turns, devices]; a turn is one window."""
        world, shape = self.world, (turns.size, self.world.devices)
        hour = 2 * math.pi * (self.hour_s + turns * world.window_s) / DAY_S
        common = (1 + world.daily * np.sin(hour)) * _spread(world.shock_cv, turns.size, rng)
        rate = common[:, None] * self.error * _spread(world.burst_cv, shape, rng)
        shift = rng.normal(0.0, world.latency_shock_sd, turns.size)[:, None]
        shift = shift + rng.normal(0.0, world.latency_burst_sd, shape)
        if not release.harmless:
            rate = rate * np.where(harmed, 1 + (release.error - 1) * grown, 1.0)
            rate += np.where(harmed, release.more_errors * grown, 0.0)
            shift = shift + np.where(harmed, np.log1p((release.latency - 1) * grown), 0.0)
        return np.minimum(rate, 1.0), shift

    def _runs(
        self, turns: Floats, release: Release, harmed: Bools, grown: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Failed and slow runs, float64[turns, devices]."""
        rate, shift = self.mood(turns, release, harmed, grown, rng)
        slow = ndtr(shift / self.world.latency_sd - self.slow_z)
        n = self.world.inferences
        return rng.binomial(n, rate).astype(np.float64), rng.binomial(n, slow).astype(np.float64)


@dataclass(slots=True)
class Labels:
    """What is known of a device's answers, and did not arrive yet."""

    right: Numbers
    wrong: Numbers

    def came(self, world: World, rate: Floats, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
        """Right and wrong ones that arrive in a window of all devices."""
        return self.some(np.arange(rate.size), world.inferences, world, rate, rng)

    def some(
        self, devices: Numbers, n: int | Numbers, world: World, rate: Floats, rng: np.random.Generator
    ) -> tuple[Numbers, Numbers]:
        """Of these devices, after `n` inferences each."""
        new = rng.binomial(n, world.labelled, devices.size)
        wrong = rng.binomial(new, rate)
        share = -np.expm1(-np.asarray(n) / world.inferences * world.window_s / world.label_delay_s)
        right_of, wrong_of = self.right[devices] + new - wrong, self.wrong[devices] + wrong
        came = rng.binomial(right_of, share), rng.binomial(wrong_of, share)
        self.right[devices], self.wrong[devices] = right_of - came[0], wrong_of - came[1]
        return came

    def forget(self, devices: Bools) -> None:
        """Their labels are of another release than they run now."""
        self.right[devices] = 0
        self.wrong[devices] = 0


def _share_that_comes(world: World) -> float:
    return -math.expm1(-world.window_s / world.label_delay_s)


def _spread(cv: float, shape: int | tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Gamma factors of mean 1."""
    if cv == 0:
        return np.ones(shape)
    return np.asarray(rng.standard_gamma(cv**-2, shape)) * cv**2
