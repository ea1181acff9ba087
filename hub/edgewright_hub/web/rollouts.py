"""The API of rollouts.

GET  /api/v1/rollouts, /api/v1/rollouts/ID
POST /api/v1/rollouts?force=true                      a specification; answers with the rollout
POST /api/v1/rollouts/plan?force=true                 likewise; answers with what it would do, and nothing moves
POST /api/v1/rollouts/ID/approve                      {digest}: who asks consents to just that package
POST /api/v1/rollouts/ID/conclude                     {answer: "promote" | "take back"}: of an experiment
POST /api/v1/rollouts/ID/pause|resume|abort|revert    {reason}

Whoever asks is named in the audit by the token.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgewright_contracts.codec import decode
from edgewright_contracts.errors import ContractError

from ..rollouts.conductor import Verb
from ..rollouts.experiment import Answer
from ..rollouts.specification import RolloutSpec
from .api import SPEC_BYTES, Operator, Reader, body_of, hub_of, now_ms

router = APIRouter()


class Consent(BaseModel):
    digest: str = Field(max_length=64)


class Decision(BaseModel):
    answer: Answer


class Why(BaseModel):
    reason: str = Field(default="", max_length=500)


@router.get("/api/v1/rollouts")
def rollouts(request: Request, _: Reader) -> list[dict[str, Any]]:
    return hub_of(request).conductor.rollouts()


@router.get("/api/v1/rollouts/{rollout:path}")
def one_rollout(request: Request, rollout: str, _: Reader) -> dict[str, Any]:
    return hub_of(request).conductor.rollout(rollout)


@router.post("/api/v1/rollouts", status_code=201)
async def create_rollout(request: Request, caller: Operator, force: bool = False) -> dict[str, Any]:
    """`force`: devices that rest from the model are given it all the same."""
    spec, conductor = await _spec(request), hub_of(request).conductor
    name = await run_in_threadpool(conductor.create_rollout, spec, who=caller.name, now_ms=now_ms(), force=force)
    return await run_in_threadpool(conductor.rollout, name)


@router.post("/api/v1/rollouts/plan")
async def plan(request: Request, _: Reader, force: bool = False) -> dict[str, Any]:
    spec, conductor = await _spec(request), hub_of(request).conductor
    return await run_in_threadpool(conductor.plan, spec, now_ms=now_ms(), force=force)


@router.post("/api/v1/rollouts/{rollout:path}/approve")
def approve(request: Request, rollout: str, body: Consent, caller: Operator) -> dict[str, Any]:
    conductor = hub_of(request).conductor
    conductor.approve(rollout, body.digest, who=caller.name, now_ms=now_ms())
    return conductor.rollout(rollout)


@router.post("/api/v1/rollouts/{rollout:path}/conclude")
def conclude(request: Request, rollout: str, body: Decision, caller: Operator) -> dict[str, Any]:
    conductor = hub_of(request).conductor
    conductor.conclude(rollout, body.answer, who=caller.name, now_ms=now_ms())
    return conductor.rollout(rollout)


@router.post("/api/v1/rollouts/{rollout:path}/{verb}")
def act_on_rollout(
    request: Request, rollout: str, verb: Verb, caller: Operator, body: Why | None = None
) -> dict[str, Any]:
    conductor = hub_of(request).conductor
    conductor.command(rollout, verb, who=caller.name, now_ms=now_ms(), reason=body.reason if body else "")
    return conductor.rollout(rollout)


async def _spec(request: Request) -> RolloutSpec:
    """A selector that is there and empty is refused: it would mean every device, and nobody asks for that so."""
    body = await body_of(request, SPEC_BYTES)
    spec = decode(RolloutSpec, body, name="rollout", limit=SPEC_BYTES, wire="json")
    if not spec.selector.strip() and "selector" in msgspec.json.decode(body):
        raise ContractError("rollout.selector", "whom it means, or no such field for all devices", "an empty one")
    return spec
