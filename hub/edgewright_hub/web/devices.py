"""The API of devices: what they are, who is held, which cohorts there are, and all that is known of one.

GET  /api/v1/devices?select=SELECTOR    each in a few words
GET  /api/v1/devices/ID                 desired against reported, refusals, history
POST /api/v1/fleet/attributes           {devices | select, set: {site: …}}
POST /api/v1/fleet/hold | release       {devices | select, reason}
GET  /api/v1/fleet/cohorts              and PUT, DELETE /api/v1/fleet/cohorts/NAME
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from edgewright_contracts.codec import decode
from edgewright_contracts.errors import RequestError

from ..fleet import inventory, queue, roster
from ..fleet.attributes import shown
from ..fleet.inventory import Reason, Whom
from ..fleet.roster import attributes_of
from ..fleet.selectors import SELECTOR_CHARS, parse
from ..rollouts.evidence import Heard
from ..rollouts.state import ACTIVE
from ..storage import control, telemetry
from .api import SPEC_BYTES, Operator, Reader, body_of, hub_of, now_ms

LIST_BYTES: Final = 4 * 1024**2
T = TypeVar("T")

router = APIRouter()


class Said(Whom, frozen=True, kw_only=True, forbid_unknown_fields=True):
    set: Annotated[dict[str, str], msgspec.Meta(min_length=1, max_length=64)]


class Held(Whom, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: Reason = ""


class Cohort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    selector: Annotated[str, msgspec.Meta(max_length=SELECTOR_CHARS)]


@router.get("/api/v1/devices")
def devices(request: Request, _: Reader, select: str = "") -> list[dict[str, Any]]:
    """Every device, or those enrolled that a selector means: what it last said of itself, what its newest window ran,
    and how much it has reported."""
    hub = hub_of(request)
    selector, now = parse(select) if select else None, now_ms()
    with hub.telemetry.connect() as connection:
        said = {row.device: row for row in connection.execute(sa.select(telemetry.devices))}
        interrupted: dict[str, list[dict[str, Any]]] = {}
        for row in connection.execute(sa.select(telemetry.interruptions)):
            interrupted.setdefault(row.device, []).append(dict(row._mapping))
    with hub.control.connect() as connection:
        enrolled = connection.execute(sa.select(control.devices).order_by(control.devices.c.id)).all()
        fleet = hub.conductor.roster.read(connection)
        wanted = {row.device: row for row in connection.execute(sa.select(control.desired))}
    return [
        {
            "device": row.id,
            "fleet": row.fleet,
            "state": row.state,
            "held": bool(row.held),
            "attributes": shown(attributes_of(row.attributes)),
            "cohorts": list(fleet[row.id].cohorts) if row.id in fleet else [],
            "enrolled_ms": row.enrolled_ms,
            **_said(said.get(row.id), now),
            "desired": wanted[row.id].document if row.id in wanted else None,
            "interruptions": interrupted.get(row.id, []),
        }
        for row in enrolled
        if selector is None or (row.id in fleet and selector.means(fleet[row.id]))
    ]


def overdue(online: bool, next_due_ms: int | None, now_ms: int) -> bool:
    """Whether the connection of a device stands and its next report does not come."""
    return online and not Heard(online=True, last_seen_ms=0, next_due_ms=next_due_ms).present(now_ms)


def _said(row: Any, now_ms: int) -> dict[str, Any]:
    """What a device's row of telemetry.db tells; None: it has not said anything yet."""
    if row is None:
        nothing = dict.fromkeys(("last_seen_ms", "next_due_ms", "birth", "running"))
        return {"online": False, "overdue": False, **nothing, "windows": 0, "inferences": 0}
    running = {name: getattr(row, name) for name in ("device", "digest", "variant", "phase", "rollout")}
    return {
        "online": bool(row.online),
        "overdue": overdue(bool(row.online), row.next_due_ms, now_ms),
        "last_seen_ms": row.last_seen_ms,
        "next_due_ms": row.next_due_ms,
        "birth": row.birth,
        "running": running if row.digest is not None else None,
        "windows": row.windows,
        "inferences": row.inferences,
    }


@router.get("/api/v1/devices/{device:path}")
def one_device(request: Request, device: str, _: Reader) -> dict[str, Any]:
    hub = hub_of(request)
    with hub.control.connect() as ours, hub.telemetry.connect() as theirs:
        found = inventory.show(ours, theirs, device, hub.conductor.roster.read(ours).get(device))
    return {**found, "overdue": overdue(found["online"], found["next_due_ms"], now_ms())}


@router.post("/api/v1/fleet/attributes")
async def set_attributes(request: Request, caller: Operator) -> dict[str, Any]:
    asked = await _asked(request, Said, "attributes")
    return await run_in_threadpool(_change, request, asked, inventory.describe, pairs=asked.set, who=caller.name)


@router.post("/api/v1/fleet/hold")
async def hold(request: Request, caller: Operator) -> dict[str, Any]:
    asked = await _asked(request, Held, "hold")
    if not asked.reason.strip():
        raise RequestError("expected a reason (--reason): who finds the device held will want to know")
    more = {"reason": asked.reason, "who": caller.name}
    return await run_in_threadpool(_change, request, asked, inventory.hold, held=True, **more)


@router.post("/api/v1/fleet/release")
async def release(request: Request, caller: Operator) -> dict[str, Any]:
    asked = await _asked(request, Held, "release")
    more = {"reason": asked.reason, "who": caller.name}
    return await run_in_threadpool(_change, request, asked, inventory.hold, held=False, **more)


@router.get("/api/v1/fleet/cohorts")
def cohorts(request: Request, _: Reader) -> list[dict[str, Any]]:
    hub = hub_of(request)
    with hub.control.connect() as connection:
        fleet = hub.conductor.roster.read(connection).values()
        rows = connection.execute(sa.select(control.cohorts).order_by(control.cohorts.c.name)).all()
    return [{**row._mapping, "devices": sum(row.name in one.cohorts for one in fleet)} for row in rows]


@router.put("/api/v1/fleet/cohorts/{name:path}")
async def put_cohort(request: Request, name: str, caller: Operator) -> dict[str, Any]:
    asked = await _asked(request, Cohort, "cohort")

    def put() -> dict[str, Any]:
        hub = hub_of(request)
        with hub.control.begin() as connection:
            inventory.name_cohort(connection, name, asked.selector, who=caller.name, now_ms=now_ms())
            fleet = hub.conductor.roster.read(connection).values()
        return {"name": name, "selector": asked.selector, "devices": [one.id for one in fleet if name in one.cohorts]}

    return await run_in_threadpool(put)


@router.delete("/api/v1/fleet/cohorts/{name:path}")
def remove_cohort(request: Request, name: str, caller: Operator) -> dict[str, str]:
    with hub_of(request).control.begin() as connection:
        inventory.remove_cohort(connection, name, _in_force(connection), who=caller.name, now_ms=now_ms())
    return {"removed": name}


class Chosen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    devices: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=queue.LIST)]


@router.get("/api/v1/fleet/expected")
def expected(request: Request, _: Reader) -> list[dict[str, Any]]:
    with hub_of(request).control.connect() as connection:
        return queue.waiting(connection)


@router.post("/api/v1/fleet/expected")
async def expect(request: Request, caller: Operator) -> dict[str, Any]:
    """Answers with the tokens: this is the only time that they can be read."""
    asked = decode(queue.List, await body_of(request, LIST_BYTES), name="list", limit=LIST_BYTES, wire="json")
    hub = hub_of(request)
    pins = {"root_sha256": hub.registry.first_root_sha256, "ca_sha256": hub.authority.ca_sha256}

    def make() -> dict[str, Any]:
        with hub.control.begin() as connection:
            made = queue.expect(connection, asked, pins, who=caller.name, now_ms=now_ms())
        return {"tokens": [{"device": device, "token": token} for device, token in made]}

    return await run_in_threadpool(make)


@router.post("/api/v1/fleet/accept")
async def accept(request: Request, caller: Operator) -> dict[str, Any]:
    return await _decide(request, caller.name, accept=True)


@router.post("/api/v1/fleet/refuse")
async def refuse(request: Request, caller: Operator) -> dict[str, Any]:
    return await _decide(request, caller.name, accept=False)


async def _decide(request: Request, who: str, *, accept: bool) -> dict[str, Any]:
    asked = await _asked(request, Chosen, "devices")

    def decide() -> list[str]:
        with hub_of(request).control.begin() as connection:
            return queue.decide(connection, asked.devices, accept=accept, who=who, now_ms=now_ms())

    return {"devices": await run_in_threadpool(decide)}


async def _asked(request: Request, kind: type[T], name: str) -> T:
    return decode(kind, await body_of(request, SPEC_BYTES), name=name, limit=SPEC_BYTES, wire="json")


def _change(request: Request, whom: Whom, act: Callable[..., int], **more: Any) -> dict[str, Any]:
    hub = hub_of(request)
    with hub.control.begin() as connection:
        devices = inventory.named(whom, hub.conductor.roster.read(connection), roster.named(connection))
        number = act(connection, devices, now_ms=now_ms(), **more)
    return {"devices": devices, "changed": number}


def _in_force(connection: sa.Connection) -> list[str]:
    """Selectors that rollouts under way and settings go by."""
    r, c = control.rollouts.c, control.configs.c
    newest = sa.select(sa.func.max(c.version)).where(c.scope == "selector").group_by(c.subject)
    settings = connection.execute(sa.select(c.subject, c.settings).where(c.version.in_(newest)))
    found = [row.subject for row in settings if row.settings]
    for spec in connection.execute(sa.select(r.spec).where(r.state.in_((*ACTIVE, "done")))).scalars():
        texts = (spec.get("selector", ""), *spec.get("stages", ()))
        found += [text for text in texts if isinstance(text, str) and "=" in text]
    return found
