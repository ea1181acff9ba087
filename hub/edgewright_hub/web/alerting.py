"""The JSON API of alerts and webhooks. Roles and errors as in `api`; webhooks are an admin's, for they send to whatever
address they name."""

from __future__ import annotations

from typing import Annotated, Any, Final, get_args

from fastapi import APIRouter, HTTPException, Path, Request
from pydantic import BaseModel, Field

from edgewright_contracts.errors import RequestError

from ..alerts import alerts, webhooks
from .api import Caller, Operator, Reader, hub_of, now_ms

KINDS: Final = get_args(alerts.Kind)
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]

router = APIRouter()


@router.get("/api/v1/alerts")
def listed(request: Request, _: Reader, closed: bool = False) -> list[dict[str, Any]]:
    """Open ones, pages first; with `closed` also the newest that are over."""
    return alerts.listed(hub_of(request).control, closed=closed)


@router.post("/api/v1/alerts/{number}/acknowledge")
def acknowledge(request: Request, number: Number, caller: Operator) -> dict[str, Any]:
    return alerts.acknowledge(hub_of(request).control, number, who=caller.name, now_ms=now_ms())


@router.post("/api/v1/alerts/{number}/close")
def close(request: Request, number: Number, caller: Operator) -> dict[str, Any]:
    return alerts.dismiss(hub_of(request).control, number, who=caller.name, now_ms=now_ms())


class WebhookBody(BaseModel):
    url: str = Field(max_length=webhooks.URL_CHARS)
    pages_only: bool = False
    kind: str = Field("", max_length=32)
    subject: str = Field("", max_length=128)


@router.get("/api/v1/webhooks")
def hooks(request: Request, _: Operator) -> list[dict[str, Any]]:
    return webhooks.listed(hub_of(request).control)


@router.get("/api/v1/webhooks/deliveries")
def deliveries(request: Request, _: Operator) -> list[dict[str, Any]]:
    """The newest first."""
    return webhooks.deliveries(hub_of(request).control)


@router.post("/api/v1/webhooks", status_code=201)
def add(request: Request, body: WebhookBody, caller: Operator) -> dict[str, Any]:
    """Answers with the secret that signs what is sent; it is told this once."""
    if body.kind not in ("", *KINDS):
        raise RequestError(f"the webhook: expected a kind of alerts, {', '.join(KINDS)}; got {body.kind!r}")
    asked: dict[str, Any] = {"pages_only": body.pages_only, "kind": body.kind, "subject": body.subject}
    return webhooks.add(hub_of(request).control, body.url, **asked, who=_admin(caller), now_ms=now_ms())


@router.post("/api/v1/webhooks/{number}/test")
def test(request: Request, number: Number, caller: Operator) -> dict[str, int]:
    return {"delivery": webhooks.test(hub_of(request).control, number, who=_admin(caller), now_ms=now_ms())}


@router.post("/api/v1/webhooks/{number}/remove")
def remove(request: Request, number: Number, caller: Operator) -> dict[str, int]:
    webhooks.remove(hub_of(request).control, number, who=_admin(caller), now_ms=now_ms())
    return {"removed": number}


def _admin(caller: Caller) -> str:
    if caller.role != "admin":
        raise HTTPException(403, f"expected a token with the role admin, got {caller.role}")
    return caller.name
