"""A certificate before its end: POST /api/v1/renew {"csr"} by a device that shows the one that is in force.

The answer is {"certificate"}, for the same name and the same key. An ended certificate does not pass TLS: its device
must be enrolled again, with a token.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from . import enrolment
from .api import hub_of, now_ms
from .broker import public_key_sha256
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
