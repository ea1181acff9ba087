"""Windows to InfluxDB: every one that was counted, in the order of arrival, as `points` says.

Guarantee: no point is lost while the server is away, slow or wrong, and none is there twice. The cursor moves only
after the server has said 204 to everything up to it (or a line was set aside for good, `delivery`); killed in between,
the hub writes the same points again, which changes nothing. Retention keeps what is not exported, up to 14 days.

Failures are tried again for ever, after 1 s, 2 s, 4 s … up to a minute, or when the server says (`Retry-After`, up to
an hour). A failure that lasts, or that only a person can end, opens an alert, which grows to a page when half of the 14
days have passed, and closes when the server takes points again.

The thread is its own: nobody waits for it, and no transaction is open while it waits for the server. It ends within its
current request. Order: a window is with the server about `EVERY_S` after it was counted. Cost: 60 µs a window.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from ..alerts.alerts import close_alert, open_alert
from ..fleet.selectors import Device
from ..storage import control, telemetry
from . import progress
from .delivery import Delivery, Refusal, Target
from .influx import Away, Failure, Misled
from .points import COLUMNS, Model, Place, lines

BATCH: Final = 1000  # windows
EVERY_S: Final = 5.0
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
LONGEST_ASKED_S: Final = 3600.0
KIND: Final = "export"
_LOG = logging.getLogger(__name__)


class Told(NamedTuple):
    """Since the hub started."""

    points: int = 0  # taken by the server
    failures: int = 0  # attempts
    refused: int = 0  # points that were set aside
    said: str = ""  # why it fails at present, or nothing

    @property
    def up(self) -> bool | None:
        """Whether it took the last points. None: it was given none yet, so nobody knows whether it is there."""
        return not self.said if self.points or self.failures or self.refused else None


class Sink(threading.Thread):
    """`fleet`: every device as selectors see it, asked once for each batch."""

    def __init__(
        self,
        control_engine: sa.Engine,
        telemetry_engine: sa.Engine,
        target: Target,
        aside: Path,
        fleet: Callable[[sa.Connection], Mapping[str, Device]],
        now_ms: Callable[[], int],
    ) -> None:
        super().__init__(name="influx", daemon=True)
        self._control, self._telemetry = control_engine, telemetry_engine
        self._delivery, self._aside = Delivery(target, aside), aside
        self._fleet, self._now_ms = fleet, now_ms
        self._end = threading.Event()
        self._pause_s = 0.0  # the last one between two attempts; 0: it does not fail
        self._since_ms = 0  # when it began to fail
        self._alerted = True  # there may be an alert, of an earlier run
        self.told = Told()

    def run(self) -> None:
        while not self._end.is_set():
            self._end.wait(self.attempt())

    def stop(self, seconds: float = 0.0) -> None:
        """Wait so long for its end at most; a request under way is left to itself, and is made again next time."""
        self._end.set()
        self.join(seconds)

    def attempt(self) -> float:
        """One batch; the seconds to wait before the next."""
        try:
            more = self._turn()
        except Failure as error:
            return 0.0 if self._end.is_set() else self._failed(error)
        except sa.exc.SQLAlchemyError as error:
            if not self._end.is_set():  # else the databases are being closed
                _LOG.error("exporting to InfluxDB: a database fails, trying again: %s", error)
            return EVERY_S
        except Exception as error:
            _LOG.exception("exporting to InfluxDB failed; it is tried again")
            return self._failed(Misled(f"the hub failed ({type(error).__name__}: {error}); its log says more"))
        return 0.0 if more else EVERY_S

    def _turn(self) -> bool:
        w = telemetry.windows.c
        with self._telemetry.connect() as connection:
            since = progress.position_of(connection) or 0
            some = sa.select(*(w[name] for name in COLUMNS)).where(w.id > since).order_by(w.id).limit(BATCH)
            rows = connection.execute(some).all()
        if not rows:
            return False
        text = self._lines(rows)
        refused = self._delivery.give(text)
        if self._end.is_set():
            return False  # another hub may have the databases by now
        if refused:
            self._tell_refused(refused)
        with self._telemetry.begin() as connection:
            progress.advance(connection, rows[-1].id)
        points, set_aside = self.told.points + len(text) - len(refused), self.told.refused + len(refused)
        self.told = self.told._replace(points=points, refused=set_aside, said="")
        self._pause_s = 0.0
        if self._alerted:
            with self._control.begin() as connection:
                close_alert(connection, progress.ALERT, now_ms=self._now_ms())
            self._alerted = False
        return len(rows) == BATCH

    def _lines(self, rows: Sequence[Any]) -> list[str]:
        p = control.packages.c
        with self._control.connect() as connection:
            packages = connection.execute(sa.select(p.digest, p.name, p.version))
            models = {row.digest[:16]: Model(row.name, row.version) for row in packages}
            fleet = self._fleet(connection)
        places = {name: Place(device.site, device.hardware) for name, device in fleet.items()}
        return lines(rows, models, places)

    def _failed(self, error: Failure) -> float:
        now_ms, said = self._now_ms(), str(error)
        if not self._pause_s:
            self._since_ms = now_ms
            _LOG.warning("InfluxDB does not take points, trying again: %s", said)
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s or FIRST_PAUSE_S)
        self.told = self.told._replace(failures=self.told.failures + 1, said=said)
        if isinstance(error, Misled) or now_ms - self._since_ms >= progress.LATE_MS:
            try:
                self._tell_failed(said, now_ms)
            except sa.exc.SQLAlchemyError as failed:
                _LOG.error("the alert about InfluxDB cannot be written: %s", failed)
        asked_s = min(LONGEST_ASKED_S, error.wait_s) if isinstance(error, Away) else 0.0
        return max(self._pause_s, asked_s)

    def _tell_failed(self, said: str, now_ms: int) -> None:
        with self._telemetry.connect() as connection:
            found = progress.progress(connection)
        waiting_ms = now_ms - found.since_ms if found and found.since_ms is not None else 0
        days = progress.KEPT_MS // 86_400_000
        text = f"InfluxDB takes no points: {said}. Nothing is lost yet: they are kept for {days} days"
        if found and found.lost:
            text = f"InfluxDB takes no points: {said}. {found.lost} windows were older than {days} days and are lost"
        with self._control.begin() as connection:
            open_alert(
                connection,
                progress.ALERT,
                severity="page" if waiting_ms > progress.KEPT_MS // 2 else "ticket",
                kind=KIND,
                subject=progress.SUBJECT,
                text=text,
                detail={"since_ms": self._since_ms},
                now_ms=now_ms,
            )
        self._alerted = True

    def _tell_refused(self, refused: Sequence[Refusal]) -> None:
        last = refused[-1]
        _LOG.error("InfluxDB refused %d points, now in %s: %s", len(refused), self._aside, last.said)
        with self._control.begin() as connection:
            open_alert(
                connection,
                progress.ALERT_REFUSED,
                severity="ticket",
                kind=KIND,
                subject=progress.SUBJECT,
                text=f"InfluxDB refused points for good: {last.said}. They are in {self._aside}: see what they say, "
                "give them again with `influx write --file`, remove the file and close this alert",
                detail={"points": self.told.refused + len(refused), "line": last.line[:500]},
                now_ms=self._now_ms(),
            )
