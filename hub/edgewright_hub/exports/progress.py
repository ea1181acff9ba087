"""How far the export has come: a cursor over `windows.id`, in telemetry.db itself.

There, so that windows and cursor are restored together, and no id that is given again is taken for one that was
exported. There is a cursor only while windows are exported; retention
keeps what it has not reached.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import sqlalchemy as sa

from ..storage import telemetry
from ..storage.store import insert, upsert

CURSOR: Final = "influx"
LOST: Final = "influx.lost"  # windows that retention removed before they were exported, since the hub first ran
SUBJECT: Final = "influx"  # of alerts
ALERT: Final = "export:influx"
ALERT_REFUSED: Final = "export:influx:refused"
LATE_MS: Final = 10 * 60_000  # an outage that lasts so long is told to people
KEPT_MS: Final = 14 * 86_400_000  # since arrival, of windows that are not exported: about 10 GB for 1,000 devices


class Progress(NamedTuple):
    position: int
    pending: int  # windows that are not exported yet, at most
    since_ms: int | None  # when the oldest of them arrived
    lost: int


def begin(engine: sa.Engine) -> None:
    """Export from the oldest window that is kept, or from where it was left."""
    with engine.begin() as connection:
        first = insert(connection, telemetry.cursors).values(name=CURSOR, position=0)
        connection.execute(first.on_conflict_do_nothing())


def end(engine: sa.Engine) -> None:
    """Nothing is exported: nothing waits for it."""
    with engine.begin() as connection:
        connection.execute(telemetry.cursors.delete().where(telemetry.cursors.c.name == CURSOR))


def advance(connection: sa.Connection, position: int) -> None:
    upsert(connection, telemetry.cursors, [{"name": CURSOR, "position": position}], keys=["name"])


def position_of(connection: sa.Connection) -> int | None:
    """None: nothing is exported."""
    return _position(connection, CURSOR)


def progress(connection: sa.Connection) -> Progress | None:
    """None: nothing is exported. Cost: four look-ups, however much is pending."""
    position = position_of(connection)
    if position is None:
        return None
    w = telemetry.windows.c
    newest = connection.execute(sa.select(sa.func.max(w.id))).scalar() or 0
    oldest = sa.select(w.id, w.arrived_ms).where(w.id > position).order_by(w.id).limit(1)
    first = connection.execute(oldest).first()
    pending = newest - first.id + 1 if first else 0
    return Progress(position, pending, first.arrived_ms if first else None, _position(connection, LOST) or 0)


def give_up(engine: sa.Engine, now_ms: int, last: int, number: int) -> bool:
    """Remove at most `number` windows, up to the id `last`, that have waited for too long to be exported, and count
    them as lost. True while there may be more."""
    w = telemetry.windows.c
    with engine.connect() as connection:
        position = position_of(connection)
        if position is None:
            return False
        some = sa.select(w.id, w.arrived_ms).where(w.id > position, w.id <= last).order_by(w.id).limit(number)
        ids = [row.id for row in connection.execute(some) if row.arrived_ms < now_ms - KEPT_MS]
    if ids:
        with engine.begin() as connection:
            gone = connection.execute(telemetry.windows.delete().where(w.id.in_(ids))).rowcount
            lost = (_position(connection, LOST) or 0) + gone
            upsert(connection, telemetry.cursors, [{"name": LOST, "position": lost}], keys=["name"])
    return len(ids) == number


def _position(connection: sa.Connection, name: str) -> int | None:
    c = telemetry.cursors.c
    return connection.execute(sa.select(c.position).where(c.name == name)).scalar()
