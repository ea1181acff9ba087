"""The JSON API of accuracy: what is expected, labels from tables, and when to train again. Roles and errors as in
`api`."""

from __future__ import annotations

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgewright_contracts.errors import RequestError

from ..accuracy import imports, reader, retraining
from ..accuracy.packages import Packages
from ..fleet import inventory, roster
from ..storage import control
from .api import Operator, Reader, hub_of, now_ms

router = APIRouter()


@router.get("/api/v1/accuracy")
def accuracy(
    request: Request,
    _: Reader,
    model: str = "",
    fleet: str = "",
    context: str | None = None,
    select: str = "",
    hours: Annotated[int, Query(ge=1, le=8760)] = 24,
) -> dict[str, Any]:
    """Of each model and each of its slices: expected, if what it has learnt still holds, with its 95 % interval; labels
    and other outcomes that came, with theirs. `select`: of the devices that it means, at most 24 hours."""
    hub = hub_of(request)
    devices: frozenset[str] | None = None
    with hub.control.connect() as connection:
        _there(connection, model, fleet)
        if select:
            fleet_now, cohorts = hub.conductor.roster.read(connection), roster.named(connection)
            devices = frozenset(inventory.named(inventory.Whom(select=select), fleet_now, cohorts))
    asked: dict[str, Any] = {"model": model, "fleet": fleet, "context": context, "hours": hours, "now_ms": now_ms()}
    asked["devices"] = devices
    return reader.read(hub.control, hub.telemetry, Packages(hub.control, hub.registry.blobs), **asked)


def _there(connection: sa.Connection, model: str, fleet: str) -> None:
    """Raises RequestError for a model that was never published, and a fleet that no device was ever in."""
    p, d = control.packages.c, control.devices.c
    if model and connection.execute(sa.select(p.name).where(p.name == model).limit(1)).first() is None:
        raise RequestError(f"no package is called {model[:80]!r}; `edgewright registry list` lists them")
    fleets = sorted(connection.execute(sa.select(d.fleet).distinct()).scalars()) if fleet else []
    if fleet and fleet not in fleets:
        raise RequestError(f"no device is in a fleet {fleet[:80]!r}. Known fleets: {', '.join(fleets) or 'none'}")


@router.get("/api/v1/labels")
def imported(request: Request, _: Reader) -> list[dict[str, Any]]:
    """Tables that were imported, the newest first."""
    return list(imports.listed(hub_of(request).control))


@router.post("/api/v1/labels")
async def labels(request: Request, caller: Operator, name: Annotated[str, Query(max_length=200)] = "") -> Any:
    """The body is a table as `accuracy.imports` describes it, at most 8 MiB; a table is counted once."""
    hub, data = hub_of(request), await request.body()
    packages = await run_in_threadpool(Packages, hub.control, hub.registry.blobs)
    stores = (hub.control, hub.telemetry, packages)
    told = await run_in_threadpool(imports.take, *stores, data, name, who=caller.name, now_ms=now_ms())
    return told._asdict()


class RetrainBody(BaseModel):
    on_drift: bool = False
    max_age_days: int | None = None


@router.get("/api/v1/retrain")
def policies(request: Request, _: Reader) -> list[dict[str, Any]]:
    return retraining.listed(hub_of(request).control)


@router.post("/api/v1/retrain/{model:path}")
def set_policy(
    request: Request, model: Annotated[str, Field(max_length=63)], body: RetrainBody, caller: Operator
) -> dict[str, Any]:
    asked: dict[str, Any] = {"on_drift": body.on_drift, "max_age_days": body.max_age_days}
    return retraining.put(hub_of(request).control, model, **asked, who=caller.name, now_ms=now_ms())
