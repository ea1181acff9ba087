"""From verdicts to alerts: one for each device or cohort of a digest, variant and context, whatever number of its parts
moved.

What drifted is a page; what always differed (skew) is a ticket, since it can wait for the morning; and so is a device
whose cohort pages for the same, since that page lists it, and what moved before a whole day was known
(`verdicts.pages`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from ..alerts import alerts
from ..storage import control
from .kinds import FEED, PARTS
from .verdicts import TOLD, describe, pages, row, verdict
from .watch import Key, Watch

KIND: Final = "drift"


def tell(connection: sa.Connection, watch: Watch, keys: Iterable[Key], now_ms: int) -> None:
    """Open, change and close the alerts of these streams."""
    open_now = _opened(connection)
    for subject in sorted({key._replace(part="") for key in keys}):
        parts = [k for k in (subject._replace(part=part) for part in (*PARTS, FEED)) if watch.known(k)]
        alarms = [k for k in parts if verdict(watch, k) in TOLD]
        name = _name(*subject[:5])
        if alarms or name in open_now:
            told = [describe(row(watch, k, now_ms)) for k in alarms]
            _page(connection, name, told, wakes=any(pages(watch, k) for k in alarms), now_ms=now_ms)


def _opened(connection: sa.Connection) -> set[str]:
    """Keys of the alerts of drift that are open."""
    a = control.alerts.c
    return {str(key) for key in connection.execute(sa.select(a.open_key).where(a.kind == KIND)).scalars() if key}


def _name(scope: str, subject: str, digest: str, variant: str, context: str) -> str:
    return f"drift {scope} {subject} {digest} {variant} {context}".rstrip()


def _page(
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
