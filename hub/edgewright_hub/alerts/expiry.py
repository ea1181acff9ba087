"""Alerts of signatures and certificates that end: a ticket as long before as each wants (60 days for what a person
renews), a page from 7 days."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import sqlalchemy as sa

from .alerts import Severity, close_others, open_alert

KIND: Final = "expiry"
EVERY_S: Final = 3600.0
PAGE: Final = timedelta(days=7)


class Ending(NamedTuple):
    """`notice`: so long before it somebody should know; `way`: how to make it last again."""

    what: str
    at: datetime
    notice: timedelta
    way: str


def tick(engine: sa.Engine, endings: Iterable[Ending], now: datetime) -> None:
    """Open the alerts of what ends soon, and close those of what was renewed."""
    now_ms = int(now.timestamp() * 1000)
    keys = set()
    with engine.begin() as connection:
        for one in endings:
            left = one.at - now
            if left > one.notice:
                continue
            keys.add(f"{KIND}:{one.what}")
            severity: Severity = "page" if left <= PAGE else "ticket"
            when = f"ends in {left.days} days" if left > timedelta() else f"ended {(-left).days} days ago"
            detail = {"at_ms": int(one.at.timestamp() * 1000), "way": one.way}
            open_alert(
                connection,
                f"{KIND}:{one.what}",
                severity=severity,
                kind=KIND,
                subject=one.what,
                text=f"{one.what} {when}: {one.way}",
                detail=detail,
                now_ms=now_ms,
            )
        close_others(connection, KIND, frozenset(keys), now_ms=now_ms)
