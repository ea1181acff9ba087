"""Who is in the fleet: every enrolled device as selectors see it, and the cohorts that operators named.

A cohort is a selector with a name; who is in it is asked anew each time, so a device that is moved to another site
changes its cohorts by that. `hardware` that nobody set is what the device says of itself in its birth.

Cost of `Roster.read`: about 3 µs for each device, and 13 µs more for each that changed; of `devices`, once, 20 µs each.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.built import built
from edgewright_contracts.errors import RequestError

from ..storage import control, telemetry
from .attributes import Attributes
from .selectors import Device, Selector, parse

HARDWARE_CHARS: Final = 64


class Roster:
    """Reads again and again what may have changed; a device is made anew only when its row did. From any thread."""

    def __init__(self, telemetry_engine: sa.Engine) -> None:
        self._telemetry = telemetry_engine
        self._lock = threading.Lock()
        self._heard_ms = -1
        self._said: dict[str, str] = {}  # hardware, by device
        self._cohorts: Mapping[str, Selector] = {}
        self._known: dict[str, tuple[Any, Device]] = {}  # with what it was made of

    def read(self, connection: sa.Connection) -> dict[str, Device]:
        """By id, in its order. `connection` is of hub.db."""
        with self._lock:
            self._hear()
            cohorts = named(connection)
            if cohorts != self._cohorts:
                self._cohorts, self._known = cohorts, {}
            known: dict[str, tuple[Any, Device]] = {}
            for name, fleet, held, document in _rows(connection):
                mark = (fleet, held, document, self._said.get(name, ""))
                before = self._known.get(name)
                known[name] = before if before and before[0] == mark else (mark, _device(name, *mark, cohorts))
            self._known = known
            return {name: device for name, (_, device) in known.items()}

    def _hear(self) -> None:
        """What devices said of their hardware since the last time."""
        d = telemetry.devices.c
        query = sa.select(d.device, d.birth, d.birth_ms).where(d.birth_ms >= self._heard_ms, d.birth.is_not(None))
        with self._telemetry.connect() as connection:
            for row in connection.execute(query):
                self._said[row.device] = _hardware(row.birth)
                self._heard_ms = max(self._heard_ms, row.birth_ms)


def named(connection: sa.Connection) -> dict[str, Selector]:
    """The cohorts, by name."""
    c = control.cohorts.c
    rows = connection.execute(sa.select(c.name, c.selector).order_by(c.name))
    return {row.name: parse(row.selector) for row in rows}


def meant(selector: Selector, devices: Iterable[Device]) -> list[str]:
    """Ids of the devices that it means, in their order."""
    return [device.id for device in devices if selector.means(device)]


def attributes_of(document: Any) -> Attributes:
    return msgspec.convert(document or {}, built(Attributes))


def known(selector: Selector, cohorts: Iterable[str]) -> Selector:
    """Itself, when it names only cohorts that there are. Raises RequestError."""
    names = set(cohorts)
    for one in (one for conditions in selector.alternatives for one in conditions):
        plain = one.pattern is not None and set(one.pattern).isdisjoint("*?")
        if one.key == "cohort" and plain and one.pattern not in names:
            there = ", ".join(sorted(names)) or "none"
            raise RequestError(f"no cohort is called {one.pattern!r}. Known cohorts: {there}")
    return selector


def _rows(connection: sa.Connection) -> Iterable[Any]:
    """Id, fleet, held, and attributes as text: to read the documents costs more than all the rest, and few change."""
    d = control.devices.c
    columns = (d.id, d.fleet, d.held, sa.cast(d.attributes, sa.Text))
    return connection.execute(sa.select(*columns).where(d.state == "enrolled").order_by(d.id))


def _device(
    name: str, fleet: str, held: bool, document: str | None, said: str, cohorts: Mapping[str, Selector]
) -> Device:
    attributes = attributes_of(json.loads(document or "{}"))
    device = Device(
        name,
        fleet=fleet,
        held=held,
        site=attributes.site,
        hardware=attributes.hardware or said,
        profile=attributes.profile,
        tz=attributes.tz,
        tags=attributes.tags,
    )
    return replace(device, cohorts=tuple(name for name, selector in cohorts.items() if selector.means(device)))


def _hardware(birth: Any) -> str:
    said = birth.get("hardware") if isinstance(birth, dict) else None
    model = said.get("model") or said.get("arch") if isinstance(said, dict) else ""
    return str(model or "")[:HARDWARE_CHARS]
