"""The operator's page: everything on it is read from the two databases while it is made.

    GET /       the page, rendered on the server
    GET /live   server-sent events: `changed` whenever the databases changed (looked at once a second), and every ten
                seconds, so that "12 s ago" stays true

The script swaps the main section for a fresh one; without it the page is the same, it only stands still. Nothing is
loaded from elsewhere. What devices say is escaped by the template engine. Cost: about 15 ms for 100 devices, 0.3 s
for 2,000.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.staticfiles import StaticFiles

from ..accuracy import reader
from ..accuracy.packages import Packages
from ..alerts import alerts
from ..drift import fleet_drift
from ..ingest.refusals import since
from ..rollouts import evidence, records
from ..rollouts.progress import unpacked
from ..storage import control, telemetry
from .api import Hub, hub_of

ROWS: Final = 200  # devices on the page, those that need a person first
ENDED: Final = 3  # rollouts that have ended
EVENTS: Final = 25
HOUR_MS: Final = 3600_000
BEAT_S: Final = 10.0
LOOK_S: Final = 1.0

_HEADERS: Final = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'self'; img-src 'self' data:"}
_HERE: Final = Path(__file__).parent
_METRICS: Final = {"error": "errors", "slow": "slow runs", "label": "wrong labels"}
_BASES: Final = {
    "control": "devices without it",
    "pre-period": "the same devices before",
    "limit": "a fixed limit",
    "none": "nothing yet",
}

_PARTS: Final = ("input", "embedding", "output", "feed")

router = APIRouter(include_in_schema=False)
static = StaticFiles(directory=_HERE / "static")


@router.get("/")
async def page(request: Request) -> HTMLResponse:
    html = await run_in_threadpool(lambda: render(hub_of(request), _now_ms()))
    return HTMLResponse(html, headers=_HEADERS)


@router.get("/live")
async def live(request: Request) -> StreamingResponse:
    hub = hub_of(request)

    async def changes() -> AsyncIterator[str]:
        before, told = None, 0.0
        while not await request.is_disconnected():
            mark = await run_in_threadpool(_mark, hub)
            if mark != before or time.monotonic() - told >= BEAT_S:
                before, told = mark, time.monotonic()
                yield "event: changed\ndata: now\n\n"
            await asyncio.sleep(LOOK_S)

    return StreamingResponse(changes(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def render(hub: Hub, now_ms: int) -> str:
    return _ENVIRONMENT.get_template("page.html").render(view(hub, now_ms), now_ms=now_ms)


def view(hub: Hub, now_ms: int) -> dict[str, Any]:
    """All figures of the page, as the template takes them."""
    with hub.control.connect() as connection:
        packages = connection.execute(
            sa.select(control.packages).order_by(control.packages.c.published_ms.desc())
        ).all()
        rollouts = connection.execute(sa.select(control.rollouts).order_by(control.rollouts.c.created_ms.desc())).all()
        drift = [fleet_drift.describe(r._mapping) for r in connection.execute(sa.select(control.drift))]
        enrolled = connection.execute(sa.select(control.devices).order_by(control.devices.c.id)).all()
        wanted = {r.device: r.document for r in connection.execute(sa.select(control.desired))}
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
    alarms = [v for v in drift if v["verdict"] == "alarm"]
    streams: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for verdict in drift:
        if verdict["scope"] == "device" and verdict["verdict"] != "ended":
            streams[verdict["subject"]].append(verdict)
    devices = [
        _device(
            row,
            said.get(row.id),
            hour.get(row.id, (0, 0)),
            wanted.get(row.id),
            versions,
            streams[row.id],
            now_ms,
        )
        for row in enrolled
        if row.state == "enrolled"
    ]
    devices.sort(key=lambda d: (not d["alarm"], d["online"], d["id"]))
    running = [r for r in rollouts if r.state in ("draft", "running", "paused", "rolling-back")]
    ended = [r for r in rollouts if r not in running][:ENDED]
    packages_known = Packages(hub.control, hub.registry.blobs)
    return {
        "alerts": alerts.listed(hub.control),
        "accuracy": reader.read(hub.control, hub.telemetry, packages_known, now_ms=now_ms)["models"],
        "condition": reader.CONDITION,
        "devices": devices[:ROWS],
        "devices_total": len(devices),
        "devices_online": sum(d["online"] for d in devices),
        "inferences": sum(n for n, _ in hour.values()),
        "errors": sum(k for _, k in hour.values()),
        "running": len(running),
        "rollouts": [_rollout(r, said, versions) for r in (*running, *ended)],
        "cohorts": _drift([v for v in alarms if v["scope"] == "cohort"], "subject", "digest", "variant", "context"),
        "drift": _drift([v for v in alarms if v["scope"] == "device"], "subject"),
        "watched": sum(v["scope"] == "device" and v["blocks"] > 0 and v["verdict"] != "ended" for v in drift),
        "versions": versions,
        "packages": [{**r._mapping, "devices": _count(said, r.digest)} for r in packages],
        "events": [{**r._mapping, "version": versions.get(r.digest[:16], r.model)} for r in events],
        "refused": refused[:EVENTS],
        "refused_total": len(refused),
        "warning": hub.registry.warning(now=datetime.fromtimestamp(now_ms / 1000, UTC)),
    }


def _count(said: Mapping[str, Any], digest: str) -> int:
    return sum(row.digest == digest[:16] for row in said.values())


def _device(
    row: Any,
    said: Any,
    hour: tuple[int, int],
    wanted: Mapping[str, Any] | None,
    versions: Mapping[str, str],
    mine: list[dict[str, Any]],  # verdicts on its streams
    now_ms: int,
) -> dict[str, Any]:
    digests = [m["digest"] for m in (wanted or {}).get("models", ()) if m.get("digest")]
    due = said.next_due_ms if said else None
    running = said.digest if said else None
    return {
        "id": row.id,
        "fleet": row.fleet,
        "online": bool(said and said.online),
        "overdue": bool(due is not None and now_ms > due + evidence.GRACE_MS),
        "last_seen_ms": said.last_seen_ms if said else None,
        "running": versions.get(running, running) if running else "",
        "variant": said.variant if running else "",
        "wanted": [versions.get(d[:16], d[:16]) for d in digests if d[:16] != running],
        "inferences": hour[0],
        "errors": hour[1],
        "alarm": any(v["verdict"] == "alarm" for v in mine),
        "parts": {v["part"]: v["verdict"] for v in sorted(mine, key=lambda v: v["verdict"] == "alarm")},
    }


def _drift(alarms: list[dict[str, Any]], *by: str) -> list[dict[str, Any]]:
    """Alarms that are equal in `by` as one, those that came last first; the part nearest to the model's input first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for verdict in sorted(alarms, key=lambda v: (_PARTS.index(v["part"]), v["variant"], v["context"])):
        groups[tuple(verdict[name] for name in by)].append(verdict)
    told = [
        {
            **{name: mine[0][name] for name in by},
            "since_ms": min(v["since_ms"] for v in mine),
            "devices": sorted({device for v in mine for device in v.get("devices", ())}),
            "streams": mine,
        }
        for mine in groups.values()
    ]
    return sorted(told, key=lambda d: (-d["since_ms"], *(d[name] for name in by)))


def _returned(row: Any, said: Mapping[str, Any], versions: Mapping[str, str]) -> str | None:
    """Where the devices of a release that was taken back are now, as the end of "n devices were given it"; None of one
    that was not taken back."""
    if row.state not in ("rolling-back", "rolled-back", "reverting", "reverted", "aborted"):
        return None
    members = unpacked(row.progress).members
    given = [members.row(i) for i in np.flatnonzero(members.given).tolist()]
    there: dict[str, int] = defaultdict(int)
    for member in given:
        running = said[member.device].digest if member.device in said else None
        if member.previous is None:
            there["without a package of this name, as before"] += 1
        elif member.back or running == member.previous[:16]:
            name = versions.get(member.previous[:16], member.previous[:12])
            there[f"back on {name.removeprefix(f'{row.name} ')}"] += 1
    away = len(given) - sum(there.values())
    if not given:
        return ""
    if len(there) == 1 and not away:
        return f" and {'is' if len(given) == 1 else 'are'} {next(iter(there))}"
    told = [f"{n} {'is' if n == 1 else 'are'} {where}" for where, n in there.items()]
    if away:
        told.append(f"{away} {'was' if away == 1 else 'were'} not seen back yet")
    return "; " + ", ".join(told)


def _rollout(row: Any, said: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    told = records.describe(row)
    gate = records.gate_of(row)
    figures = [
        {
            **figure,
            "name": _METRICS.get(figure["metric"], figure["metric"]),
            "against": _BASES[figure["basis"]],
            "harm": _share(figure["log_bad"], gate.need_bad),
            "ok": _share(figure["log_ok"], figure["need_ok"] or gate.need_ok),
        }
        for figure in told["figures"]
        if figure["n"]
    ]
    passed = len(told["stages"]) if told["state"] == "done" else told["stage"]
    here = {"draft": "now", "unapproved": "later", "running": "now", "paused": "now"}.get(told["state"], "stopped")
    stages = [
        {**stage, "state": "done" if i < passed else here if i == passed else "later"}
        for i, stage in enumerate(told["stages"])
    ]
    return {**told, "figures": figures, "stages": stages, "returned": _returned(row, said, versions)}


def _share(log_e: float, need: float) -> int:
    """Per cent of the evidence that is needed, on the logarithmic scale, 0..100."""
    return round(100 * min(1.0, max(0.0, log_e / need)))


def _mark(hub: Hub) -> tuple[Any, ...]:
    """Changes whenever something on the page may have changed."""
    w, e, d = telemetry.windows.c, telemetry.events.c, telemetry.devices.c
    with hub.telemetry.connect() as connection:
        seen = connection.execute(
            sa.select(
                sa.select(sa.func.max(w.id)).scalar_subquery(),
                sa.select(sa.func.max(e.id)).scalar_subquery(),
                sa.select(sa.func.max(d.last_seen_ms)).scalar_subquery(),
                sa.select(sa.func.count()).where(d.online).scalar_subquery(),
            )
        ).one()
    c = control
    with hub.control.connect() as connection:
        decided = connection.execute(
            sa.select(
                sa.select(sa.func.max(c.rollouts.c.updated_ms)).scalar_subquery(),
                sa.select(sa.func.max(c.drift.c.updated_ms)).scalar_subquery(),
                sa.select(sa.func.max(c.packages.c.published_ms)).scalar_subquery(),
                sa.select(sa.func.count()).select_from(c.devices).scalar_subquery(),
                sa.select(sa.func.max(c.audit.c.id)).scalar_subquery(),
                sa.select(sa.func.max(c.alerts.c.id)).scalar_subquery(),
                sa.select(sa.func.max(c.alerts.c.closed_ms)).scalar_subquery(),
            )
        ).one()
    return (*seen, *decided)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _ago(then_ms: int | None, now_ms: int) -> str:
    if then_ms is None:
        return "never"
    seconds = max(0, (now_ms - then_ms) // 1000)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _utc(then_ms: int) -> str:
    return datetime.fromtimestamp(then_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _evidence(log_e: float) -> str:
    """An e-value for people: 0.31, 12, 4,100."""
    if log_e > math.log(1e6):
        return "over a million"
    value = math.exp(log_e)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _interval(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "–"
    return f"{100 * one['value']:.1f} % ({100 * one['low']:.1f}–{100 * one['high']:.1f})"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    ago=_ago, utc=_utc, evidence=_evidence, rate=_rate, interval=_interval, thousands=lambda n: f"{n:,}"
)
