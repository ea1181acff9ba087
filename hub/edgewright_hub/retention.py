"""How long telemetry.db keeps what was reported, and the removal of what is older.

    windows   24 h, and since 24 h before the start of the oldest rollout under way, but never more than 14 days
    events    30 d
    rollups   60 s: 48 h; 300 s: 30 d; 3600 s: 1 y
    device_hours   48 h
    dead_letters   30 d (and not more than refusals.LETTERS_KEPT); how often each device was refused stays

Guarantee: a window or event that rollouts, drift or device-hours have not read yet stays, however old it is, so no
cursor ever misses a row; and since ids are never given twice, no cursor ever takes a new row for an old one. A window
that is still to be exported to InfluxDB stays too, for up to 14 days since it arrived (`exports.progress`). What a
device has reported in all is kept in its own row and does not shrink.

Order: one small transaction after another, oldest rows first, so ingest never waits long (about 25 ms for `BATCH`
windows). Age is that of the start for windows, of arrival for events. The file does not become smaller: SQLite fills
the room again. Cost of a turn that finds nothing: seven index look-ups.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from .exports import progress
from .ingest import device_hours
from .rollouts.state import ACTIVE
from .storage import control, telemetry

HOUR_MS: Final = 3600_000
DAY_MS: Final = 24 * HOUR_MS
EVERY_S: Final = 3600.0
WINDOWS_MS: Final = 24 * HOUR_MS  # the pre-period of a rollout: `conductor` looks back no further
WINDOWS_LONGEST_MS: Final = 14 * DAY_MS
EVENTS_MS: Final = 30 * DAY_MS
ROLLUPS_MS: Final = {60: 2 * DAY_MS, 300: 30 * DAY_MS, 3600: 365 * DAY_MS}
DEVICE_HOURS_MS: Final = 2 * DAY_MS
LETTERS_MS: Final = 30 * DAY_MS
BATCH: Final = 1_000  # rows of one transaction
READERS: Final = {"windows": ("rollout.windows", "drift.windows", "accuracy.windows"), "events": ("rollout.events",)}


def shorten(control_engine: sa.Engine, telemetry_engine: sa.Engine, now_ms: int) -> bool:
    """Remove at most `BATCH` rows of each kind that are too old. True while there may be more: call it again."""
    with control_engine.connect() as connection:
        cursors = {row.name: row.position for row in connection.execute(sa.select(control.cursors))}
        r = control.rollouts.c
        begun = connection.execute(sa.select(sa.func.min(r.created_ms)).where(r.state.in_(ACTIVE))).scalar()
    t = telemetry.cursors.c
    with telemetry_engine.connect() as connection:
        added = connection.execute(sa.select(t.position).where(t.name == device_hours.CURSOR)).scalar() or 0
        exported = progress.position_of(connection)
    read = {name: min(cursors.get(reader, 0) for reader in readers) for name, readers in READERS.items()}
    since = max(min(now_ms, now_ms if begun is None else begun) - WINDOWS_MS, now_ms - WINDOWS_LONGEST_MS)
    w, e, d = telemetry.windows.c, telemetry.events.c, telemetry.dead_letters.c
    last = min(read["windows"], added)
    out = last if exported is None else min(last, exported)
    more = _remove(telemetry_engine, telemetry.windows, sa.and_(w.start_ms < since, w.id <= out))
    more = progress.give_up(telemetry_engine, now_ms, last, BATCH) or more
    old = sa.and_(e.arrived_ms < now_ms - EVENTS_MS, e.id <= read["events"])
    more = _remove(telemetry_engine, telemetry.events, old) or more
    more = _remove(telemetry_engine, telemetry.dead_letters, d.arrived_ms < now_ms - LETTERS_MS) or more
    r, h = telemetry.rollups.c, telemetry.device_hours.c
    for tier_s, life_ms in ROLLUPS_MS.items():
        old = sa.and_(r.tier_s == tier_s, r.t0_ms < now_ms - life_ms)
        more = _remove_buckets(telemetry_engine, telemetry.rollups, old) or more
    return _remove_buckets(telemetry_engine, telemetry.device_hours, h.t0_ms < now_ms - DEVICE_HOURS_MS) or more


def _remove(engine: sa.Engine, table: sa.Table, old: sa.ColumnElement[bool]) -> bool:
    with engine.connect() as connection:  # looked for without holding up whoever writes
        some = connection.execute(sa.select(table.c.id).where(old).limit(BATCH)).scalars().all()
    if some:
        with engine.begin() as connection:
            connection.execute(table.delete().where(table.c.id.in_(some)))
    return len(some) == BATCH


def _remove_buckets(engine: sa.Engine, table: sa.Table, old: sa.ColumnElement[bool]) -> bool:
    """Whole buckets of time (one has a row for each cohort and variant, or device), so that no sum is left of a part of
    them."""
    t0_ms = table.c.t0_ms
    with engine.begin() as connection:
        last = connection.execute(sa.select(t0_ms).where(old).order_by(t0_ms).limit(1).offset(BATCH)).scalar()
        connection.execute(table.delete().where(old if last is None else sa.and_(old, t0_ms <= last)))
    return last is not None
