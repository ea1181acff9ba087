"""Remote configuration: what operators set, and what that makes of each device's. Pure but for the table `configs`.

Settings are set for all devices, for a fleet, or for one device; the narrower scope wins, key by key, and the hub's own
configuration (`hub serve`) is the widest. A key is a field of `desired.Config`, or `field.inner` where the field has
fields itself.
Every change is a further row with all settings of its scope: nothing is overwritten, and its number is the `version`
that devices tell of in events. The conductor writes what is in force into the desired documents at its next tick.

Nothing is kept that would be out of its range on any device, in whatever way the scopes meet there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin

import msgspec
import sqlalchemy as sa

from edgewright_contracts.codec import Name, decode
from edgewright_contracts.desired import DESIRED_BYTES, Config, Samples
from edgewright_contracts.errors import ContractError, RequestError

from ..storage import control
from . import sampling
from .desired_documents import spread

Scope = Literal["all", "fleet", "device"]
Value = bool | int | float | str | None
HISTORY: Final = 100  # changes that are shown
_LOG = logging.getLogger(__name__)


def _keys() -> Iterable[str]:
    for field in msgspec.structs.fields(Config):
        options = get_args(field.type)
        inner = next((t for t in (field.type, *options) if isinstance(t, type) and issubclass(t, msgspec.Struct)), None)
        if inner is not None:
            yield from (f"{field.name}.{one.name}" for one in msgspec.structs.fields(inner))
        if inner is None or options:  # what may be None as a whole can be set to that
            yield field.name


KEYS: Final = tuple(key for key in _keys() if key != "version")
WORDS: Final = {f.name: get_args(f.type) for f in msgspec.structs.fields(Config) if get_origin(f.type) is Literal}


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change. No device and no fleet: for all devices. `reset` forgets what the scope had before."""

    fleet: Annotated[str, msgspec.Meta(max_length=64)] = ""
    devices: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1000)] = ()
    settings: dict[str, Value] = {}
    reset: bool = False
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class Subject(NamedTuple):
    scope: Scope
    name: str  # of the device or fleet; "" for all


class Entry(NamedTuple):
    version: int
    settings: Mapping[str, Value]


Latest = Mapping[Subject, Entry]  # what is in force, of each scope that was ever set


class Configurations:
    """What is in force, by device; made anew only when a setting or the size of the fleet has changed."""

    def __init__(self, base: Config) -> None:
        self.base = base
        self._read: tuple[Latest, int] = ({}, 0)
        self._known: dict[tuple[str, str], Config] = {}
        self._sampled: Mapping[str, Samples] = {}

    def read(self, connection: sa.Connection, devices: int) -> None:
        found = (latest(connection), devices)
        if found != self._read:
            self._read, self._known = found, {}
        self._sampled = sampling.wanted(connection)

    def of(self, device: str, fleet: str) -> Config:
        """Settings that this release does not accept any more are logged, and the hub's own configuration stands."""
        entries, devices = self._read
        key = (device if Subject("device", device) in entries else "", fleet)
        if key not in self._known:
            try:
                config = resolved(self.base, entries, *key)
            except ContractError as error:
                _LOG.error("the settings of %s are not followed: %s", key[0] or key[1], error)
                config = self.base
            self._known[key] = spread(config, devices)
        config = self._known[key]
        return msgspec.structs.replace(config, samples=self._sampled[device]) if device in self._sampled else config


def latest(connection: sa.Connection) -> Latest:
    c = control.configs.c
    newest = sa.select(sa.func.max(c.version)).group_by(c.scope, c.subject)
    rows = connection.execute(sa.select(c.version, c.scope, c.subject, c.settings).where(c.version.in_(newest)))
    return {Subject(row.scope, row.subject): Entry(row.version, row.settings) for row in rows}


def resolved(base: Config, entries: Latest, device: str, fleet: str) -> Config:
    """The configuration of a device of a fleet; "" is any other. Raises ContractError."""
    document = msgspec.to_builtins(base)
    for entry in _applying(entries, device, fleet).values():
        document["version"] = max(document["version"], entry.version)
        for key, value in entry.settings.items():
            outer, _, inner = key.partition(".")
            document[outer] = {**(document[outer] or {}), inner: value} if inner else value
    return decode(Config, msgspec.json.encode(document), name="config", limit=DESIRED_BYTES, wire="json")


def put(
    connection: sa.Connection, base: Config, asked: Asked, fleets: Mapping[str, str], *, who: str, now_ms: int
) -> None:
    """Keep what is asked, for the scopes that it changes.

    Raises RequestError for devices, fleets and keys that there are not, and for nothing asked; ContractError for a
    value out of its range on any device. Nothing is kept then.
    """
    if not asked.settings and not asked.reset:
        raise RequestError("nothing to change: name settings as key=value (--set), or ask for --reset")
    if unknown := sorted(set(asked.settings) - set(KEYS)):
        raise RequestError(f"{unknown[0]}: there is no such setting. There are {', '.join(KEYS)}")
    for key, value in asked.settings.items():
        if key in WORDS and value not in WORDS[key]:
            raise ContractError(key, " | ".join(WORDS[key]), repr(value))
    entries = dict(latest(connection))
    changed = {}
    for subject in subjects(asked.fleet, asked.devices, fleets):
        before = entries[subject].settings if subject in entries else {}
        after = _merged({} if asked.reset else before, asked.settings)
        if after != before:
            changed[subject] = after
    version = max((entry.version for entry in entries.values()), default=0)
    entries |= {subject: Entry(version + 1, settings) for subject, settings in changed.items()}
    own = {(s.name, fleets[s.name]) for s in entries if s.scope == "device" and s.name in fleets}
    for device, fleet in sorted({("", ""), *(("", fleet) for fleet in fleets.values()), *own}):
        resolved(base, entries, device, fleet)
    for subject, settings in changed.items():
        row = {"scope": subject.scope, "subject": subject.name, "settings": settings}
        connection.execute(control.configs.insert().values(**row, at_ms=now_ms, who=who, reason=asked.reason))


def subjects(fleet: str, devices: Iterable[str], fleets: Mapping[str, str]) -> list[Subject]:
    """What devices and a fleet name; neither: all. Raises RequestError for what is not enrolled."""
    named = sorted(set(devices))
    if named and fleet:
        raise RequestError("expected devices or a fleet, got both; name one of them")
    if unknown := [one for one in named if one not in fleets]:
        raise RequestError(f"no enrolled device is called {', '.join(unknown)}; `edgewright fleet devices` lists them")
    if fleet and fleet not in fleets.values():
        known = ", ".join(sorted(set(fleets.values()))) or "none"
        raise RequestError(f"no enrolled device is in a fleet {fleet!r}. Known fleets: {known}")
    if named:
        return [Subject("device", one) for one in named]
    return [Subject("fleet", fleet)] if fleet else [Subject("all", "")]


def describe(connection: sa.Connection, base: Config, subject: Subject, fleets: Mapping[str, str]) -> dict[str, Any]:
    """What is in force there, where each setting comes from, and the changes that led to it: JSON values only.

    `narrower`: settings of fleets and devices that override these for some.
    """
    entries = latest(connection)
    device = subject.name if subject.scope == "device" else ""
    fleet = fleets[device] if device else subject.name
    applying = _applying(entries, device, fleet)
    comes_from = {key: (source, entry) for source, entry in applying.items() for key in entry.settings}
    narrower = [
        {"scope": one.scope, "subject": one.name, "version": entry.version, "settings": entry.settings}
        for one, entry in sorted(entries.items())
        if one not in applying and entry.settings and _inside(one, subject, fleets)
    ]
    c = control.configs.c
    shown = list(applying) if device else [*applying, *(one for one in entries if _inside(one, subject, fleets))]
    mine = sa.tuple_(c.scope, c.subject).in_([tuple(one) for one in shown])
    rows = connection.execute(sa.select(control.configs).where(mine).order_by(c.version.desc()).limit(HISTORY))
    config = resolved(base, entries, device, fleet)
    return {
        "scope": subject.scope,
        "subject": subject.name,
        "version": config.version,
        "config": msgspec.to_builtins(config),
        "settings": [
            {"key": key, "value": entry.settings[key], "scope": source.scope, "subject": source.name,
             "version": entry.version}
            for key, (source, entry) in sorted(comes_from.items())
        ],
        "narrower": narrower,
        "history": [dict(row._mapping) for row in rows],
    }  # fmt: skip


def _applying(entries: Latest, device: str, fleet: str) -> dict[Subject, Entry]:
    """The widest first: what comes later wins."""
    wanted = (Subject("all", ""), Subject("fleet", fleet), Subject("device", device))
    return {one: entries[one] for one in wanted if one in entries}


def _inside(one: Subject, subject: Subject, fleets: Mapping[str, str]) -> bool:
    if subject.scope == "all":
        return one.scope != "all"
    return subject.scope == "fleet" and one.scope == "device" and fleets.get(one.name) == subject.name


def _merged(before: Mapping[str, Value], asked: Mapping[str, Value]) -> dict[str, Value]:
    """A field as a whole and its inner fields replace one another."""
    kept = {
        key: value
        for key, value in before.items()
        if not any(key.startswith(f"{new}.") or new.startswith(f"{key}.") for new in asked)
    }
    return {**kept, **asked}
