"""Orders: what a person asks of one device once, and what became of it. A device that is away is asked when it comes.

    asked       it waits for the device
    under way   it went out while the device was connected; it goes out again at each birth, and every `AGAIN_MS`, for a
                broker keeps no command for a device that is away
    arrived     the device's answer is in telemetry.db, for as long as events stay there
    failed      the device says why it could not
    expired     nothing came in time; an answer that comes later still counts

A device obeys an order once, however often it hears it: its id is the command's. One order of a verb is open for a
device; asking again joins it. Cost of a turn: the events that came since the last one, and a row for each device that
an order is open for.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa

from edgewright_contracts.desired import Command, encode
from edgewright_contracts.errors import RequestError
from edgewright_contracts.topics import Kind

from ..storage import control, telemetry
from . import inventory

Verb = Literal["collect", "resample"]
State = Literal["asked", "under way", "arrived", "failed", "expired"]
Publish = Callable[[str, Kind, bytes, bool], None]  # device, kind of topic, body, retain

EVERY_S: Final = 2.0
HOURS: Final = 24.0
LONGEST_H: Final = 30 * 24.0
AGAIN_MS: Final = 600_000
LATE_MS: Final = 7 * 86_400_000  # so long after its end an answer still counts
SHOWN: Final = 100
_CHUNK: Final = 500  # devices in one SELECT
_OPEN: Final = ("asked", "under way")


class Orders:
    """From any thread; `publish` is called from the caller's."""

    def __init__(self, control_engine: sa.Engine, telemetry_engine: sa.Engine, publish: Publish) -> None:
        self._control, self._telemetry, self._publish = control_engine, telemetry_engine, publish
        self._turn = threading.Lock()
        self._read: int | None = None  # the last event that was looked at; None: none since this process began

    def place(self, device: str, verb: Verb, *, hours: float = HOURS, who: str, now_ms: int) -> dict[str, Any]:
        """The order, which may be open already. Raises RequestError for a device that is not enrolled."""
        if not 0.1 <= hours <= LONGEST_H:
            raise RequestError(f"expected 0.1 to {LONGEST_H:g} hours for an order, got {hours:g}")
        self.tick(now_ms)  # what is answered already is not joined
        o, d = control.orders.c, control.devices.c
        with self._control.begin() as connection:
            if not connection.execute(sa.select(d.id).where(d.id == device, d.state == "enrolled")).first():
                raise RequestError(f"no enrolled device is called {device!r}; `edgewright fleet devices` lists them")
            mine = sa.select(o.id).where(o.device == device, o.verb == verb, o.state.in_(_OPEN), o.expires_ms > now_ms)
            number = connection.execute(mine).scalar()
            if number is None:
                number = hashlib.sha256(f"{now_ms}{device}{verb}".encode()).hexdigest()[:16]
                row = {"id": number, "device": device, "verb": verb, "who": who, "at_ms": now_ms, "state": "asked"}
                more = {"expires_ms": now_ms + int(hours * 3600_000)}
                connection.execute(control.orders.insert().values(**row, **more))
                inventory.note(connection, device, f"order {verb}", number, who=who, now_ms=now_ms)
        self.tick(now_ms)
        return self.find(device, number)

    def tick(self, now_ms: int) -> None:
        """Send what may go out, take note of answers, end what is over."""
        o = control.orders
        with self._turn:
            with self._control.connect() as connection:
                watched = sa.select(o).where(o.c.expires_ms > now_ms - LATE_MS, o.c.state.in_((*_OPEN, "expired")))
                rows = connection.execute(watched).all()
            read, said = self._heard(rows)
            births = self._births([row.device for row in rows if row.state in _OPEN])
            changed = {row.id: self._after(row, said.get(row.id), births.get(row.device), now_ms) for row in rows}
            if any(changed.values()):
                with self._control.begin() as connection:
                    for number, after in changed.items():
                        if after:
                            connection.execute(o.update().where(o.c.id == number).values(**after))
            self._read = read

    def find(self, device: str, number: str) -> dict[str, Any]:
        """Raises RequestError."""
        o = control.orders
        with self._control.connect() as connection:
            row = connection.execute(sa.select(o).where(o.c.id == number, o.c.device == device)).one_or_none()
        if row is None:
            raise RequestError(f"{device[:63]!r} has no order {number[:16]!r}; `edgewright fleet collect` lists them")
        return dict(row._mapping)

    def listed(self, device: str = "") -> list[dict[str, Any]]:
        """The newest first, of all or one device. Raises RequestError for one that there is not."""
        o, d = control.orders, control.devices.c
        mine = sa.true() if not device else o.c.device == device
        query = sa.select(o).where(mine).order_by(o.c.at_ms.desc(), o.c.id).limit(SHOWN)
        with self._control.connect() as connection:
            rows = [dict(row._mapping) for row in connection.execute(query)]
            if device and not rows and connection.execute(sa.select(d.id).where(d.id == device)).first() is None:
                raise RequestError(f"no device is called {device[:80]!r}; `edgewright fleet devices` lists them")
        return rows

    def answer(self, device: str, number: str) -> dict[str, Any] | None:
        """What the device said, {at_ms, reason, text}; None while it has not, and when events that old are gone."""
        e = telemetry.events
        mine = (e.c.device == device, e.c.model == "", e.c.reason.contains(number, autoescape=True))
        with self._telemetry.connect() as connection:
            row = connection.execute(sa.select(e).where(*mine).order_by(e.c.id.desc()).limit(1)).first()
        return None if row is None else {"at_ms": row.at_ms, "reason": row.reason, "text": row.log}

    def _after(self, row: sa.Row[Any], said: Any, birth_ms: int | None, now_ms: int) -> dict[str, Any]:
        """The columns that change; the command goes out on the way. `birth_ms` None: the device is away."""
        if said is not None:
            state: State = "arrived" if said.reason.startswith("answer") else "failed"
            return {"state": state, "arrived_ms": said.arrived_ms, "said": "" if state == "arrived" else said.reason}
        if row.state == "expired":
            return {}
        if now_ms >= row.expires_ms:
            return {"state": "expired"}
        if birth_ms is None:
            return {}
        if row.sent_ms is not None and birth_ms < row.sent_ms and now_ms - row.sent_ms < AGAIN_MS:
            return {}
        command = Command(id=row.id, verb=row.verb, expires_at=row.expires_ms)
        self._publish(row.device, "command", encode(command), False)
        return {"state": "under way", "sent_ms": now_ms}

    def _heard(self, orders: Sequence[sa.Row[Any]]) -> tuple[int, dict[str, Any]]:
        """How far events were read, and the answers among them, by order."""
        e = telemetry.events.c
        with self._telemetry.connect() as connection:
            last = connection.execute(sa.select(sa.func.max(e.id))).scalar() or 0
            if not orders:
                return last, {}
            first = min(row.at_ms for row in orders)
            since = e.arrived_ms >= first if self._read is None else e.id > self._read
            query = sa.select(e.device, e.reason, e.arrived_ms).where(since, e.id <= last, e.model == "")
            rows = connection.execute(query.order_by(e.id)).all()
        asked = {(row.device, row.id): row.id for row in orders}
        words = ((row, word.rstrip(":")) for row in rows for word in row.reason.split()[:4])
        return last, {asked[row.device, word]: row for row, word in words if (row.device, word) in asked}

    def _births(self, devices: list[str]) -> dict[str, int]:
        """When those that are connected came."""
        d = telemetry.devices.c
        found: dict[str, int] = {}
        with self._telemetry.connect() as connection:
            for some in (devices[at : at + _CHUNK] for at in range(0, len(devices), _CHUNK)):
                rows = connection.execute(sa.select(d.device, d.birth_ms).where(d.device.in_(some), d.online))
                found |= {row.device: row.birth_ms or 0 for row in rows}
        return found
