"""How long telemetry.db keeps what was reported, and the removal of what is older.

    windows   24 h, and since 24 h before the start of the oldest rollout under way, but never more than 14 days
    events    30 d
    rollups   60 s: 48 h; 300 s: 30 d; 3600 s: 1 y

Guarantee: a window or event that the rollouts or drift have not read yet stays, however old it is, so no cursor ever
misses a row; and since ids are never given twice, no cursor ever takes a new row for an old one. What a device has
reported in all is kept in its own row and does not shrink.

Order: one small transaction after another, oldest rows first, so ingest never waits long (about 25 ms for `BATCH`
windows). Age is that of the start for windows, of arrival for events. The file does not become smaller: SQLite fills
the room again. Cost of a turn that finds nothing: five index look-ups.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from .rollouts.rollout import ACTIVE
from .storage import control, telemetry

HOUR_MS: Final = 3600_000
DAY_MS: Final = 24 * HOUR_MS
EVERY_S: Final = 3600.0
WINDOWS_MS: Final = 24 * HOUR_MS  # the pre-period of a rollout: `conductor` looks back no further
WINDOWS_LONGEST_MS: Final = 14 * DAY_MS
EVENTS_MS: Final = 30 * DAY_MS
ROLLUPS_MS: Final = {60: 2 * DAY_MS, 300: 30 * DAY_MS, 3600: 365 * DAY_MS}
BATCH: Final = 1_000  # rows of one transaction
READERS: Final = {"windows": ("rollout.windows", "drift.windows"), "events": ("rollout.events",)}


def shorten(control_engine: sa.Engine, telemetry_engine: sa.Engine, now_ms: int) -> bool:
    """Remove at most `BATCH` rows of each kind that are too old. True while there may be more: call it again."""
    with control_engine.connect() as connection:
        cursors = {row.name: row.position for row in connection.execute(sa.select(control.cursors))}
        r = control.rollouts.c
        begun = connection.execute(sa.select(sa.func.min(r.created_ms)).where(r.state.in_(ACTIVE))).scalar()
    read = {name: min(cursors.get(reader, 0) for reader in readers) for name, readers in READERS.items()}
    since = max(min(now_ms, now_ms if begun is None else begun) - WINDOWS_MS, now_ms - WINDOWS_LONGEST_MS)
    w, e = telemetry.windows.c, telemetry.events.c
    more = _remove(telemetry_engine, telemetry.windows, sa.and_(w.start_ms < since, w.id <= read["windows"]))
    old = sa.and_(e.arrived_ms < now_ms - EVENTS_MS, e.id <= read["events"])
    more = _remove(telemetry_engine, telemetry.events, old) or more
    for tier_s, life_ms in ROLLUPS_MS.items():
        more = _remove_rollups(telemetry_engine, tier_s, now_ms - life_ms) or more
    return more


def _remove(engine: sa.Engine, table: sa.Table, old: sa.ColumnElement[bool]) -> bool:
    some = sa.select(table.c.id).where(old).limit(BATCH)
    with engine.begin() as connection:
        return connection.execute(table.delete().where(table.c.id.in_(some))).rowcount == BATCH


def _remove_rollups(engine: sa.Engine, tier_s: int, before_ms: int) -> bool:
    """Whole buckets (one has a row for each cohort and variant), so that no sum is left of a part of them."""
    r = telemetry.rollups.c
    old = sa.and_(r.tier_s == tier_s, r.t0_ms < before_ms)
    with engine.begin() as connection:
        last = connection.execute(sa.select(r.t0_ms).where(old).order_by(r.t0_ms).limit(1).offset(BATCH)).scalar()
        if last is not None:
            old = sa.and_(old, r.t0_ms <= last)
        connection.execute(telemetry.rollups.delete().where(old))
    return last is not None
