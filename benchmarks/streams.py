"""Streams of windows as fleets make them, drawn as counts, and watched by the hub's own code.

A window of a device is `n` rows of `CHANNELS` channels with ten cells between deciles of the reference and two tails.
What makes streams differ from independent rows:

    scene    rows come in scenes of so many equal ones (frames of a camera that stands still)
    amplitude, rho   the mean of each channel wanders: a tilt of its cells that is an AR(1) process over windows
    offset   each device is tilted for ever by its own amount

A *tilt* of t multiplies the weights of the cells by exp(t x), x from -1 to 1: about t / 2 standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_hub.drift import detectors
from edgewright_hub.drift.groups import DriftPolicy, Group
from edgewright_hub.drift.moves import Channels

CHANNELS: Final = 4
CELLS: Final = 12
ROWS: Final = 200
REFERENCE_ROWS: Final = 20_000
WINDOW_MS: Final = 300_000
DAY: Final = 288  # windows
HUB: Final = Channels(names=("a", "b", "c", "d"), kinds=("numeric",) * CHANNELS, widths=(CELLS,) * CHANNELS)
_NULL: Final = np.r_[1e-4, np.full(10, 0.09998), 1e-4]
_TILT: Final = np.linspace(-1, 1, CELLS)

Floats = npt.NDArray[np.float64]
Tilts = Callable[[int], "Floats | float"]


@dataclass(slots=True)
class Streams:
    rng: np.random.Generator
    scene: npt.NDArray[np.int64]  # [devices]
    amplitude: Floats
    rho: Floats
    offset: Floats  # [devices, CHANNELS]
    state: Floats

    @property
    def devices(self) -> int:
        return self.scene.size

    def draw(self, tilt: Floats | float = 0.0) -> npt.NDArray[np.int64]:
        """One window of each device, int64[devices, CHANNELS, CELLS]."""
        rho = self.rho[:, None]
        self.state = rho * self.state + np.sqrt(1 - rho**2) * self.rng.standard_normal(self.state.shape)
        tilts = self.offset + self.amplitude[:, None] * self.state + tilt
        weights = _NULL * np.exp(tilts[..., None] * _TILT)
        scenes = (ROWS // self.scene)[:, None]
        return self.rng.multinomial(scenes, weights / weights.sum(-1, keepdims=True)) * self.scene[:, None, None]


def streams(kind: str, devices: int, seed: int) -> Streams:
    """`independent`; `autocorrelated`: scenes of five rows, and a mean that wanders by a tilt of .3 with rho = .9;
    `heterogeneous`: offsets of .2, scenes of 1 to 10 rows, amplitudes up to .15, rho up to .9, all by device."""
    rng = np.random.default_rng([seed, devices])
    scene, amplitude, rho = np.ones(devices, np.int64), np.zeros(devices), np.zeros(devices)
    offset = np.zeros((devices, CHANNELS))
    if kind == "autocorrelated":
        scene, amplitude, rho = scene * 5, amplitude + 0.3, rho + 0.9
    elif kind == "heterogeneous":
        scene, offset = rng.choice([1, 2, 5, 10], devices), rng.normal(0, 0.2, (devices, CHANNELS))
        amplitude, rho = rng.uniform(0, 0.15, devices), rng.uniform(0, 0.9, devices)
    return Streams(rng, scene, amplitude, rho, offset, rng.standard_normal((devices, CHANNELS)))


@dataclass(frozen=True, slots=True)
class Watched:
    group: Group
    first: Floats  # window of each device's first alarm, from 1 on; inf without one
    z: Floats  # [windows, devices]: score of each block at the shortest scale


def watch(
    drawn: Streams,
    windows: int,
    *,
    log_need: float,
    tilt: Tilts = lambda _: 0.0,
    policy: DriftPolicy = DriftPolicy(),  # noqa: B008 (frozen)
    freeze: bool = False,
) -> Watched:
    """Give the hub's streams `windows` windows of every device. A device in alarm goes on as it is; with `freeze` its
    alarm is also set, so that it learns no more."""
    reference = np.maximum(np.rint(_NULL / _NULL.sum() * REFERENCE_ROWS), 1)
    group = Group(policy, HUB, [reference] * CHANNELS)
    at = np.array([group.baselines.enter(f"d{i}", "fleet") for i in range(drawn.devices)])
    first, z = np.full(drawn.devices, np.inf), np.zeros((windows, drawn.devices))
    length = np.full(drawn.devices, WINDOW_MS)
    for window in range(windows):
        cells = drawn.draw(tilt(window))
        group.take(at, cells, cells[:, 0].sum(1), np.full(drawn.devices, 1 + window * WINDOW_MS), length)
        alarm = (group.log_e(at) >= log_need) & np.isinf(first)
        first[alarm] = window + 1
        if freeze:
            group.streams.alarm[at[alarm]] = True
        z[window] = group.streams.before[at, 0]
    return Watched(group, first, z)


def need(A: float) -> float:
    """log e of an alarm at which the expected false alarms of T windows are T / A."""
    return float(np.log(A * WINDOW_MS / detectors.MONTH_MS))
