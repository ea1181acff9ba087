"""Devices: a line of each for the overview, and all that is known of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa

from ...fleet import inventory
from ...storage import control
from ..api import Hub
from ..devices import overdue

VERDICTS: Final = ("learning", "ok", "skewed", "alarm")  # of several contexts the last of these is shown


def one(hub: Hub, device: str, now_ms: int) -> dict[str, Any]:
    """Raises RequestError for an unknown one."""
    with hub.control.connect() as ours, hub.telemetry.connect() as theirs:
        known = inventory.show(ours, theirs, device, hub.conductor.roster.read(ours).get(device))
        held = last(ours, "hold", [device]).get(device)
    late = overdue(known["online"], known["next_due_ms"], now_ms)
    return {"device": known, "overdue": late, "held": held, "orders": hub.conductor.orders.listed(device)[:10]}


def last(connection: sa.Connection, what: str, subjects: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The newest note of this kind in the audit, by subject: {who, at_ms, detail}."""
    a = control.audit.c
    rows = connection.execute(
        sa.select(a.subject, a.who, a.at_ms, a.detail)
        .where(a.what == what, a.subject.in_(list(subjects)))
        .order_by(a.id)
    )
    return {row.subject: {"who": row.who, "at_ms": row.at_ms, "detail": row.detail} for row in rows}


def lines(
    enrolled: Iterable[Any],
    said: Mapping[str, Any],
    hour: Mapping[str, tuple[int, int]],
    wanted: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    drift: Iterable[Mapping[str, Any]],
    now_ms: int,
) -> list[dict[str, Any]]:
    """Of every enrolled device, those that need a person first. `hour`: inferences and errors of each in it."""
    streams: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for verdict in drift:
        if verdict["scope"] == "device" and verdict["verdict"] != "ended":
            streams[verdict["subject"]].append(verdict)
    found = [
        _line(row, said.get(row.id), hour.get(row.id, (0, 0)), wanted.get(row.id), versions, streams[row.id], now_ms)
        for row in enrolled
        if row.state == "enrolled"
    ]
    return sorted(found, key=lambda d: (not d["alarm"], d["online"] and not d["overdue"], d["id"]))


def _line(
    row: Any,
    said: Any,
    hour: tuple[int, int],
    wanted: Mapping[str, Any] | None,
    versions: Mapping[str, str],
    mine: list[Mapping[str, Any]],  # verdicts on its streams
    now_ms: int,
) -> dict[str, Any]:
    digests = [m["digest"] for m in (wanted or {}).get("models", ()) if m.get("digest")]
    running = said.digest if said else None
    return {
        "id": row.id,
        "fleet": row.fleet,
        "held": bool(row.held),
        "online": bool(said and said.online),
        "overdue": bool(said) and overdue(bool(said.online), said.next_due_ms, now_ms),
        "last_seen_ms": said.last_seen_ms if said else None,
        "running": versions.get(running, running) if running else "",
        "variant": said.variant if running else "",
        "wanted": [versions.get(d[:16], d[:16]) for d in digests if d[:16] != running],
        "inferences": hour[0],
        "errors": hour[1],
        "alarm": any(v["verdict"] == "alarm" for v in mine),
        "parts": {v["part"]: v["verdict"] for v in sorted(mine, key=lambda v: VERDICTS.index(v["verdict"]))},
    }
