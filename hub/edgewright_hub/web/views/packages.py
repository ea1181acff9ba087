"""The page of the registry: every version of every package, where it stands, who said so, who runs it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import sqlalchemy as sa

from ...registry import lineage
from ...rollouts import records
from ...storage import control, telemetry
from ..api import Hub


def view(hub: Hub, _now_ms: int) -> dict[str, Any]:
    p, d = control.packages.c, telemetry.devices.c
    with hub.telemetry.connect() as connection:
        running = Counter(connection.execute(sa.select(d.digest).where(d.digest.is_not(None))).scalars())
    with hub.control.connect() as connection:
        names = connection.execute(sa.select(p.name).distinct().order_by(p.name)).scalars().all()
        wanted = Counter(
            model["digest"]
            for document in connection.execute(sa.select(control.desired.c.document)).scalars()
            for model in document.get("models", ())
            if model.get("digest")
        )
        found = {name: lineage.lineage(connection, name) for name in names}
        blocked = records.blocked(connection)
    for versions in found.values():
        for one in versions:
            one["blocked_by"] = blocked.get(one["digest"])
            one["running"], one["wanted"] = running[one["digest"][:16]], wanted[one["digest"]]
    return {"models": found}
