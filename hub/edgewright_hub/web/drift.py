"""The JSON API of drift: verdicts, and what operators decide about them. Roles and errors as in `api`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from ..drift import days
from ..drift.divided import divided
from .api import Operator, Reader, hub_of, now_ms

router = APIRouter()


class Decision(BaseModel):
    reason: str = ""


class BudgetBody(Decision):
    false_pages_a_month: float


@router.get("/api/v1/drift")
def drift(request: Request, _: Reader) -> list[dict[str, Any]]:
    """Verdicts on every stream, alarms first."""
    return hub_of(request).conductor.drift.verdicts()


@router.get("/api/v1/drift/by/{key:path}")
def by(request: Request, _: Reader, key: str) -> list[dict[str, Any]]:
    """The devices' verdicts, counted by a key of selectors: site, hw, cohort, tag.NAME and so on."""
    hub = hub_of(request)
    with hub.control.connect() as connection:
        devices = hub.conductor.roster.read(connection)
    return divided(hub.conductor.drift.verdicts(), devices, key)


@router.get("/api/v1/drift/cohorts")
def cohorts(request: Request, _: Reader, hours: Annotated[int, Query(ge=1, le=8760)] = 24) -> list[dict[str, Any]]:
    """How far each cohort's last hours lie from training, from the rollups: effect sizes, no verdicts."""
    hub = hub_of(request)
    return days.by_cohort(hub.control, hub.telemetry, hub.registry.blobs, now_ms=now_ms(), hours=hours)


@router.get("/api/v1/drift/budget")
def budget(request: Request, _: Reader) -> dict[str, Any]:
    """False pages a month that the operator allows, and what evidence a page therefore needs."""
    return hub_of(request).conductor.drift.budget()


@router.post("/api/v1/drift/budget")
def set_budget(request: Request, body: BudgetBody, caller: Operator) -> dict[str, Any]:
    drift = hub_of(request).conductor.drift
    return drift.set_budget(body.false_pages_a_month, who=caller.name, reason=body.reason, now_ms=now_ms())


@router.post("/api/v1/drift/{subject:path}/acknowledge")
def acknowledge(request: Request, subject: str, caller: Operator) -> dict[str, int]:
    """Somebody has looked: end the alarms of a device or fleet."""
    ended = hub_of(request).conductor.drift.acknowledge(subject, who=caller.name, now_ms=now_ms())
    return {"acknowledged": ended}


@router.post("/api/v1/drift/{subject:path}/accept")
def accept(request: Request, subject: str, body: Decision, caller: Operator) -> dict[str, int]:
    """What a device or fleet in alarm shows now is its new normal."""
    drift = hub_of(request).conductor.drift
    return drift.accept(subject, who=caller.name, reason=body.reason, now_ms=now_ms())


@router.post("/api/v1/drift/{subject:path}/undo")
def undo(request: Request, subject: str, body: Decision, caller: Operator) -> dict[str, int]:
    """The normal from before the last acceptance."""
    return hub_of(request).conductor.drift.undo(subject, who=caller.name, reason=body.reason, now_ms=now_ms())
