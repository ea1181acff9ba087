"""Enrolment: a token and a signing request in, a certificate and the two things to trust out.

Guarantee: one use of the token, one certificate; a lost answer may be asked for again with the same key at no cost. An
id that is enrolled with another key is refused, unless the token was made for exactly this id: whoever holds a token
for a whole fleet must not be able to take over a device that already works. A token of the kind `list` lets in only the
devices that were `expected` under it; with one of the kind `queue` a device waits until a person says yes (`queue`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec
import sqlalchemy as sa

from edgewright_contracts.errors import Refused, RequestError

from ..storage import control
from ..storage.store import upsert
from . import queue, tokens
from .ca import Authority, Signed


class Request(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    device: str
    csr: str  # PEM


def enrol(engine: sa.Engine, authority: Authority, request: Request, *, now_ms: int) -> str | None:
    """The device's certificate, PEM; None: it waits for a person's yes. Raises ContractError or Refused."""
    token = tokens.parse(request.token)
    signed = authority.sign(request.csr, request.device, now=datetime.fromtimestamp(now_ms / 1000, UTC))
    devices = control.devices
    with engine.begin() as connection:
        known = connection.execute(sa.select(devices).where(devices.c.id == request.device)).one_or_none()
        place = queue.place(connection, request.device)
        asked = (tokens.hash_of(token.secret), signed.key_sha256)
        accepted = place is not None and place.state == "accepted" and (place.token, place.key_sha256) == asked
        given = tokens.terms(connection, token.secret, request.device, now_ms=None if accepted else now_ms)
        listed = place if place is not None and place.token == given.hash else None
        if known is None or known.key_sha256 != signed.key_sha256 or known.state != "enrolled":
            exact = given.pattern in {request.device, re.escape(request.device)}
            if known is not None and known.state == "enrolled" and not exact:
                raise Refused(
                    f"{request.device} is enrolled already with another key. If its key was lost, make a token for "
                    f"exactly this id: edgewright hub token --pattern {request.device}"
                )
            if given.kind == "queue" and not accepted:
                queue.wait(connection, request.device, place, given, signed.key_sha256, now_ms=now_ms)
                return None
            if given.kind == "list" and listed is None:
                raise Refused(f"token: it is for the devices of a list, and {request.device} is not among them")
            if not accepted:  # else the use was spent when it began to wait
                tokens.spend(connection, given.hash)
        fleet = listed.fleet if listed is not None else given.fleet
        row = {
            "id": request.device,
            "fleet": fleet,
            "enrolled_ms": now_ms,
            "serial": signed.serial,
            "state": "enrolled",
            "key_sha256": signed.key_sha256,
        }
        if listed is not None:
            row["attributes"] = listed.attributes
            connection.execute(control.expected.delete().where(control.expected.c.device == request.device))
        upsert(connection, devices, [row], keys=["id"])
        _issued(connection, signed, request.device, now_ms)
        connection.execute(
            control.audit.insert().values(
                at_ms=now_ms,
                who=request.device,
                what="enrol",
                detail=f"fleet {fleet}, certificate {signed.serial}",
                subject=request.device,
            )
        )
    return signed.certificate


def renew(engine: sa.Engine, authority: Authority, device: str, csr: str, *, key_sha256: str, now_ms: int) -> str:
    """A new certificate, PEM, for a device that just proved to hold the key `key_sha256`, and for no other key: whoever
    read a key once must not be able to give the device another. Nothing but the serial changes, so an answer that was
    lost costs nothing. Raises ContractError or Refused."""
    signed = authority.sign(csr, device, now=datetime.fromtimestamp(now_ms / 1000, UTC))
    if signed.key_sha256 != key_sha256:
        raise Refused("csr: expected the key of the certificate that is renewed; another key needs a new enrolment")
    devices = control.devices
    with engine.begin() as connection:
        connection.execute(devices.update().where(devices.c.id == device).values(serial=signed.serial))
        _issued(connection, signed, device, now_ms)
        connection.execute(
            control.audit.insert().values(
                at_ms=now_ms, who=device, what="renew", detail=f"certificate {signed.serial}", subject=device
            )
        )
    return signed.certificate


def _issued(connection: sa.Connection, signed: Signed, device: str, now_ms: int) -> None:
    row = {"serial": signed.serial, "device": device, "key_sha256": signed.key_sha256, "at_ms": now_ms}
    connection.execute(control.certificates.insert().values(**row))


def retire(engine: sa.Engine, device: str, *, who: str, now_ms: int) -> None:
    """Nothing lets this device in from now on, until it is enrolled with a new token. Raises RequestError."""
    devices = control.devices
    with engine.begin() as connection:
        changed = connection.execute(devices.update().where(devices.c.id == device).values(state="retired"))
        if changed.rowcount != 1:
            raise RequestError(f"no device is called {device[:80]!r}; `edgewright fleet devices` lists them")
        connection.execute(
            control.audit.insert().values(
                at_ms=now_ms, who=who, what="retire", detail=f"device {device}", subject=device
            )
        )


def retired(engine: sa.Engine) -> frozenset[str]:
    d = control.devices.c
    with engine.connect() as connection:
        return frozenset(connection.execute(sa.select(d.id).where(d.state != "enrolled")).scalars())


def outdated(engine: sa.Engine, device: str, key_sha256: str) -> str | None:
    """Why a certificate that this hub signed for `device` is not in force any more; None while it is.

    One read by primary key. A device that hub.db does not know (the hub was restored) is let in: its certificate is
    ours. The hub itself is no device.
    """
    with engine.connect() as connection:
        known = connection.execute(sa.select(control.devices).where(control.devices.c.id == device)).one_or_none()
    if known is None:
        return None
    if known.state != "enrolled":
        return f"it is {known.state}; `edgewright agent enroll` with a new token takes it back"
    if known.key_sha256 not in ("", key_sha256):
        return "its key was replaced by a later enrolment"
    return None
