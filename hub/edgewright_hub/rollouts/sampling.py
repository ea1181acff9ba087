"""Requests for sampled inputs: for some devices, for a while, with a reason. They lie over the configuration.

While a request is open, `Config.samples` of its devices asks for as many of each model as it wants, over its time; a
newer request of a device wins over an older one. It ends when its time is over or when all have sent enough, and then
the devices are what they were set to before. A device whose owner has not consented there sends nothing: the hub cannot
change that, and is not told of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from edgewright_contracts.desired import Samples
from edgewright_contracts.errors import RequestError

from ..storage import control

EVERY_S: Final = 60.0
HOURS: Final = 24.0  # the longest that a device keeps a sample, so the longest request
DEVICES: Final = 1000
COUNT: Final = 1000
SHOWN: Final = 50

Arrived = Callable[[str, int, int], int]  # samples that a device sent from one time to another


def request(
    engine: sa.Engine, devices: Sequence[str], *, count: int, hours: float, reason: str, who: str, now_ms: int
) -> int:
    """Ask `devices` for `count` inputs of each model within `hours`; its number. Raises RequestError."""
    if not devices or len(devices) > DEVICES:
        raise RequestError(f"expected from 1 to {DEVICES} devices to sample, got {len(devices)}")
    if not 1 <= count <= COUNT or not 0.1 <= hours <= HOURS:
        raise RequestError(f"expected 1 to {COUNT} samples in 0.1 to {HOURS:g} hours, got {count} in {hours:g}")
    if not reason.strip():
        raise RequestError("samples are people's inputs: say with --reason why somebody is to look at them")
    named = sorted(devices)
    row = {"devices": named, "count": count, "reason": reason[:500], "who": who, "at_ms": now_ms}
    with engine.begin() as connection:
        insert = control.sample_requests.insert().values(**row, expires_ms=now_ms + int(hours * 3600_000))
        number = int(connection.execute(insert.returning(control.sample_requests.c.id)).scalar_one())
        said = f"{number}: {count} of {', '.join(named[:20])}: {reason[:500]}"
        note = {"at_ms": now_ms, "who": who, "what": "samples request", "detail": said}
        connection.execute(control.audit.insert().values(**note))
    return number


def wanted(connection: sa.Connection) -> dict[str, Samples]:
    """What open requests ask of each device."""
    r = control.sample_requests.c
    found: dict[str, Samples] = {}
    for row in connection.execute(sa.select(control.sample_requests).where(r.ended_ms.is_(None)).order_by(r.id)):
        hours = (row.expires_ms - row.at_ms) / 3600_000
        per_day = min(10_000, math.ceil(row._mapping["count"] * 24 / hours))
        found |= dict.fromkeys(row.devices, Samples(per_day=per_day, ttl_s=hours * 3600))
    return found


def end(engine: sa.Engine, arrived: Arrived, now_ms: int) -> int:
    """End the requests whose time is over or whose devices have all sent enough; how many."""
    r = control.sample_requests.c
    with engine.begin() as connection:
        rows = connection.execute(sa.select(control.sample_requests).where(r.ended_ms.is_(None))).all()
        over = [
            row.id
            for row in rows
            if now_ms >= row.expires_ms
            or all(arrived(device, row.at_ms, now_ms) >= row._mapping["count"] for device in row.devices)
        ]
        if over:
            connection.execute(control.sample_requests.update().where(r.id.in_(over)).values(ended_ms=now_ms))
    return len(over)


def listed(engine: sa.Engine, arrived: Arrived, now_ms: int) -> list[dict[str, Any]]:
    """The newest first, each with its state: asked (nothing came), under way, arrived (all that was asked for),
    expired; and `arrived`, the samples that came of each device."""
    query = sa.select(control.sample_requests).order_by(control.sample_requests.c.id.desc()).limit(SHOWN)
    with engine.connect() as connection:
        rows = [dict(row._mapping) for row in connection.execute(query)]
    for row in rows:
        came = {device: arrived(device, row["at_ms"], row["ended_ms"] or now_ms) for device in row["devices"]}
        row["arrived"] = came
        if all(number >= row["count"] for number in came.values()):
            row["state"] = "arrived"
        elif row["ended_ms"] or now_ms >= row["expires_ms"]:
            row["state"] = "expired"
        else:
            row["state"] = "under way" if any(came.values()) else "asked"
    return rows
