"""What operators decided about drift, in hub.db: the budget, what is the new normal, and what they took back.

Rows are only added, and each is in the audit log too. The newest budget is in force. An acceptance keeps the baselines
that it replaced, so that it can be undone; of those that share a stream the newest first, whosever name they were in:
an older one has kept what was before both.
"""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa

from edgewright_contracts.errors import Refused, RequestError

from ..storage import control
from .budget import Budget

What = Literal["budget", "accept", "undo"]


def record(
    connection: sa.Connection,
    what: What,
    subject: str,
    *,
    who: str,
    reason: str,
    now_ms: int,
    detail: dict[str, Any],
    kept: bytes | None = None,
) -> int:
    """Its number."""
    values = {
        "at_ms": now_ms, "who": who, "what": what, "subject": subject, "reason": reason, "detail": detail, "kept": kept,
    }  # fmt: skip
    number = connection.execute(control.drift_decisions.insert().values(**values)).inserted_primary_key
    said = f"{subject or detail}: {reason}"
    connection.execute(
        control.audit.insert().values(at_ms=now_ms, who=who, what=f"drift {what}", detail=said, subject=subject)
    )
    assert number is not None
    return int(number[0])


def check(what: What, reason: str) -> None:
    """Raises RequestError without a reason."""
    if not reason.strip():
        raise RequestError(f"drift {what}: expected a reason; say why with --reason")


def budget(connection: sa.Connection) -> Budget:
    """The one in force."""
    d = control.drift_decisions.c
    newest = sa.select(d.detail).where(d.what == "budget").order_by(d.id.desc()).limit(1)
    detail = connection.execute(newest).scalar()
    return Budget(detail["false_pages_a_month"]) if detail else Budget()


def last_acceptance(connection: sa.Connection, subject: str) -> tuple[int, bytes]:
    """(number, what it replaced) of the newest acceptance that was not undone. Raises RequestError without one, and
    Refused when a later one that was not undone has streams in common with it."""
    d = control.drift_decisions.c
    columns = (d.id, d.what, d.subject, d.detail)
    rows = connection.execute(sa.select(*columns).where(d.what.in_(("accept", "undo"))).order_by(d.id.desc())).all()
    undone = {row.detail["decision"] for row in rows if row.what == "undo"}
    standing = [row for row in rows if row.what == "accept" and row.id not in undone]
    mine = next((row for row in standing if row.subject == subject), None)
    if mine is None:
        raise RequestError(
            f"nothing was accepted for {subject!r} that could be undone; the audit log says what was decided"
        )
    streams = {tuple(one) for one in mine.detail["streams"]}
    for later in standing:
        if later.id > mine.id and streams & {tuple(one) for one in later.detail["streams"]}:
            raise Refused(
                f"what was accepted for {later.subject!r} came later and is of the same streams: undo it first"
            )
    return mine.id, connection.execute(sa.select(d.kept).where(d.id == mine.id)).scalar_one()
