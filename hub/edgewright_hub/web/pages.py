"""The operator's pages: everything on them is read from the two databases while they are made.

    GET /             what needs a person, rollouts, devices, drift, accuracy, events
    GET /fleet        who waits, who is held, cohorts, settings, requests
    GET /registry     packages, their stages and who decided them
    GET /devices/ID   desired against reported, and the history of one
    GET /live         server-sent events: `changed` whenever the databases changed (looked at once a second), and every
                      ten seconds, so that "12 s ago" stays true

The script swaps the main section for a fresh one; without it the page is the same, it only stands still. Nothing is
loaded from elsewhere. A page shows and says which command acts: it asks no password, so nothing can be done on it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from edgewright_contracts.errors import RequestError

from ..storage import control, telemetry
from .api import Hub, hub_of, now_ms
from .views import devices, fleet, overview, packages, wording

BEAT_S: Final = 10.0
LOOK_S: Final = 1.0

Answer = Callable[[Request, Exception], Awaitable[Response]]

_HEADERS: Final = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'self'; img-src 'self' data:"}

router = APIRouter(include_in_schema=False)
static = StaticFiles(directory=Path(__file__).parent / "static")


def render(hub: Hub, at_ms: int) -> str:
    """The overview."""
    return wording.render("overview.html", overview.view(hub, at_ms), at_ms)


def render_fleet(hub: Hub, at_ms: int) -> str:
    return wording.render("fleet.html", fleet.view(hub, at_ms), at_ms)


def render_registry(hub: Hub, at_ms: int) -> str:
    return wording.render("registry.html", packages.view(hub, at_ms), at_ms)


def render_device(hub: Hub, device: str, at_ms: int) -> str:
    """Raises RequestError for an unknown one."""
    return wording.render("device.html", devices.one(hub, device, at_ms), at_ms)


@router.get("/")
def page(request: Request) -> HTMLResponse:
    return HTMLResponse(render(hub_of(request), now_ms()), headers=_HEADERS)


@router.get("/fleet")
def fleet_page(request: Request) -> HTMLResponse:
    return HTMLResponse(render_fleet(hub_of(request), now_ms()), headers=_HEADERS)


@router.get("/registry")
def registry_page(request: Request) -> HTMLResponse:
    return HTMLResponse(render_registry(hub_of(request), now_ms()), headers=_HEADERS)


@router.get("/devices/{device:path}")
def device_page(request: Request, device: str) -> HTMLResponse:
    try:
        return HTMLResponse(render_device(hub_of(request), device, now_ms()), headers=_HEADERS)
    except RequestError as error:
        return HTMLResponse(wording.render("nothing.html", {"said": str(error)}, now_ms()), 404, headers=_HEADERS)


def read_by_people(answer: Answer) -> Answer:
    """What went wrong as a page, for a browser that asked for one."""

    async def shown(request: Request, error: Exception) -> Response:
        said = await answer(request, error)
        if "text/html" not in request.headers.get("accept", ""):
            return said
        text = wording.render("nothing.html", {"said": json.loads(bytes(said.body))["error"]}, now_ms())
        return HTMLResponse(text, said.status_code, headers=_HEADERS)

    return shown


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
                sa.select(sa.func.max(c.orders.c.sent_ms)).scalar_subquery(),
                sa.select(sa.func.max(c.orders.c.arrived_ms)).scalar_subquery(),
            )
        ).one()
    return (*seen, *decided)
