"""The page of the fleet: who waits for a yes, who is held and why, cohorts, settings, and what devices were asked."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from ...fleet import queue
from ...rollouts import sampling
from ...storage import control
from ..api import Hub
from .devices import last

ROWS: Final = 100  # of each table


def view(hub: Hub, now_ms: int) -> dict[str, Any]:
    d, c = control.devices.c, control.configs.c
    with hub.control.connect() as connection:
        expected = queue.waiting(connection)
        fleet = hub.conductor.roster.read(connection).values()
        held = sorted(one.id for one in fleet if one.held)
        why = last(connection, "hold", held[:ROWS])
        cohorts = connection.execute(sa.select(control.cohorts).order_by(control.cohorts.c.name)).all()
        newest = sa.select(sa.func.max(c.version)).group_by(c.scope, c.subject)
        settings = connection.execute(sa.select(control.configs).where(c.version.in_(newest)).order_by(c.version)).all()
        retired = connection.execute(sa.select(sa.func.count()).where(d.state == "retired")).scalar_one()
    waiting = [one for one in expected if one["state"] == "waiting"]
    states = [one["state"] for one in expected]
    return {
        "waiting": waiting[:ROWS],
        "waiting_total": len(waiting),
        "expected": {state: states.count(state) for state in ("listed", "accepted", "refused") if state in states},
        "held": [
            {"device": device, **why.get(device, {"who": "", "at_ms": None, "detail": ""})} for device in held[:ROWS]
        ],
        "held_total": len(held),
        "enrolled": len(fleet),
        "retired": retired,
        "cohorts": [{**row._mapping, "devices": sum(row.name in one.cohorts for one in fleet)} for row in cohorts],
        "settings": [dict(row._mapping) for row in settings if row.settings],
        "orders": hub.conductor.orders.listed()[:ROWS],
        "samples": sampling.listed(hub.control, hub.samples.arrived, now_ms)[:ROWS] if hub.samples else [],
    }
