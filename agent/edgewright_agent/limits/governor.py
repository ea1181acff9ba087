"""The governor: from what the device has left to what the agent does without. Pure.

What is given up, and in which order, is `RELIEF`, one row for each scarce thing. Counts, errors, labels and events are
in none of them: they are merged or wait, and are never given up.

    samples   no inputs are kept for the operator
    shadow    no candidate runs beside the active model
    install   no package is fetched or tried; a rollback never waits
    channels  counted of every `SPARED`-th of the inferences that the hub asks for
    windows   `STRETCH` times as long, up to an hour
    reports   wait in the spool until tomorrow, or with a budget of 0 for another; with an event, everything goes

Levels (memory, processor, temperature) take one step further every `SETTLE_S` while over the limit, and one back every
`SETTLE_S` while under `RELEASE` of it: in between nothing changes. Budgets of a day take a step at each of `SPENT`, and
start anew with the day. A limit that is not set strains nothing. Without a reading, what was given up stays so.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Literal, NamedTuple

import msgspec

from edgewright_contracts.desired import Config


class Step(StrEnum):
    SAMPLES = "samples"
    SHADOW = "shadow"
    INSTALL = "install"
    CHANNELS = "channels"
    WINDOWS = "windows"
    REPORTS = "reports"


Need = Literal["memory", "processor", "temperature", "link", "disk"]

RELIEF: Final[Mapping[Need, tuple[Step, ...]]] = {
    "memory": (Step.SAMPLES, Step.SHADOW, Step.INSTALL),
    "processor": (Step.SHADOW, Step.INSTALL, Step.CHANNELS),
    "temperature": (Step.SAMPLES, Step.SHADOW, Step.INSTALL, Step.CHANNELS),
    "link": (Step.SAMPLES, Step.WINDOWS, Step.REPORTS),
    "disk": (Step.SAMPLES, Step.WINDOWS, Step.INSTALL),
}
SPENT: Final = (0.6, 0.8, 1.0)  # of a day's budget
RELEASE: Final[Mapping[Need, float]] = {"memory": 0.95, "processor": 0.7}
COOLER_C: Final = 5.0  # than its limit, before a hot device takes a step back
SETTLE_S: Final = 30.0  # a step needs so long to show
SPARED: Final = 10
STRETCH: Final = 4
LONGEST_S: Final = 3600.0
METERED_S: Final = 900.0


class Readings(NamedTuple):
    """What the device uses now, and has used today. None: it cannot say."""

    rss_mb: float | None = None
    background_permille: float | None = None  # of one core, for what is not inference
    temperature_c: float | None = None
    link_bytes: int = 0  # of telemetry today, both ways, as the wire carried them
    written_bytes: int = 0  # today
    threads: int = 0  # of the process, for whoever looks at it: nothing is given up for them


class Strain(NamedTuple):
    """One scarce thing against its limit."""

    value: float
    limit: float
    release: float


class Held(msgspec.Struct, frozen=True):
    """How many steps each need has taken, and when it took the last."""

    depth: Mapping[Need, int] = {}
    since_s: Mapping[Need, float] = {}

    @property
    def steps(self) -> frozenset[Step]:
        return frozenset(step for need, depth in self.depth.items() for step in RELIEF[need][:depth])


def advance(held: Held, readings: Readings, config: Config, now_s: float) -> Held:
    """The next state, after these readings at the monotonic time `now_s`."""
    depth: dict[Need, int] = {}
    since: dict[Need, float] = {}
    levels = strains(readings, config)
    budgets: Mapping[Need, tuple[int, int | None]] = {
        "link": (readings.link_bytes, config.bytes_per_day),
        "disk": (readings.written_bytes, config.limits.written_per_day),
    }
    for need in RELIEF:
        before = held.depth.get(need, 0)
        if need in budgets:
            used, limit = budgets[need]
            depth[need] = 0 if limit is None else sum(used >= share * limit for share in SPENT)
            continue
        strain = levels[need]
        changed_s = held.since_s.get(need, now_s - SETTLE_S)
        depth[need], since[need] = before, changed_s
        if strain is None:
            if limitless(need, config):
                depth[need] = 0
        elif now_s - changed_s >= SETTLE_S:
            if strain.value > strain.limit and before < len(RELIEF[need]):
                depth[need], since[need] = before + 1, now_s
            elif strain.value < strain.release and before:
                depth[need], since[need] = before - 1, now_s
    return Held(depth, since)


def strains(readings: Readings, config: Config) -> Mapping[Need, Strain | None]:
    """The levels against their limits; None where there is no limit or no reading."""
    limits = config.limits
    found: dict[Need, Strain | None] = {"memory": None, "processor": None, "temperature": None}
    if limits.rss_mb is not None and readings.rss_mb is not None:
        found["memory"] = Strain(readings.rss_mb, limits.rss_mb, RELEASE["memory"] * limits.rss_mb)
    if limits.cpu_permille is not None and readings.background_permille is not None:
        value = readings.background_permille
        found["processor"] = Strain(value, limits.cpu_permille, RELEASE["processor"] * limits.cpu_permille)
    if limits.temperature_c is not None and readings.temperature_c is not None:
        found["temperature"] = Strain(readings.temperature_c, limits.temperature_c, limits.temperature_c - COOLER_C)
    return found


def limitless(need: Need, config: Config) -> bool:
    limits = config.limits
    asked = {"memory": limits.rss_mb, "processor": limits.cpu_permille, "temperature": limits.temperature_c}
    return asked.get(need) is None


def profiled(config: Config) -> Config:
    """What the hub asks for, its profile spelt out."""
    if config.profile != "metered":
        return config
    return msgspec.structs.replace(config, window_s=max(config.window_s, METERED_S), compress=True)


def relieved(config: Config, steps: frozenset[Step]) -> Config:
    """What the agent does of it while `steps` are taken."""
    if Step.CHANNELS in steps:
        config = msgspec.structs.replace(config, monitor_every=min(SPARED * config.monitor_every, 1_000_000))
    if Step.WINDOWS in steps:
        config = msgspec.structs.replace(
            config,
            window_s=_stretched(config.window_s),
            rollout_window_s=_stretched(config.rollout_window_s),
            window_max_s=max(config.window_max_s, _stretched(config.window_s)),
        )
    return config


def told(held: Held, readings: Readings, config: Config) -> dict[Need, str]:
    """A sentence for each need that is held, as an operator reads it."""
    limits = config.limits
    uses = {
        "memory": f"{readings.rss_mb or 0:.0f} of {limits.rss_mb or 0:g} MB",
        "processor": f"{readings.background_permille or 0:.0f} of {limits.cpu_permille or 0} permille of a core",
        "temperature": f"{readings.temperature_c or 0:.1f} of {limits.temperature_c or 0:g} °C",
        "link": f"{readings.link_bytes} of {config.bytes_per_day or 0} bytes today",
        "disk": f"{readings.written_bytes} of {limits.written_per_day or 0} bytes written today",
    }
    return {
        need: f"{need}: {uses[need]}; held back: {', '.join(RELIEF[need][:depth])}"
        for need, depth in held.depth.items()
        if depth
    }


def _stretched(window_s: float) -> float:
    return max(window_s, min(STRETCH * window_s, LONGEST_S))
