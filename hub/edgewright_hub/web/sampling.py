"""The JSON API of what is fetched from devices: requests for sampled inputs, the samples, and a device's own report of
what ails it. Roles and errors as in `api`; whoever takes a sample away is noted."""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, Field

from ..fleet import orders
from ..fleet.roster import known, meant, named
from ..fleet.selectors import parse
from ..rollouts import sampling
from ..storage import control
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
    kept = _kept(request)
    return {
        "samples": kept.listed(),
        "requests": sampling.listed(hub_of(request).control, kept.arrived, now_ms()),
    }


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


class OrderBody(BaseModel):
    hours: float = orders.HOURS


@router.post("/api/v1/devices/{device:path}/collect", status_code=202)
def collect(request: Request, device: str, caller: Operator, body: OrderBody | None = None) -> dict[str, Any]:
    """Ask a device what ails it; the answer comes as an event. One that is away is asked when it comes."""
    hours = (body or OrderBody()).hours
    return hub_of(request).conductor.orders.place(device, "collect", hours=hours, who=caller.name, now_ms=now_ms())


@router.get("/api/v1/orders")
def ordered(request: Request, _: Reader, device: str = "") -> list[dict[str, Any]]:
    """What devices were asked, the newest first, and what became of it."""
    return hub_of(request).conductor.orders.listed(device)


@router.get("/api/v1/devices/{device:path}/answers/{order}")
def answer(request: Request, device: str, order: str, _: Reader) -> dict[str, Any]:
    """The order, and what the device said to it: {"answer": null} while it has not."""
    kept = hub_of(request).conductor.orders
    return {**kept.find(device, order), "answer": kept.answer(device, order)}
