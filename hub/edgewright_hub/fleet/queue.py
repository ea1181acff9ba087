"""Devices that are expected: whole lists of them before they are built in, and those that wait for a person's yes.

A list gives each device its fleet and its attributes, and lets no other in. A device that came with a token of the kind
`queue` waits, under the key that it came with; it gets its certificate when it asks again after the yes, also when its
token has expired meanwhile. It counts as a use of the token, so that no more can wait than may come.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.codec import DeviceId
from edgewright_contracts.errors import Refused, RequestError

from ..storage import control
from ..storage.store import upsert
from . import inventory, tokens
from .attributes import Attributes, changed
from .tokens import Terms

LIST: Final = 10_000  # devices in one list


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: DeviceId
    fleet: str = ""  # "": that of the list
    set: dict[str, str] = {}  # attributes


class List(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`one_token`: for all of them together; else one for each."""

    devices: Annotated[tuple[Expected, ...], msgspec.Meta(min_length=1, max_length=LIST)]
    fleet: str = "default"
    expires_s: float = 30 * 86400.0
    one_token: bool = False


def expect(
    connection: sa.Connection, asked: List, pins: Mapping[str, str], *, who: str, now_ms: int
) -> list[tuple[str, str]]:
    """(device, token) of each; nothing is kept of a list that is refused. `pins`: root_sha256 and ca_sha256.

    Raises Refused for devices that are enrolled, RequestError for one that is named twice, ContractError.
    """
    names = [one.device for one in asked.devices]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise RequestError(f"expected each device once, got {', '.join(twice[:5])} more than once")
    d = control.devices.c
    enrolled = set(connection.execute(sa.select(d.id).where(d.state == "enrolled")).scalars())
    if known := sorted(enrolled.intersection(names)):
        more = f" and {len(known) - 5} more" if len(known) > 5 else ""
        raise Refused(f"{', '.join(known[:5])}{more} are enrolled already; leave them out of the list")
    common: dict[str, Any] = {"expires_s": asked.expires_s, **pins, "now_ms": now_ms, "kind": "list"}
    shared = ""
    if asked.one_token:
        shared = tokens.make(connection, uses=len(names), pattern=".*", fleet=asked.fleet, **common)
    out, rows = [], []
    for one in asked.devices:
        fleet = one.fleet or asked.fleet
        attributes = msgspec.to_builtins(changed(Attributes(), one.set))
        token = shared or tokens.make(connection, uses=1, pattern=re.escape(one.device), fleet=fleet, **common)
        secret = tokens.hash_of(tokens.parse(token).secret)
        rows.append(
            {"device": one.device, "token": secret, "fleet": fleet, "attributes": attributes, "state": "listed",
             "key_sha256": "", "since_ms": now_ms}
        )  # fmt: skip
        out.append((one.device, token))
    upsert(connection, control.expected, rows, keys=["device"])
    inventory.note(connection, "", "expect", f"{len(names)} devices: {names[0]} ...", who=who, now_ms=now_ms)
    return out


def place(connection: sa.Connection, device: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(control.expected).where(control.expected.c.device == device)).one_or_none()


def wait(
    connection: sa.Connection, device: str, before: sa.Row[Any] | None, given: Terms, key: str, *, now_ms: int
) -> None:
    """The device waits, if it does not yet. Raises Refused."""
    if before is not None:
        if before.state == "refused":
            raise Refused(f"{device}: an operator of the hub refused it")
        if before.token != given.hash or before.key_sha256 != key:
            raise Refused(f"another device is expected as {device}; take another id, or ask the hub's operator")
        return
    tokens.spend(connection, given.hash)
    row = {"device": device, "token": given.hash, "fleet": given.fleet, "attributes": {}, "state": "waiting",
           "key_sha256": key, "since_ms": now_ms}  # fmt: skip
    connection.execute(control.expected.insert().values(**row))
    inventory.note(connection, device, "waits", f"fleet {given.fleet}", who=device, now_ms=now_ms)


def waiting(connection: sa.Connection) -> list[dict[str, Any]]:
    """Who is expected and not enrolled yet, those that wait first; without what could let anybody in."""
    e = control.expected.c
    columns = (e.device, e.fleet, e.state, e.since_ms, e.key_sha256)
    rows = [dict(row._mapping) for row in connection.execute(sa.select(*columns).order_by(e.since_ms, e.device))]
    return sorted(rows, key=lambda row: row["state"] != "waiting")


def decide(connection: sa.Connection, devices: Sequence[str], *, accept: bool, who: str, now_ms: int) -> list[str]:
    """Say yes or no to devices that wait. Raises RequestError for one that does not."""
    e = control.expected
    for device in devices:
        mine = e.update().where(e.c.device == device, e.c.state.in_(("waiting", "refused")))
        if not connection.execute(mine.values(state="accepted" if accept else "refused")).rowcount:
            raise RequestError(f"{device[:80]!r} does not wait; `edgewright fleet queue` lists who does")
        inventory.note(connection, device, "accept" if accept else "refuse", "", who=who, now_ms=now_ms)
    return list(devices)
