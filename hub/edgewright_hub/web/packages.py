"""The API of packages: publishing, their stages, where they come from, how they differ, and files that nothing needs.

PUT  /api/v1/blobs/SHA256                                                   a file of a package, by its publisher
POST /api/v1/targets?candidate=true                                         the owner's next list
GET  /api/v1/packages
POST /api/v1/packages/NAME/VERSION/approve | reopen | deprecate | revoke    {reason}
GET  /api/v1/packages/NAME/lineage
GET  /api/v1/packages/NAME/diff?old=VERSION&new=VERSION
POST /api/v1/gc                                                             {dry_run}
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgewright_contracts.built import built
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Manifest

from ..registry import garbage, lineage, stages
from ..registry.registry import TARGETS_BYTES
from ..rollouts import records
from ..rollouts.state import ACTIVE
from ..storage import control
from .api import Operator, Publisher, Reader, body_of, hub_of, now_ms

router = APIRouter()


class Decision(BaseModel):
    reason: str = Field(default="", max_length=500)


class Collection(BaseModel):
    dry_run: bool = False


@router.put("/api/v1/blobs/{sha256}")
async def put_blob(request: Request, sha256: str, _: Publisher) -> Response:
    new = await hub_of(request).registry.put_blob(sha256, request.stream())
    return Response(status_code=201 if new else 200)


@router.post("/api/v1/targets")
async def post_targets(request: Request, caller: Publisher, candidate: bool = False) -> dict[str, int]:
    """The owner's next list; `candidate`: what is new in it waits for an operator's approval."""
    hub = hub_of(request)
    body = await body_of(request, TARGETS_BYTES)
    version = await run_in_threadpool(hub.registry.post_targets, body, now=datetime.now(UTC), candidate=candidate)
    with hub.control.begin() as connection:
        connection.execute(
            control.audit.insert().values(
                at_ms=now_ms(), who=caller.name, what="publish", detail=f"targets version {version}"
            )
        )
    return {"version": version}


@router.get("/api/v1/packages")
def packages(request: Request, _: Reader) -> list[dict[str, Any]]:
    table = control.packages
    with hub_of(request).control.connect() as connection:
        rows = connection.execute(sa.select(table).order_by(table.c.name, table.c.published_ms)).all()
        blocked = records.blocked(connection)
    return [{**row._mapping, "blocked_by": blocked.get(row.digest)} for row in rows]


@router.post("/api/v1/packages/{name:path}/{version:path}/{verb}")
def decide(
    request: Request, name: str, version: str, verb: stages.Verb, body: Decision, caller: Operator
) -> dict[str, Any]:
    """`sent_back`: devices that are told to run something else from now on; `to`: which version each is, null: none of
    this name; `held`: those that follow when they are released. `rollouts`: those under way with it, which take it
    back from theirs within seconds."""
    hub, back = hub_of(request), list[str]()
    more: dict[str, Any] = {"reason": body.reason, "who": caller.name, "now_ms": now_ms()}
    if verb == "revoke":
        back = hub.conductor.revoke(name, version, **more)
    else:
        with hub.control.begin() as connection:
            stages.decide(connection, name, version, verb, **more)
    with hub.control.connect() as connection:
        row = stages.package(connection, name, version)
        r = control.rollouts.c
        mine = sa.select(r.id).where(r.state.in_(ACTIVE), r.name == name, r.spec["digest"].as_string() == row.digest)
        to, held = _after(connection, name, back)
        under_way = list(connection.execute(mine.order_by(r.created_ms)).scalars()) if verb == "revoke" else []
    found = {"name": name, "version": version, "digest": row.digest, "standing": stages.standing(row)}
    return {**found, "signed": row.state == "allowed", "sent_back": back, "to": to, "held": held, "rollouts": under_way}


def _after(connection: sa.Connection, name: str, devices: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """The version that each of these is told to run now; and those that are held."""
    d, p, h = control.desired.c, control.packages.c, control.devices.c
    mine = set(devices)
    versions = {row.digest: row.version for row in connection.execute(sa.select(p.digest, p.version))}
    told = dict.fromkeys(devices)
    for device, document in connection.execute(sa.select(d.device, d.document)) if mine else ():
        if device in mine:
            digest = next((one["digest"] for one in document["models"] if one["name"] == name), None)
            told[device] = versions.get(digest, digest[:16]) if digest else None
    held = connection.execute(sa.select(h.id).where(h.held).order_by(h.id)).scalars()
    return told, [one for one in held if one in mine]


@router.get("/api/v1/packages/{name:path}/lineage")
def show_lineage(request: Request, name: str, _: Reader) -> list[dict[str, Any]]:
    with hub_of(request).control.connect() as connection:
        versions, blocked = lineage.lineage(connection, name), records.blocked(connection)
    if not versions:
        raise RequestError(f"no package is called {name[:80]!r}; `edgewright registry list` lists them")
    return [{**one, "blocked_by": blocked.get(one["digest"])} for one in versions]


@router.get("/api/v1/packages/{name:path}/diff")
def diff(request: Request, name: str, old: str, new: str, _: Reader) -> dict[str, Any]:
    hub = hub_of(request)
    with hub.control.connect() as connection:
        before, after = (stages.package(connection, name, version).manifest for version in (old, new))
    return lineage.diff(
        msgspec.convert(before, built(Manifest)), msgspec.convert(after, built(Manifest)), hub.registry.blobs
    )


@router.post("/api/v1/gc")
def collect(request: Request, body: Collection, _: Operator) -> dict[str, Any]:
    hub = hub_of(request)
    with hub.control.connect() as ours, hub.telemetry.connect() as theirs:
        rollouts = hub.conductor.needed(ours, since_ms=now_ms() - garbage.RECENT_MS)
        needed = garbage.reasons(ours, theirs, hub.registry, rollouts)
        done = garbage.collect(ours, hub.registry, needed, now_s=time.time(), dry_run=body.dry_run)
    return {**done._asdict(), "dry_run": body.dry_run}
