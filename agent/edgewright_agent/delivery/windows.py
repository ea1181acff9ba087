"""The open window: when it ends, and how what was counted in it gets into the spool.

Order: drain → take → seal (durable; with its number while the hub is there). A window ends on a multiple of its length
by the wall clock while that is synced, else a length after it began (`span`). An inference is counted in the window
that it ended in.

Guarantee: what the disk does not take stays here, merged by key, and goes with the next window. Of the telemetry
thread, but for `window_s` and `promise_s`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import ceil

from edgewright_contracts import report
from edgewright_contracts.birth import Unclean
from edgewright_contracts.desired import Config
from edgewright_contracts.errors import ContractError
from edgewright_contracts.report import Usage, Window

from .. import clock as clocks
from ..clock import Clock
from ..limits.watch import Watch
from ..telemetry.counts import Clocks
from ..telemetry.meter import Meter
from ..telemetry.rows import Subject
from . import coarsening
from .span import full, length_s, longest_s
from .spool import Spool, Terms

log = logging.getLogger(__name__)


class Windows:
    """`subjects` are the packages that answer now; `hurried`: an update waits for windows; `observe` hears what was
    sealed; `asked` is what the hub wants, `terms` those of a number that may be given now."""

    def __init__(
        self,
        *,
        clock: Clock,
        meter: Meter,
        spool: Spool,
        watch: Watch,
        boot_id: str,
        subjects: Callable[[], list[Subject]],
        hurried: Callable[[], bool],
        observe: Callable[[list[tuple[Subject, Window]], float], None],
        asked: Callable[[], Config],
        terms: Callable[[], Terms | None],
    ) -> None:
        self._clock, self._meter, self._spool, self._watch = clock, meter, spool, watch
        self._boot_id, self._subjects, self._hurried = boot_id, subjects, hurried
        self._observe, self._asked, self._terms = observe, asked, terms
        self._pending: list[Window] = []  # sealed, but the disk did not take them yet
        self._unfit = 0  # windows dropped, which the spool has not counted yet
        self._promised_s = 0.0  # when the open window began; 0: nothing yet
        self._looked_s: float | None = None  # when the open window was due last, and not full
        self._quiet = False  # the day's bytes are used up: reports wait
        self.parting = False  # but for those of this round
        self._since_ms, self._since_wall = clock.monotonic_ns() // 1_000_000, clock.wall_ms()

    @property
    def window_s(self) -> float:
        config = self._watch.config(self._asked())
        return min(config.window_s, config.rollout_window_s) if self._hurried() else config.window_s

    @property
    def due_s(self) -> float:
        """When the open window is to be looked at again, by the monotonic clock."""
        since_s = self._since_ms / 1000
        if self._looked_s is not None and self._adaptive:
            due_s = self._looked_s + self.window_s
        else:
            synced = self._clock.synced() if self._since_wall is not None else False
            due_s = since_s + length_s(self._since_wall if synced else None, self.window_s)
        return min(due_s, since_s + self._promised_s / 2)

    @property
    def promise_s(self) -> float:
        """Silence that is longer than this from now on is silence. A window that becomes longer than was promised when
        it began, because of the hub's wish, the governor or the end of an update, does so only with the next."""
        return self._watch.quiet_s + 2 * (
            longest_s(self._watch.config(self._asked())) if self._adaptive else self.window_s
        )

    def turn(self) -> None:
        """Seal the window if it is due, or the last that the hub gets for today: it says until when none comes."""
        quiet_before, self._quiet = self._quiet, self._watch.quiet_s > 0
        if self._promised_s == 0:
            self._promised_s = self.promise_s  # by the birth
        due_s = self.due_s
        self.parting = self._quiet and not quiet_before
        if self.parting:
            self.seal()
        elif self._now_s() >= due_s:
            if self._full():
                self.seal()
            else:
                self._looked_s = due_s

    def seal(self) -> None:
        """End the open window now and begin the next."""
        now_ms, wall = self._clock.monotonic_ns() // 1_000_000, self._clock.wall_ms()
        self._meter.drain(until_ns=now_ms * 1_000_000)
        span_ms = now_ms - self._since_ms
        subjects, usage, rss_mb = self._subjects(), Usage(), 0.0
        if subjects or not self._meter.empty:  # else there is no window to carry it: it waits for the first
            usage, rss_mb = self._watch.since_last(self._asked(), hurried=self._hurried(), lasted_s=span_ms / 1000)
        self._promised_s = self.promise_s
        sealed = self._meter.take(
            subjects,
            Clocks(
                boot_id=self._boot_id,
                start_ms=self._since_ms,
                end_ms=now_ms,
                wall_start_ms=None if wall is None else max(0, wall - span_ms),
                clock=clocks.state(self._clock),
                next_due_s=ceil(self._promised_s),
            ),
            usage,
        )
        self._since_ms, self._since_wall, self._looked_s = now_ms, wall, None
        told = [coarsening.told(w) for _, w in sealed]
        self._pending = _fewer([*self._pending, *told]) if self._pending else told
        try:
            self._keep(self._terms())
        except OSError as error:
            log.error("the disk does not take the window; it stays in memory: %s", error)  # noqa: TRY400
        self._observe(sealed, rss_mb)

    def opened(self) -> Unclean:
        return Unclean(boot_id=self._boot_id, open_since_mono_ms=self._since_ms)

    def close(self) -> None:
        """The last window: nothing more is counted by this boot."""
        self._meter.drain()
        self._watch.close(self._asked())
        self.seal()
        if not self._pending:
            self._spool.close()

    def _keep(self, terms: Terms | None) -> None:
        try:
            self._spool.seal(self._pending, self.opened(), terms)
        except ContractError:
            self._drop_unfit()
            self._spool.seal(self._pending, self.opened(), terms)
        self._pending = []
        if self._unfit:
            self._spool.lost(self._unfit)
            self._unfit = 0

    def _drop_unfit(self) -> None:
        """A window that no contract allows would stop all that come after it."""
        fit = []
        for window in self._pending:
            try:
                report.encode_window(window)
                fit.append(window)
            except ContractError as error:
                log.error("a window of %d inferences cannot be reported and is dropped: %s", window.n, error)  # noqa: TRY400
                self._unfit += window.span
        self._pending = fit

    def _full(self) -> bool:
        if not self._adaptive:
            return True
        lasted_s = self._now_s() - self._since_ms / 1000
        self._meter.drain()
        return lasted_s >= self._promised_s / 2 or full(self._watch.config(self._asked()), self._meter.most(), lasted_s)

    @property
    def _adaptive(self) -> bool:
        return bool(self._watch.config(self._asked()).window_rows) and not self._hurried()

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


def _fewer(windows: list[Window]) -> list[Window]:
    """Windows of equal keys merged: what waits for a disk stays bounded."""
    merged: dict[tuple[str, ...], Window] = {}
    apart = []
    for w in windows:
        try:
            merged[w.key] = report.merge(merged[w.key], w) if w.key in merged else w
        except ContractError as error:  # such as a sum beyond its bound
            log.warning("windows that cannot be merged: %s", error)
            apart.append(w)
    return [*merged.values(), *apart]
