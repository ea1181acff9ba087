"""From verdicts to alerts: one for each device or cohort of a digest, variant and context, whatever number of its parts
moved.

What drifted is a page; what always differed (skew) is a ticket, since it can wait for the morning; and so is a device
whose cohort pages for the same, since that page lists it, and what moved before a whole day was known (`watch.pages`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from ..alerts import alerts
from ..storage import control

KIND: Final = "drift"


def opened(connection: sa.Connection) -> set[str]:
    """Keys of the alerts of drift that are open."""
    a = control.alerts.c
    return {str(key) for key in connection.execute(sa.select(a.open_key).where(a.kind == KIND)).scalars() if key}


def name(scope: str, subject: str, digest: str, variant: str, context: str) -> str:
    return f"drift {scope} {subject} {digest} {variant} {context}".rstrip()


def page(
    connection: sa.Connection,
    key: str,
    alarms: Sequence[Mapping[str, Any]],
    *,
    wakes: bool,
    now_ms: int,
) -> None:
    """`alarms`: verdicts in alarm of the parts of one device or cohort, as people read them; none closes its alert.
    `wakes`: it is a page."""
    if not alarms:
        alerts.close_alert(connection, key, now_ms=now_ms)
        return
    first = alarms[0]
    kinds = list(dict.fromkeys(kind for one in alarms for kind in one["kinds"]))
    parts = [
        f"{one['part']} ({', '.join(c['name'] for c in one['channels'][:4]) or 'no single channel'})" for one in alarms
    ]
    devices = sorted({device for one in alarms for device in one["devices"]})
    whom = f"{len(devices)} devices of {first['subject']}" if first["scope"] == "cohort" else first["subject"]
    alerts.open_alert(
        connection,
        key,
        severity="page" if wakes else "ticket",
        kind=KIND,
        subject=first["subject"],
        text=f"{whom}, {first['model']}: {', '.join(kinds) or 'drift'}; moved: {'; '.join(parts)}",
        now_ms=now_ms,
        detail={
            "scope": first["scope"], "digest": first["digest"], "variant": first["variant"],
            "context": first["context"], "since_ms": min(one["since_ms"] or now_ms for one in alarms),
            "kinds": kinds, "severity": max(one["severity"] for one in alarms), "devices": devices,
            "parts": {one["part"]: [c["name"] for c in one["channels"]] for one in alarms},
        },
    )  # fmt: skip
