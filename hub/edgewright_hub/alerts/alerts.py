"""Alerts: what a person is to look at. One is open for each key at most, and is told to webhooks when it opens, grows
to a page, or closes.

`open_alert` and `close_alert` take the connection of a transaction of hub.db, so that an alert and what it is about are
written together or not at all. A *page* is worth waking somebody; a *ticket* can wait for the morning. An alert is
*acknowledged* when somebody looks at it, and *closed* by whoever opened it, when its reason is gone, or by a person;
what is opened again after that is a new one. Cost: two statements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import sqlalchemy as sa

from edgewright_contracts.errors import RequestError

from ..storage import control
from . import webhooks

Severity = Literal["page", "ticket"]
Kind = Literal["accuracy", "drift", "expiry", "export", "hub", "retrain", "rollout"]
SHOWN: Final = 200  # closed ones in one answer
KEY_CHARS: Final = 200
TEXT_CHARS: Final = 2000


def open_alert(
    connection: sa.Connection,
    key: str,
    *,
    severity: Severity,
    kind: Kind,
    subject: str,
    text: str,
    now_ms: int,
    detail: Mapping[str, Any] | None = None,
) -> bool:
    """True when there was none open with this key; else text, detail and severity of that one become these."""
    a = control.alerts.c
    key = key[:KEY_CHARS]
    said = {"severity": severity, "text": text[:TEXT_CHARS], "detail": dict(detail or {})}
    found = connection.execute(sa.select(control.alerts).where(a.open_key == key)).first()
    if found is None:
        who = {"key": key, "open_key": key, "kind": kind, "subject": subject[:128]}
        made = control.alerts.insert().values(**who, **said, opened_ms=now_ms).returning(a.id)
        webhooks.announce(connection, "opened", _row(connection, connection.execute(made).scalar_one()), now_ms)
        return True
    if any(getattr(found, name) != value for name, value in said.items()):
        worse = found.severity == "ticket" and severity == "page"
        again = {"acknowledged_ms": None, "acknowledged_by": ""} if worse else {}
        connection.execute(control.alerts.update().where(a.id == found.id).values(**said, **again))
        if worse:
            webhooks.announce(connection, "raised", _row(connection, found.id), now_ms)
    return False


def close_alert(connection: sa.Connection, key: str, *, now_ms: int, who: str = "") -> bool:
    """False when none is open with this key. `who`: the person, or "" when its reason is gone."""
    a = control.alerts.c
    found = connection.execute(sa.select(a.id).where(a.open_key == key[:KEY_CHARS])).scalar()
    if found is None:
        return False
    ended = {"open_key": None, "closed_ms": now_ms, "closed_by": who}
    connection.execute(control.alerts.update().where(a.id == found).values(**ended))
    webhooks.announce(connection, "closed", _row(connection, found), now_ms)
    return True


def close_others(connection: sa.Connection, kind: str, keys: frozenset[str], *, now_ms: int) -> int:
    """Close the open alerts of a kind whose key is not among these: their reason is gone. How many."""
    a = control.alerts.c
    rows = connection.execute(sa.select(a.open_key).where(a.kind == kind, a.open_key.is_not(None)))
    gone = [key for key in rows.scalars() if key not in keys]
    return sum(close_alert(connection, key, now_ms=now_ms) for key in gone)


def acknowledge(engine: sa.Engine, identifier: int, *, who: str, now_ms: int) -> dict[str, Any]:
    """Somebody looks at it. Raises RequestError when it is not open."""
    with engine.begin() as connection:
        _still_open(connection, identifier)
        seen = {"acknowledged_ms": now_ms, "acknowledged_by": who}
        connection.execute(control.alerts.update().where(control.alerts.c.id == identifier).values(**seen))
        return _noted(connection, "alert acknowledge", identifier, who, now_ms)


def dismiss(engine: sa.Engine, identifier: int, *, who: str, now_ms: int) -> dict[str, Any]:
    """A person closes it. Raises RequestError when it is not open."""
    with engine.begin() as connection:
        close_alert(connection, _still_open(connection, identifier), who=who, now_ms=now_ms)
        return _noted(connection, "alert close", identifier, who, now_ms)


def listed(engine: sa.Engine, *, closed: bool = False) -> list[dict[str, Any]]:
    """Open ones, pages first; with `closed` also the newest that are over. JSON values only."""
    a = control.alerts.c
    pages_first = sa.case((a.severity == "page", 0), else_=1)
    with engine.connect() as connection:
        now = connection.execute(
            sa.select(control.alerts).where(a.open_key.is_not(None)).order_by(pages_first, a.id.desc())
        ).all()
        over = sa.select(control.alerts).where(a.open_key.is_(None)).order_by(a.id.desc()).limit(SHOWN)
        rows = [*now, *(connection.execute(over).all() if closed else ())]
    return [described(row) for row in rows]


def described(row: sa.Row[Any]) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name != "open_key"}


def _row(connection: sa.Connection, identifier: int) -> dict[str, Any]:
    return described(connection.execute(sa.select(control.alerts).where(control.alerts.c.id == identifier)).one())


def _still_open(connection: sa.Connection, identifier: int) -> str:
    a = control.alerts.c
    key = connection.execute(sa.select(a.open_key).where(a.id == identifier)).scalar()
    if key is None:
        raise RequestError(f"no open alert has the number {identifier}; `edgewright fleet alerts` lists them")
    return str(key)


def _noted(connection: sa.Connection, what: str, identifier: int, who: str, now_ms: int) -> dict[str, Any]:
    found = _row(connection, identifier)
    values = {"at_ms": now_ms, "who": who, "what": what, "detail": f"{identifier}: {found['text']}"[:TEXT_CHARS]}
    connection.execute(control.audit.insert().values(**values, subject=found["subject"]))
    return found
