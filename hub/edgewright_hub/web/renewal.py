"""What becomes of a certificate: POST /api/v1/renew {"csr"} by a device that shows the one that is in force, and
POST /api/v1/devices/ID/retire by an operator.

A renewal answers {"certificate"}, for the same name and the same key. An ended certificate does not pass TLS: its
device must be enrolled again, with a token. So must a retired one, and until then nothing lets it in.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from ..fleet import enrolment
from ..mqtt.broker import public_key_sha256
from .api import Operator, hub_of, now_ms
from .peers import Device, tls_of

router = APIRouter()


class RenewBody(BaseModel):
    csr: str = Field(max_length=8192)


@router.post("/api/v1/renew")
def renew(request: Request, device: Device, body: RenewBody) -> dict[str, Any]:
    hub = hub_of(request)
    key = public_key_sha256(tls_of(request.scope))
    certificate = enrolment.renew(hub.control, hub.authority, device, body.csr, key_sha256=key, now_ms=now_ms())
    return {"certificate": certificate}


@router.post("/api/v1/devices/{device:path}/retire")
def retire(request: Request, device: str, caller: Operator) -> dict[str, str]:
    hub = hub_of(request)
    enrolment.retire(hub.control, device, who=caller.name, now_ms=now_ms())
    return {"retired": device}
