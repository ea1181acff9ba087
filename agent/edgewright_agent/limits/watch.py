"""The watch: reads what the device has left, lets the governor decide, and makes the meter and the windows obey.

Order: every `LOOK_S` on the telemetry thread: read → add to the day → decide → obey → say. What is held back is said in
an event (`notices`), and counted in `shed` by whoever does without.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from edgewright_contracts.desired import Config
from edgewright_contracts.report import Usage

from ..clock import Clock
from ..disk import Disk
from ..telemetry.meter import Meter
from ..telemetry.notices import Notice, Notices
from . import cgroup, governor
from .consumption import Consumption
from .day import Diary
from .device import Device
from .governor import Held, Readings, Step
from .share import Share

LOOK_S: Final = 10.0
NEVER_S: Final = 3650 * 86_400.0

log = logging.getLogger(__name__)


class Watch:
    """`may` and `readings` may be used from any thread, all else from the telemetry's only."""

    def __init__(
        self, path: Path, *, disk: Disk, clock: Clock, meter: Meter, consumption: Consumption, device: Device,
        notices: Notices,
    ) -> None:  # fmt: skip
        """`path` is the file that the day's counts are kept in."""
        self._clock, self._meter, self._consumption = clock, meter, consumption
        self._device, self._notices = device, notices
        self._diary = Diary(path, disk)
        self._share = Share()
        self._held = Held()
        self._steps: frozenset[Step] = frozenset()
        self._looked_s = -LOOK_S
        self._before = consumption.totals()
        self._budget: int | None = None  # of the day's bytes
        self._limit_mb: float | None = None  # that the kernel was told of
        self._bound_mb: float | None = None  # what the kernel is to hold
        self._bound = True  # it was told
        self.readings = Readings()

    def may(self, step: Step) -> bool:
        """Whether this may be done now; it can change every `LOOK_S`."""
        return step not in self._steps

    def config(self, asked: Config) -> Config:
        """What is done of what the hub asks for."""
        return governor.relieved(governor.profiled(asked), self._steps)

    def obey(self, asked: Config) -> None:
        """Let the meter count what `config` says."""
        now = self.config(asked)
        self._meter.asked_every, self._meter.monitor_every = asked.monitor_every, now.monitor_every
        self._meter.scene_ns = int(asked.scene_s * 1e9)

    def turn(self, asked: Config) -> None:
        """One round; it looks at the device when it is time. A disk that takes nothing delays only the diary."""
        now_s = self._clock.monotonic_ns() / 1e9
        if now_s - self._looked_s >= LOOK_S:
            self._look(asked, now_s)
        self._notices.spool()

    @property
    def quiet_s(self) -> float:
        """How long reports wait from now on, because the day's bytes are used up; 0: they do not. Where a day has none,
        tomorrow brings none either."""
        if self.may(Step.REPORTS):
            return 0.0
        return self._diary.day.left_s(self._clock.wall_ms()) if self._budget else NEVER_S

    def since_last(self, asked: Config, *, hurried: bool, lasted_s: float) -> tuple[Usage, float]:
        """(usage, RSS in MB) of the window that ends after `lasted_s`; one that took the place of several, for want of
        something, says of how many more."""
        wished, done = governor.profiled(asked), self.config(asked)
        wish_s = wished.rollout_window_s if hurried else wished.window_s
        stretched = (done.rollout_window_s if hurried else done.window_s) / wish_s
        if stretched > 1 and (more := round(min(stretched, lasted_s / wish_s)) - 1) > 0:
            self._meter.shed("windows", more)
        return self._consumption.since_last()

    def close(self, asked: Config) -> None:
        """The process ends."""
        self._look(asked, self._clock.monotonic_ns() / 1e9, last=True)
        self._notices.spool()

    def _look(self, asked: Config, now_s: float, *, last: bool = False) -> None:
        elapsed_s = max(0.0, now_s - self._looked_s) if self._looked_s >= 0 else 0.0
        self._looked_s = now_s
        rss_mb = self._consumption.sample()
        totals, before = self._consumption.totals(), self._before
        self._before = totals
        day = self._diary.add(
            run_s=elapsed_s,
            wall_ms=self._clock.wall_ms(),
            link=totals.sent + totals.received - before.sent - before.received,
            written=totals.written - before.written,
        )
        self.readings = Readings(
            rss_mb,
            self._share.permille(now_s, self._device.background_ns()),
            self._device.temperature_c(),
            day.link,
            day.written,
            self._device.threads(),
        )
        held = governor.advance(self._held, self.readings, asked, now_s)
        self._say(held, asked)
        self._held, self._steps, self._budget = held, held.steps, asked.bytes_per_day
        self.obey(asked)
        self._bind(asked.limits.rss_mb, rss_mb)
        try:
            self._diary.keep(link_budget=asked.bytes_per_day, disk_budget=asked.limits.written_per_day, last=last)
        except OSError as error:
            log.warning("what was used today is not written down: %s", error)

    def _bind(self, limit_mb: float | None, rss_mb: float) -> None:
        """The kernel's bound: for a limit below what is used, nothing is left to give up, and it follows."""
        if limit_mb != self._limit_mb or (self._bound_mb is not None and rss_mb > self._bound_mb):
            self._limit_mb, self._bound_mb = limit_mb, None if limit_mb is None else max(limit_mb, rss_mb)
            self._bound = False
        if not self._bound:  # a self-test that runs beside us just now is gone at another look
            self._bound = cgroup.bound(self._bound_mb)

    def _say(self, held: Held, asked: Config) -> None:
        said = governor.told(held, self.readings, asked)
        for need, depth in held.depth.items():
            before = self._held.depth.get(need, 0)
            if depth != before:
                reason = said.get(need, f"{need}: within its limit again; nothing is held back for it")
                self._notices.note(Notice(f"{need} {before}", f"{need} {depth}", reason))
