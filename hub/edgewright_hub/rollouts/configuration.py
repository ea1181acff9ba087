"""Remote configuration: what operators set, and what that makes of each device's. Pure but for the table `configs`.

Settings are set for all devices, for a fleet, for those that a selector means, or for one device; the narrower scope
wins, key by key, of two selectors the one that was set last; the hub's own configuration (`hub serve`) is the widest.
A key is a field of `desired.Config`, or `field.inner` where the field has fields itself.
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
from edgewright_contracts.errors import ContractError, Refused, RequestError

from ..fleet import roster
from ..fleet.roster import named
from ..fleet.selectors import Device, parse
from ..storage import control
from . import sampling
from .desired_documents import spread

Scope = Literal["all", "fleet", "selector", "device"]
Value = bool | int | float | str | None
HISTORY: Final = 100  # changes that are shown
SELECTOR_CHARS: Final = 64  # a longer one is given a name, as a cohort
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
    """A change. No device, fleet or selector: for all devices. `reset` forgets what the scope had before."""

    fleet: Annotated[str, msgspec.Meta(max_length=64)] = ""
    devices: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1000)] = ()
    select: Annotated[str, msgspec.Meta(max_length=256)] = ""
    settings: dict[str, Value] = {}
    reset: bool = False
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class Subject(NamedTuple):
    scope: Scope
    name: str  # of the device or fleet, or the selector; "" for all


class Entry(NamedTuple):
    version: int
    settings: Mapping[str, Value]


Latest = Mapping[Subject, Entry]  # what is in force, of each scope that was ever set


class Configurations:
    """What is in force, by device; made anew only when a setting or the size of the fleet has changed."""

    def __init__(self, base: Config) -> None:
        self.base = base
        self._read: tuple[Latest, int] = ({}, 0)
        self._known: dict[tuple[str, str, tuple[Subject, ...]], Config] = {}
        self._sampled: Mapping[str, Samples] = {}
        self.changed = 0  # how often what is in force has

    def read(self, connection: sa.Connection, devices: int) -> None:
        found, sampled = (latest(connection), devices), sampling.wanted(connection)
        if found != self._read or sampled != self._sampled:
            self._read, self._known, self._sampled = found, {}, sampled
            self.changed += 1

    def of(self, device: Device) -> Config:
        """Settings that this release does not accept any more are logged, and the hub's own configuration stands."""
        entries, devices = self._read
        applying = _applying(entries, device)
        key = (device.id if Subject("device", device.id) in entries else "", device.fleet, tuple(applying))
        if key not in self._known:
            try:
                config = resolved(self.base, applying)
            except ContractError as error:
                _LOG.error("the settings of %s are not followed: %s", key[0] or key[1], error)
                config = self.base
            self._known[key] = spread(config, devices)
        config = self._known[key]
        return (
            msgspec.structs.replace(config, samples=self._sampled[device.id]) if device.id in self._sampled else config
        )


def latest(connection: sa.Connection) -> Latest:
    c = control.configs.c
    newest = sa.select(sa.func.max(c.version)).group_by(c.scope, c.subject)
    rows = connection.execute(sa.select(c.version, c.scope, c.subject, c.settings).where(c.version.in_(newest)))
    return {Subject(row.scope, row.subject): Entry(row.version, row.settings) for row in rows}


def resolved(base: Config, applying: Latest) -> Config:
    """The configuration that these make, the widest first. Raises ContractError."""
    document = msgspec.to_builtins(base)
    for entry in applying.values():
        document["version"] = max(document["version"], entry.version)
        for key, value in entry.settings.items():
            outer, _, inner = key.partition(".")
            document[outer] = {**(document[outer] or {}), inner: value} if inner else value
    return decode(Config, msgspec.json.encode(document), name="config", limit=DESIRED_BYTES, wire="json")


def put(
    connection: sa.Connection, base: Config, asked: Asked, devices: Mapping[str, Device], *, who: str, now_ms: int
) -> None:
    """Keep what is asked, for the scopes that it changes.

    Raises RequestError for devices, fleets and keys that there are not, and for nothing asked; Refused for a selector
    that means nobody, unless it is only forgotten; ContractError for a value out of its range on any device. Nothing
    is kept then.
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
    for subject in subjects(asked.fleet, asked.devices, asked.select, devices, named(connection)):
        if subject.scope == "selector" and asked.settings and not roster.meant(parse(subject.name), devices.values()):
            raise Refused(
                f"the selector {subject.name} means no enrolled device; `edgewright fleet devices` lists them"
            )
        before = entries[subject].settings if subject in entries else {}
        after = _merged({} if asked.reset else before, asked.settings)
        if after != before:
            changed[subject] = after
    version = max((entry.version for entry in entries.values()), default=0)
    entries |= {subject: Entry(version + 1, settings) for subject, settings in changed.items()}
    newcomers = [Device("", fleet=fleet) for fleet in {"", *(one.fleet for one in devices.values())}]
    met = [_applying(entries, device) for device in (*newcomers, *devices.values())]
    for applying in {tuple(one): one for one in met}.values():
        resolved(base, applying)
    for subject, settings in changed.items():
        row = {"scope": subject.scope, "subject": subject.name, "settings": settings}
        connection.execute(control.configs.insert().values(**row, at_ms=now_ms, who=who, reason=asked.reason))


def subjects(
    fleet: str, names: Iterable[str], select: str, devices: Mapping[str, Device], cohorts: Iterable[str]
) -> list[Subject]:
    """What devices, a fleet or a selector name; none of them: all. Raises RequestError for what there is not."""
    wanted = sorted(set(names))
    if sum(map(bool, (wanted, fleet, select))) > 1:
        raise RequestError("expected devices, a fleet or a selector, got more than one; name one of them")
    if unknown := [one for one in wanted if one not in devices]:
        raise RequestError(f"no enrolled device is called {', '.join(unknown)}; `edgewright fleet devices` lists them")
    fleets = {one.fleet for one in devices.values()}
    if fleet and fleet not in fleets:
        known = ", ".join(sorted(fleets)) or "none"
        raise RequestError(f"no enrolled device is in a fleet {fleet!r}. Known fleets: {known}")
    if select:
        text = str(roster.known(parse(select), cohorts))
        if len(text) > SELECTOR_CHARS:
            raise RequestError(
                f"expected a selector of at most {SELECTOR_CHARS} characters, got {len(text)}; give it a name "
                "(`edgewright fleet cohort NAME --select ...`) and set it for cohort=NAME"
            )
        return [Subject("selector", text)]
    if wanted:
        return [Subject("device", one) for one in wanted]
    return [Subject("fleet", fleet)] if fleet else [Subject("all", "")]


def told(
    connection: sa.Connection,
    base: Config,
    fleet: str,
    names: Iterable[str],
    select: str,
    devices: Mapping[str, Device],
) -> list[dict[str, Any]]:
    """Of each subject: `describe`. Raises RequestError: `subjects`."""
    wanted = subjects(fleet, names, select, devices, named(connection))
    return [describe(connection, base, one, devices) for one in wanted]


def describe(
    connection: sa.Connection, base: Config, subject: Subject, devices: Mapping[str, Device]
) -> dict[str, Any]:
    """What is in force there, where each setting comes from, and the changes that led to it: JSON values only.

    `narrower`: settings of fleets, selectors and devices that override these for some.
    """
    entries = latest(connection)
    applying = _applying(entries, _example(subject, devices))
    if subject.scope != "device":  # of selectors, only itself
        applying = {one: entry for one, entry in applying.items() if one.scope != "selector"}
        applying |= {subject: entries[subject]} if subject in entries else {}
    comes_from = {key: (source, entry) for source, entry in applying.items() for key in entry.settings}
    narrower = [
        {"scope": one.scope, "subject": one.name, "version": entry.version, "settings": entry.settings}
        for one, entry in sorted(entries.items())
        if one not in applying and entry.settings and _inside(one, subject, devices)
    ]
    c = control.configs.c
    shown = [*applying, *(one for one in entries if one not in applying and _inside(one, subject, devices))]
    mine = sa.tuple_(c.scope, c.subject).in_([tuple(one) for one in shown])
    rows = connection.execute(sa.select(control.configs).where(mine).order_by(c.version.desc()).limit(HISTORY))
    config = resolved(base, applying)
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


def _applying(entries: Latest, device: Device) -> dict[Subject, Entry]:
    """The widest first: what comes later wins."""
    mine = {one: entry for one, entry in entries.items() if one.scope == "selector" and parse(one.name).means(device)}
    selectors = sorted(mine, key=lambda one: mine[one].version)
    wanted = (Subject("all", ""), Subject("fleet", device.fleet), *selectors, Subject("device", device.id))
    return {one: entries[one] for one in wanted if one in entries}


def _example(subject: Subject, devices: Mapping[str, Device]) -> Device:
    """A device that nothing narrower than the subject means, or the device itself."""
    if subject.scope == "device":
        return devices[subject.name]
    return Device("", fleet=subject.name if subject.scope == "fleet" else "")


def _inside(one: Subject, subject: Subject, devices: Mapping[str, Device]) -> bool:
    """Whether a narrower subject says something for devices that the wider one means."""
    if subject.scope == "device":
        return False
    if subject.scope == "all":
        return one.scope != "all"
    if subject.scope == "selector":
        return one.scope == "device" and one.name in devices and parse(subject.name).means(devices[one.name])
    if one.scope == "selector":
        return any(parse(one.name).means(device) for device in devices.values() if device.fleet == subject.name)
    return one.scope == "device" and one.name in devices and devices[one.name].fleet == subject.name


def _merged(before: Mapping[str, Value], asked: Mapping[str, Value]) -> dict[str, Value]:
    """A field as a whole and its inner fields replace one another."""
    kept = {
        key: value
        for key, value in before.items()
        if not any(key.startswith(f"{new}.") or new.startswith(f"{key}.") for new in asked)
    }
    return {**kept, **asked}
