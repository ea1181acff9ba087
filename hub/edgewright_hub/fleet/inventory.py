"""What operators do to devices: say what they are, hold and release them, name cohorts; and what became of each.

Every change of a device is an entry of the audit log with the device as its subject, written in the same transaction;
`history` is those entries and the device's own events, the newest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.codec import Name
from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_contracts.topics import DEVICE

from ..storage import control, telemetry
from ..storage.store import upsert
from . import roster
from .attributes import changed, shown
from .selectors import SELECTOR_CHARS, Device, parse

HISTORY: Final = 100  # entries of one device that are shown
COHORTS: Final = 200

Reason = Annotated[str, msgspec.Meta(max_length=500)]


class Whom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices by name, or those that a selector means: one of the two."""

    devices: Annotated[tuple[Name, ...], msgspec.Meta(max_length=10_000)] = ()
    select: Annotated[str, msgspec.Meta(max_length=SELECTOR_CHARS)] = ""


def named(whom: Whom, fleet: Mapping[str, Device], cohorts: Iterable[str]) -> list[str]:
    """Ids. Raises RequestError for what there is not, Refused for a selector that means none, ContractError."""
    if bool(whom.devices) == bool(whom.select):
        raise RequestError("expected devices or a selector (--select), one of them")
    if unknown := sorted(set(whom.devices) - set(fleet)):
        raise RequestError(f"no enrolled device is called {', '.join(unknown)}; `edgewright fleet devices` lists them")
    if whom.devices:
        return sorted(set(whom.devices))
    found = roster.meant(roster.known(parse(whom.select), cohorts), fleet.values())
    if not found:
        raise Refused(f"the selector {whom.select} means no enrolled device; `edgewright fleet devices` lists them")
    return found


def describe(
    connection: sa.Connection, devices: Iterable[str], pairs: Mapping[str, str], *, who: str, now_ms: int
) -> int:
    """Say this of the devices (`attributes.changed`); how many of them that changes. Raises ContractError."""
    d = control.devices
    names = list(devices)
    wanted = set(names)
    said = ", ".join(f"{key}={value}" for key, value in pairs.items())
    number = 0
    for row in connection.execute(sa.select(d.c.id, d.c.attributes)).all():
        before = roster.attributes_of(row.attributes)
        if row.id in wanted and (after := changed(before, pairs)) != before:
            document = msgspec.to_builtins(after)
            connection.execute(d.update().where(d.c.id == row.id).values(attributes=document))
            note(connection, row.id, "set", said, who=who, now_ms=now_ms)
            number += 1
    return number


def hold(connection: sa.Connection, devices: Iterable[str], *, held: bool, reason: str, who: str, now_ms: int) -> int:
    """Let nothing change on the devices from now on, or again; how many of them were not so before."""
    d = control.devices
    number = 0
    for device in devices:
        other = d.update().where(d.c.id == device, d.c.held.is_(not held)).values(held=held)
        if connection.execute(other).rowcount:
            note(connection, device, "hold" if held else "release", reason, who=who, now_ms=now_ms)
            number += 1
    return number


def name_cohort(connection: sa.Connection, name: str, text: str, *, who: str, now_ms: int) -> None:
    """The cohort is whom the selector means, from now on. Raises ContractError, Refused."""
    if not DEVICE.match(name):
        raise ContractError("cohort", "a name of a-z, 0-9 and -, at most 63 characters", repr(name[:80]))
    selector = parse(text)
    if "cohort" in selector.keys:
        raise ContractError("selector", "no other cohort in a cohort", text)
    known = roster.named(connection)
    if name not in known and len(known) >= COHORTS:
        raise Refused(f"there are {COHORTS} cohorts, which is the most; remove one with `fleet cohort NAME --remove`")
    row = {"name": name, "selector": str(selector), "at_ms": now_ms, "who": who}
    upsert(connection, control.cohorts, [row], keys=["name"])
    note(connection, name, "cohort", str(selector), who=who, now_ms=now_ms)


def remove_cohort(connection: sa.Connection, name: str, used: Iterable[str], *, who: str, now_ms: int) -> None:
    """`used`: selectors that are in force. Raises RequestError, or Refused while one of them names it."""
    for text in used:
        if any(one.key == "cohort" and one.pattern == name for a in parse(text).alternatives for one in a):
            raise Refused(f"the cohort {name} is used by {text}; end that rollout or reset that setting first")
    if not connection.execute(control.cohorts.delete().where(control.cohorts.c.name == name)).rowcount:
        raise RequestError(f"no cohort is called {name!r}; `edgewright fleet cohort` lists them")
    note(connection, name, "remove cohort", "", who=who, now_ms=now_ms)


def note(connection: sa.Connection, subject: str, what: str, detail: str, *, who: str, now_ms: int) -> None:
    row = {"at_ms": now_ms, "who": who, "what": what, "detail": detail, "subject": subject}
    connection.execute(control.audit.insert().values(**row))


def show(ours: sa.Connection, theirs: sa.Connection, device: str, seen: Device | None) -> dict[str, Any]:
    """A device: what is known, desired and reported of it, what was refused, its history. JSON values only.

    `ours` is of hub.db, `theirs` of telemetry.db, `seen` what the roster has of it while it is enrolled. Raises
    RequestError.
    """
    row = ours.execute(sa.select(control.devices).where(control.devices.c.id == device)).one_or_none()
    if row is None:
        raise RequestError(f"no device is called {device[:80]!r}; `edgewright fleet devices` lists them")
    desired = ours.execute(sa.select(control.desired).where(control.desired.c.device == device)).one_or_none()
    said = theirs.execute(sa.select(telemetry.devices).where(telemetry.devices.c.device == device)).one_or_none()
    refused = sa.select(telemetry.refusals).where(telemetry.refusals.c.device == device)
    p = control.packages.c
    versions = {one.digest: one.version for one in ours.execute(sa.select(p.digest, p.version))}
    birth = (said.birth if said else None) or {}
    return {
        "device": device,
        "fleet": row.fleet,
        "state": row.state,
        "held": bool(row.held),
        "attributes": shown(roster.attributes_of(row.attributes)),
        "hardware": seen.hardware if seen else "",
        "cohorts": list(seen.cohorts) if seen else [],
        "enrolled_ms": row.enrolled_ms,
        "online": bool(said and said.online),
        "last_seen_ms": said.last_seen_ms if said else None,
        "next_due_ms": said.next_due_ms if said else None,
        "agent": birth.get("agent"),
        "desired_rev": desired.rev if desired else None,
        "reported_rev": said.desired_rev if said else None,
        "models": _models(desired.document if desired else {}, birth, said, versions),
        "refusals": [dict(one._mapping) for one in theirs.execute(refused)],
        "history": history(ours, theirs, device),
    }


def history(ours: sa.Connection, theirs: sa.Connection, device: str) -> list[dict[str, Any]]:
    """Who did what to it and what it said of its updates, the newest first; {at_ms, who, what, detail}."""
    a, e = control.audit.c, telemetry.events.c
    done = ours.execute(
        sa.select(a.at_ms, a.who, a.what, a.detail).where(a.subject == device).order_by(a.id.desc()).limit(HISTORY)
    )
    heard = theirs.execute(sa.select(telemetry.events).where(e.device == device).order_by(e.id.desc()).limit(HISTORY))
    rows = [dict(row._mapping) for row in done]
    for row in heard:
        what = f"{row.model}: {row.before} to {row.after}" if row.model else f"{row.before} to {row.after}"
        rows.append({"at_ms": row.at_ms, "who": device, "what": what, "detail": row.reason})
    return sorted(rows, key=lambda one: -int(one["at_ms"]))[:HISTORY]


def _models(desired: Any, birth: Any, said: Any, versions: Mapping[str, str]) -> list[dict[str, Any]]:
    """By name: what it shall run, and what it said it runs: in its newest window, else in its last birth."""
    wanted = {one["name"]: one for one in desired.get("models", ())}
    slots = {one["model"]: one for one in birth.get("slots", ()) if one["state"] in ("active", "probation")}
    newest = said.digest if said is not None else None
    found = []
    for name in sorted({*wanted, *slots}):
        shall, has = wanted.get(name, {}), slots.get(name, {})
        digest = shall.get("digest")
        if newest is not None and digest is not None and newest == digest[:16]:
            has = {"digest": digest, "version": versions.get(digest)}
        found.append(
            {
                "model": name,
                "desired": digest,
                "desired_version": versions.get(digest or ""),
                "rollout": shall.get("rollout", ""),
                "reported": has.get("digest"),
                "reported_version": has.get("version"),
                "agrees": has.get("digest") == digest,
            }
        )
    return found
