"""The JSON API: what all of its modules share, and enrolment, events and configuration.

Reading needs the role viewer; changing rollouts and settings and making enrolment tokens, operator; publishing,
publisher; an admin may do everything. Enrolment needs no role: its token is the credential. Nor does /healthz, which
tells no detail.
Every answer to a wrong request is {"error": "..."}: 400 malformed, or naming what is not here, 401 no token, 403 wrong
role, 404 no such path or rollout, 409 not the next version, 413 too large, 422 the request is right and the answer is
"no", with the reason, 503 something of the hub's own failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgewright_contracts.codec import KIB, decode
from edgewright_contracts.errors import ContractError

from ..fleet import enrolment, tokens
from ..fleet.ca import Authority
from ..ingest.consumer import Consumer
from ..registry.registry import Registry
from ..rollouts.conductor import Conductor
from ..rollouts.configuration import Asked
from ..storage import control, telemetry
from .samples import Samples
from .websocket import PATH

if TYPE_CHECKING:
    from ..exports.sink import Sink

PAGE: Final = 500  # rows of one answer
SPEC_BYTES: Final = 64 * KIB


@dataclass(frozen=True, slots=True)
class Hub:
    """What requests work on; the application keeps it as `app.state.hub`."""

    control: sa.Engine
    telemetry: sa.Engine
    registry: Registry
    authority: Authority
    conductor: Conductor
    broker: tuple[str, int]  # as devices reach it
    repo: str  # URL, with a slash at the end
    ails: Callable[[], list[str]]  # why the hub is not well
    open_to_read: bool  # whoever reaches this listener may read: it is on loopback
    websocket: tuple[str, int] | None = None  # where devices reach MQTT over WebSocket; None: nowhere
    samples: Samples | None = None  # where sampled inputs lie; None: nowhere
    consumer: Consumer | None = None  # how fast reports come
    sink: Sink | None = None  # of InfluxDB


class Caller(NamedTuple):
    role: tokens.Role
    name: str


_MAY: Final[dict[str, tuple[tokens.Role, ...]]] = {
    "read": ("viewer", "operator", "publisher", "admin"),
    "operate": ("operator", "admin"),
    "publish": ("publisher", "admin"),
}


def hub_of(request: Request) -> Hub:
    hub: Hub = request.app.state.hub
    return hub


def _allowed(what: str) -> Any:
    def check(request: Request) -> Caller:
        hub = hub_of(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not token:
            if what == "read" and hub.open_to_read:
                return Caller("viewer", "page")
            raise HTTPException(401, "expected Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        found = tokens.holder(hub.control, token.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise HTTPException(401, "expected a token of this hub, got an unknown one", {"WWW-Authenticate": "Bearer"})
        if found[0] not in _MAY[what]:
            raise HTTPException(403, f"expected a token with the role {' or '.join(_MAY[what])}, got {found[0]}")
        return Caller(*found)

    return Depends(check)


Reader = Annotated[Caller, _allowed("read")]
Operator = Annotated[Caller, _allowed("operate")]
Publisher = Annotated[Caller, _allowed("publish")]

router = APIRouter()
enrol_router = APIRouter()
health_router = APIRouter()


def now_ms() -> int:
    return int(time.time() * 1000)


@health_router.get("/healthz")
def healthz(request: Request, response: Response) -> dict[str, Any]:
    """For whoever keeps the hub running: 200, or 503 with reasons. No token."""
    reasons = hub_of(request).ails()
    response.status_code = 503 if reasons else 200
    return {"ok": not reasons, "reasons": reasons}


# Enrolment.


class EnrolBody(BaseModel):
    token: str = Field(max_length=tokens.TOKEN_BYTES)
    device: str = Field(max_length=63)
    csr: str = Field(max_length=8192)


@enrol_router.get("/enroll/ca.pem")
def ca_pem(request: Request) -> Response:
    """The hub's CA, which a device compares with the hash in its token."""
    return Response(hub_of(request).authority.ca_pem, media_type="application/x-pem-file")


@enrol_router.post("/api/v1/enroll")
def enroll(request: Request, response: Response, body: EnrolBody) -> dict[str, Any]:
    """202 and {"waiting"} while a person has not said yes."""
    hub = hub_of(request)
    asked = enrolment.Request(token=body.token, device=body.device, csr=body.csr)
    certificate = enrolment.enrol(hub.control, hub.authority, asked, now_ms=now_ms())
    if certificate is None:
        response.status_code = 202
        return {"waiting": f"{body.device} waits for an operator's yes: edgewright fleet accept {body.device}"}
    return {
        "certificate": certificate,
        "root": hub.registry.first_root.decode(),
        "broker": {"host": hub.broker[0], "port": hub.broker[1]},
        "repo": hub.repo,
        "websocket": {"host": hub.websocket[0], "port": hub.websocket[1], "path": PATH} if hub.websocket else None,
    }


class TokenBody(BaseModel):
    uses: int = 1
    expires_s: float = 86400.0
    pattern: str = ".*"
    fleet: str = "default"
    kind: Literal["open", "queue"] = "open"


@router.post("/api/v1/tokens")
def make_token(request: Request, body: TokenBody, caller: Operator) -> dict[str, str]:
    hub = hub_of(request)
    token = tokens.issue(
        hub.control,
        uses=body.uses,
        expires_s=body.expires_s,
        pattern=body.pattern,
        fleet=body.fleet,
        root_sha256=hub.registry.first_root_sha256,
        ca_sha256=hub.authority.ca_sha256,
        now_ms=now_ms(),
        kind=body.kind,
    )
    detail = f"{body.uses} uses, {body.expires_s:g} s, {body.pattern}, fleet {body.fleet}"
    with hub.control.begin() as connection:
        connection.execute(
            control.audit.insert().values(at_ms=now_ms(), who=caller.name, what="enrolment token", detail=detail)
        )
    return {"token": token}


async def body_of(request: Request, limit: int) -> bytes:
    out = bytearray()
    async for chunk in request.stream():
        out += chunk
        if len(out) > limit:
            raise HTTPException(413, f"expected at most {limit} bytes")
    return bytes(out)


# Reading.


@router.get("/api/v1/events")
def events(request: Request, _: Reader, after: Annotated[int, Query(ge=0, le=2**53)] = 0) -> list[dict[str, Any]]:
    """At most 500 events of devices with an id above `after`, oldest first."""
    table = telemetry.events
    with hub_of(request).telemetry.connect() as connection:
        rows = connection.execute(sa.select(table).where(table.c.id > after).order_by(table.c.id).limit(PAGE)).all()
    return [dict(row._mapping) for row in rows]


# Configuration.


@router.get("/api/v1/config")
def config(
    request: Request, _: Reader, fleet: str = "", select: str = "", device: Annotated[tuple[str, ...], Query()] = ()
) -> list[dict[str, Any]]:
    """What is in force for these devices, this fleet, whom this selector means, or all, and what led to it."""
    return hub_of(request).conductor.configuration(fleet, device, select)


@router.post("/api/v1/config")
async def set_config(request: Request, caller: Operator) -> list[dict[str, Any]]:
    """The body is a `configuration.Asked`; answers with what is in force then. Whom it names must not be empty: that
    would mean every device, and nobody asks for that so."""
    body = await body_of(request, SPEC_BYTES)
    asked = decode(Asked, body, name="config", limit=SPEC_BYTES, wire="json")
    document = msgspec.json.decode(body)
    for name in ("devices", "fleet", "select"):
        if name in document and not (asked.devices if name == "devices" else document[name].strip()):
            raise ContractError(f"config.{name}", "whom it means, or no such field for all devices", "an empty one")
    return await run_in_threadpool(hub_of(request).conductor.configure, asked, who=caller.name, now_ms=now_ms())
