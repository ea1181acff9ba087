"""What a virtual fleet is like, and what a release does to it. Pure; numbers only.

Rates are for each inference or each device and window, times in seconds. The defaults are the fleet on which Edgewright
compares policies of rollouts: benchmarks/rollout_policies.py.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Spread = Annotated[float, msgspec.Meta(ge=0, le=10)]


class World(msgspec.Struct, frozen=True, kw_only=True):
    devices: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    window_s: Positive = 300.0
    inferences: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 60  # of a device in a window
    error: Share = 0.01  # mean share of failed inferences
    wrong: Share = 0.08  # mean share of wrong answers
    labelled: Share = 0.02  # of the inferences: the truth comes
    label_delay_s: Positive = 3600.0  # mean; exponential
    latency_sd: Positive = 0.25  # of the logarithm, from run to run
    # Devices differ:
    error_cv: Spread = 0.5
    wrong_cv: Spread = 0.3
    # Windows of one device differ:
    burst_cv: Spread = 0.7  # of its error rate
    latency_burst_sd: Spread = 0.05  # of its log latency
    # All devices change together:
    daily: Share = 0.3  # swing of error rates over the day
    shock_cv: Spread = 0.15  # of error rates, from window to window
    latency_shock_sd: Spread = 0.02
    # Devices and their links:
    lost: Share = 0.05  # windows that never arrive
    failure: Share = 2e-4  # of a device in a window, by itself
    sites: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 20  # devices of a site lose their link together
    outages: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0  # of a site, a day
    outage_s: Positive = 2 * 3600.0  # mean; exponential
    skew_s: Annotated[float, msgspec.Meta(ge=0, le=240)] = 20.0  # standard deviation of the clocks; whole hub only
    clockless: Share = 0.02  # of the devices never had a clock; whole hub only
    before_s: Positive = 24 * 3600.0  # of reports before the rollout


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What it changes on the devices that it harms."""

    error: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0  # times the device's error rate
    more_errors: Share = 0.0  # and so much more
    latency: Annotated[float, msgspec.Meta(gt=0, le=1e3)] = 1.0  # times the latency
    wrong: Share = 0.0  # so much more
    crash: Share = 0.0  # of the devices, within their first hour or so: see CRASHES
    silent: bool = False  # a crash says nothing: the device only stops reporting
    share: Share = 1.0  # of the devices is harmed, each by what it is, not by chance
    over_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # until the whole harm, linearly, from when a device runs it

    @property
    def harmless(self) -> bool:
        return self == GOOD


CRASHES: Final = 0.5  # chance of a device that crashes to do so in each window
GOOD: Final = Release()
RELEASES: Final[dict[str, Release]] = {
    "good": GOOD,
    "errors": Release(error=1.5),
    "many-errors": Release(error=5.0),
    "crash": Release(crash=0.2),
    "silent-crash": Release(crash=0.2, silent=True),
    "slow": Release(latency=1.3),
    "accuracy": Release(wrong=0.02),
    "gradual": Release(error=3.0, over_s=4 * 3600.0),
    "some-devices": Release(error=5.0, share=0.2),
}


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What devices see changes, whatever they run."""

    size: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.0  # tilt of half of the inputs, in their standard deviations
    share: Share = 1.0  # of the devices
    over_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # until the whole change


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    release: Release | None = None  # None: no rollout
    drift: Drift | None = None


SCENARIOS: Final[dict[str, Scenario]] = {
    "calm": Scenario(),
    **{name: Scenario(release=release) for name, release in RELEASES.items()},
    "drift": Scenario(drift=Drift()),
    "drift-some": Scenario(drift=Drift(share=0.1)),
    "drift-gradual": Scenario(drift=Drift(over_s=12 * 3600.0)),
}
