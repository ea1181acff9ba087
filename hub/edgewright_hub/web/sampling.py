"""The JSON API of what is fetched from devices: requests for sampled inputs, the samples, and a device's own report of
what ails it. Roles and errors as in `api`; whoever takes a sample away is noted."""

from __future__ import annotations

import re
from typing import Any, Final

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, Field

from ..fleet.roster import known, meant, named
from ..fleet.selectors import parse
from ..rollouts import sampling
from ..storage import control, telemetry
from .api import Operator, Reader, hub_of, now_ms
from .samples import Samples

router = APIRouter()

_NAMES: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}/[0-9a-f]{16}")


class SampleBody(BaseModel):
    device: str = Field("", max_length=63)
    selector: str = Field("", max_length=256)
    count: int = 10
    hours: float = sampling.HOURS
    reason: str = Field("", max_length=500)


@router.post("/api/v1/samples/requests", status_code=201)
def request_samples(request: Request, body: SampleBody, caller: Operator) -> dict[str, Any]:
    hub = hub_of(request)
    selector = parse(body.selector or f"id={body.device}")
    with hub.control.connect() as connection:
        devices = hub.conductor.roster.read(connection).values()
        chosen = meant(known(selector, named(connection)), devices)
    if not chosen:
        raise HTTPException(400, f"no enrolled device is meant by {body.selector or body.device!r}")
    asked: dict[str, Any] = {"count": body.count, "hours": body.hours, "reason": body.reason}
    number = sampling.request(hub.control, chosen, **asked, who=caller.name, now_ms=now_ms())
    return {"id": number, "devices": chosen}


@router.get("/api/v1/samples")
def samples(request: Request, _: Operator) -> dict[str, Any]:
    """What lies here, and the requests that it came by."""
    hub = hub_of(request)
    return {"samples": _kept(request).listed(), "requests": sampling.listed(hub.control)}


@router.get("/api/v1/samples/{device}/{identifier}")
def sample(request: Request, device: str, identifier: str, caller: Operator) -> Response:
    """The file, as the device packed it."""
    hub = hub_of(request)
    if not _NAMES.fullmatch(f"{device}/{identifier}") or (data := _kept(request).read(device, identifier)) is None:
        raise HTTPException(404, f"no sample {identifier[:40]!r} of {device[:63]!r} is here; after 30 days they go")
    with hub.control.begin() as connection:
        note = {"at_ms": now_ms(), "who": caller.name, "what": "samples read", "detail": identifier, "subject": device}
        connection.execute(control.audit.insert().values(**note))
    return Response(data, media_type="application/zip")


def _kept(request: Request) -> Samples:
    found = hub_of(request).samples
    if found is None:
        raise HTTPException(404, "this hub keeps no samples")
    return found


@router.post("/api/v1/devices/{device}/collect", status_code=202)
def collect(request: Request, device: str, caller: Operator) -> dict[str, str]:
    """Ask a device what ails it; the answer comes as an event."""
    return {"command": hub_of(request).conductor.order(device, "collect", who=caller.name, now_ms=now_ms())}


@router.get("/api/v1/devices/{device}/answers/{command}")
def answer(request: Request, device: str, command: str, _: Reader) -> dict[str, Any]:
    """What a device said to a command: {"said": null} while it has not."""
    e = telemetry.events.c
    mine = (e.device == device, e.reason.contains(command, autoescape=True), e.model == "")
    with hub_of(request).telemetry.connect() as connection:
        row = connection.execute(sa.select(telemetry.events).where(*mine).order_by(e.id.desc()).limit(1)).first()
    return {"said": None if row is None else {"at_ms": row.at_ms, "reason": row.reason, "text": row.log}}
