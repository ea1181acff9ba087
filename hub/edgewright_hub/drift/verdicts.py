"""Verdicts on the streams of a `Watch`: what is said of each, since when and by which channels, and whether it wakes
somebody; and the same as people read it (`row`, `describe`): JSON values only.

A stream of a device is `learning` until a block of it was tested, and `ended` when its device went on; one of a cohort
is `ended` when none of its devices goes on. Until a baseline knows the day an alarm is no page: it may be the
evening.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import numpy as np

from edgewright_contracts.errors import RequestError

from . import skew
from .cohorts import Cohort
from .kinds import FEED, PARTS, evidence, kinds, severity
from .moves import Moved, widest
from .streams import BASELINES, EVIDENCE, OWN, SKEWED
from .watch import SHOWN, Key, Watch

Verdict = Literal["ok", "alarm", "skewed", "ended", "learning"]
TOLD: Final = ("alarm", "skewed")  # verdicts that a person is to hear of
KEY: Final = Key._fields


def verdict(watch: Watch, key: Key) -> Verdict:
    if key.scope == "cohort":
        if key not in watch.cohorts:
            return "ended"
        drifted, skewed = state(watch, key)
        return "alarm" if drifted else "skewed" if skewed else "ok"
    group, at = watch.stream(key)
    if group.streams.ended[at]:
        return "ended"
    drifted, skewed = state(watch, key)
    if drifted or skewed:
        return "alarm" if drifted else "skewed"
    return "ok" if group.streams.tested[at] else "learning"


def state(watch: Watch, key: Key) -> tuple[bool, bool]:
    """(drifted, always differed)."""
    if key.scope == "cohort":
        return watch.cohorts[key].alarm, watch.cohorts[key].skewed
    group, at = watch.stream(key)
    return bool(group.streams.alarm[at]), bool(group.streams.skew[at] == SKEWED)


def moves(watch: Watch, key: Key) -> tuple[Moved, ...]:
    """What moved in a stream of a device, or in those of a cohort's listed devices."""
    if key.scope == "cohort":
        devices = watch.cohorts[key].devices[:SHOWN] if key in watch.cohorts else ()
        return widest(moves(watch, key._replace(scope="device", subject=device)) for device in devices)
    if key.group not in watch.groups or key.subject not in watch.groups[key.group].streams.index:
        return ()
    group, at = watch.stream(key)
    found = group.moved(at) if group.streams.n[at, EVIDENCE] else ()
    return widest([found, skew.channels(group, at)]) if group.streams.skew[at] == SKEWED else found


def behind(watch: Watch, key: Key) -> tuple[int, int]:
    """(rows, blocks) of the devices that a cohort lists, else of all; rows as in the verdict of one device: what
    came since they moved, their past when they are skewed, else the open blocks."""
    now = watch.cohorts.get(key)
    if now is None:
        return 0, 0
    s = watch.groups[key.group].streams
    at = np.array([s.index[device] for device in now.devices], np.intp)
    if not at.size:
        every = watch.rows_of(key.group)[key.subject]
        at = every[~s.ended[every]]
    row = EVIDENCE if now.alarm else OWN if now.skewed else 0
    return int(s.n[at, row].sum()), int(s.blocks[at].sum())


def since(watch: Watch, key: Key) -> int:
    if key.scope == "cohort":
        return watch.cohorts[key].since_ms if key in watch.cohorts else 0
    group, at = watch.stream(key)
    if group.streams.skew[at] == SKEWED and not group.streams.alarm[at]:
        return int(group.streams.start_ms[at, OWN])
    return int(group.streams.since_ms[at])


def pages(watch: Watch, key: Key) -> bool:
    """Whether somebody is to be woken for a stream: it drifts, knows a whole day, and no cohort that pages for the
    same lists its device."""
    if not watch.known(key) or not state(watch, key)[0]:
        return False
    if key.scope == "cohort":
        streams = watch.groups[key.group].streams
        return any(streams.day[streams.index[device]] for device in watch.cohorts[key].devices)
    group, at = watch.stream(key)
    return bool(group.streams.day[at]) and not any(
        whole.alarm and key.subject in whole.devices and pages(watch, cohort_key)
        for cohort_key, whole in _wholes(watch, key)
    )


def _wholes(watch: Watch, key: Key) -> list[tuple[Key, Cohort]]:
    keys = (key._replace(scope="cohort", subject=name) for name in watch.cohorts_of(key.subject))
    return [(one, watch.cohorts[one]) for one in keys if one in watch.cohorts]


def alarms(watch: Watch, subject: str) -> set[Key]:
    """The alarms of a device or cohort, and of a cohort's devices. Raises RequestError for none."""
    mine = {k for k in watch.cohorts if k.subject == subject and verdict(watch, k) in TOLD}
    for group_key, group in watch.groups.items():
        cohort_key = Key("cohort", subject, *group_key)
        listed = watch.cohorts[cohort_key].devices if cohort_key in mine else ()
        beneath = watch.rows_of(group_key).get(subject, ()) if cohort_key in mine else ()
        for device in {subject, *listed, *(group.streams.devices[at] for at in beneath)}:
            key = Key("device", device, *group_key)
            if watch.known(key) and (device in listed or verdict(watch, key) in TOLD):
                mine.add(key)
    if not mine:
        raise RequestError(f"{subject!r} has no drift alarm; `edgewright fleet drift` lists them")
    return mine


# As people read them.


def row(watch: Watch, key: Key, now_ms: int) -> dict[str, Any]:
    return {
        **key._asdict(),
        "model": watch.references.model(key.digest),
        "state": _shown(watch, key),
        "verdict": verdict(watch, key),
        "since_ms": since(watch, key),
        "updated_ms": now_ms,
    }


def describe(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of control.drift as people read it."""
    return {
        **{name: row[name] for name in KEY},
        "model": row["model"],
        "verdict": row["verdict"],
        "since_ms": row["since_ms"] or None,
        "updated_ms": row["updated_ms"],
        **row["state"],
    }


def _shown(watch: Watch, key: Key) -> dict[str, Any]:
    shown: dict[str, Any] = {"channels": [], "kinds": [], "severity": 0, "devices": [], "pages": pages(watch, key)}
    if verdict(watch, key) in TOLD:
        same = [key._replace(part=part) for part in (*PARTS, FEED)]
        known = [k for k in same if watch.known(k)]
        found = {k.part: moves(watch, k) for k in known}
        drifted = frozenset(k.part for k in known if state(watch, k)[0])
        skewed = frozenset(k.part for k in known if state(watch, k)[1])
        seen = evidence(found, alarms=drifted, skewed=skewed)
        channels = [msgspec.to_builtins(one) for one in found[key.part]]
        shown |= {"channels": channels, "kinds": list(kinds(seen)), "severity": severity(seen)}
    if key.scope == "cohort":
        now = watch.cohorts.get(key)
        n, blocks = behind(watch, key)
        return shown | {
            "n": n, "blocks": blocks, "p": None, "foreign_windows": 0, "baseline": "", "accepted": False,
            "log_e": now.log_e if now else None, "devices": list(now.devices) if now else [],
        }  # fmt: skip
    group, at = watch.stream(key)
    s = group.streams
    row = OWN if s.skew[at] == SKEWED and not s.alarm[at] else EVIDENCE if s.alarm[at] else 0
    return shown | {
        "n": int(s.n[at, row]),
        "blocks": int(s.blocks[at]),
        "p": None if np.isnan(s.p[at]) else float(s.p[at]),
        "log_e": float(watch.levels[key.group][at]) if s.tested[at] else None,
        "foreign_windows": int(s.foreign[at]),
        "baseline": BASELINES[s.against[at]],
        "accepted": bool(s.accepted[at]),
    }
