"""The first page: what needs a person, rollouts, devices, drift, accuracy, events.

Cost: about 15 ms for 100 devices, 0.3 s for 2,000.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from ...accuracy import reader
from ...accuracy.packages import Packages
from ...alerts import alerts
from ...drift import fleet_drift
from ...ingest.refusals import since
from ...registry import stages
from ...rollouts import records
from ...rollouts.state import ACTIVE
from ...storage import control, telemetry
from ..api import Hub
from . import alarms, devices, rollouts

ROWS: Final = 200  # devices on the page, those that need a person first
ENDED: Final = 3  # rollouts that have ended
EVENTS: Final = 25
PACKAGES: Final = 10
HOUR_MS: Final = 3600_000


def view(hub: Hub, now_ms: int) -> dict[str, Any]:
    """All figures of the page, as the template takes them."""
    x = control.expected.c
    with hub.control.connect() as connection:
        packages = connection.execute(
            sa.select(control.packages).order_by(control.packages.c.published_ms.desc())
        ).all()
        started = connection.execute(sa.select(control.rollouts).order_by(control.rollouts.c.created_ms.desc())).all()
        drift = [fleet_drift.describe(r._mapping) for r in connection.execute(sa.select(control.drift))]
        blocked = records.blocked(connection)
        enrolled = connection.execute(sa.select(control.devices).order_by(control.devices.c.id)).all()
        wanted = {r.device: r.document for r in connection.execute(sa.select(control.desired))}
        waiting = (
            connection.execute(sa.select(x.device).where(x.state == "waiting").order_by(x.since_ms)).scalars().all()
        )
    w, e = telemetry.windows.c, telemetry.events.c
    with hub.telemetry.connect() as connection:
        said = {r.device: r for r in connection.execute(sa.select(telemetry.devices))}
        sums = sa.select(sa.func.max(w.device), sa.func.sum(w.n), sa.func.sum(w.errors)).where(
            w.start_ms >= now_ms - HOUR_MS
        )
        # Grouped by an expression: SQLite would rather walk through all windows in the order of an index on the column.
        hour = {device: (int(n), int(k)) for device, n, k in connection.execute(sums.group_by(w.device.concat("")))}
        events = connection.execute(sa.select(telemetry.events).order_by(e.id.desc()).limit(EVENTS)).all()
        refused = [one for one in since(connection, now_ms - 24 * HOUR_MS) if one.reason != "replay"]
    versions = {r.digest[:16]: f"{r.name} {r.version}" for r in packages}
    moved = [v for v in drift if v["verdict"] == "alarm"]
    rows = devices.lines(enrolled, said, hour, wanted, versions, drift, now_ms)
    running = [r for r in started if r.state in ACTIVE]
    ended = [r for r in started if r not in running][:ENDED]
    packages_known = Packages(hub.control, hub.registry.blobs)
    return {
        "alerts": alerts.listed(hub.control),
        "waiting": waiting,
        "candidates": [f"{r.name} {r.version}" for r in packages if stages.standing(r) == "candidate"],
        "accuracy": reader.read(hub.control, hub.telemetry, packages_known, now_ms=now_ms)["models"],
        "condition": reader.CONDITION,
        "devices": rows[:ROWS],
        "parts": [part for part in alarms.PARTS if any(part in d["parts"] for d in rows[:ROWS])],
        "devices_total": len(rows),
        "devices_online": sum(d["online"] and not d["overdue"] for d in rows),
        "devices_held": sum(d["held"] for d in rows),
        "inferences": sum(n for n, _ in hour.values()),
        "errors": sum(k for _, k in hour.values()),
        "running": len(running),
        "rollouts": [rollouts.told(r, said, versions) for r in (*running, *ended)],
        "fleets": {r.fleet for r in enrolled},
        "cohorts": alarms.grouped(
            [v for v in moved if v["scope"] == "cohort"], "subject", "digest", "variant", "context"
        ),
        "drift": alarms.grouped([v for v in moved if v["scope"] == "device"], "subject"),
        "watched": sum(v["scope"] == "device" and v["blocks"] > 0 and v["verdict"] != "ended" for v in drift),
        "versions": versions,
        "packages": [
            {
                "name": r.name,
                "version": r.version,
                "digest": r.digest,
                "standing": stages.standing(r),
                "blocked_by": blocked.get(r.digest),
                "devices": sum(one.digest == r.digest[:16] for one in said.values()),
                "published_ms": r.published_ms,
            }
            for r in packages[:PACKAGES]
        ],
        "events": [{**r._mapping, "version": versions.get(r.digest[:16], r.model)} for r in events],
        "refused": refused[:EVENTS],
        "refused_total": len(refused),
        "warning": hub.registry.warning(now=datetime.fromtimestamp(now_ms / 1000, UTC)),
    }
