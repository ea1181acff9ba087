"""Releases that rollouts have brought out to all whom they meant, and how devices get them that come afterwards. Pure,
but for `promoted`, which reads them.

A device that nobody has told anything of a model gets the newest promoted release that means it and that it can run, in
the maintenance windows of the rollout that brought it out, in its own local time, and under that rollout's caps: in the
time that a device may take (`device_timeout_s`) no more of them begin than `concurrency`, and no more than
`bandwidth_bytes_s` bears. When each may begin is written in its document, so a hub that dies forgets none and begins
none twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from edgewright_contracts.desired import Desired

from ..fleet.selectors import Device, Selector, parse
from ..storage import control
from . import schedule
from .desired_documents import room, told
from .specification import RolloutSpec, stored
from .wishes import Wish


class Promoted(NamedTuple):
    fleet: str  # "": all of them
    selector: Selector | None
    model: str
    digest: str
    asked: Mapping[str, Any]  # the specification of the rollout that brought it out
    able: Callable[[str, str], bool]  # whether a device can run a digest, as far as is known

    def means(self, device: Device) -> bool:
        return (
            self.fleet in ("", device.fleet)
            and (self.selector is None or self.selector.means(device))
            and self.able(device.id, self.digest)
        )


def promoted(
    connection: sa.Connection, able: Callable[[str, str], bool] = lambda *_: True, but: str = ""
) -> list[Promoted]:
    """The newest first, without those that named single devices, without the rollout `but`, and without packages that
    nobody may run any more."""
    r, p = control.rollouts.c, control.packages.c
    query = sa.select(r.spec).where(r.state == "done", r.id != but).order_by(r.updated_ms.desc(), r.created_ms.desc())
    gone = set(connection.execute(sa.select(p.digest).where((p.state != "allowed") | (p.stage == "revoked"))).scalars())
    found: dict[tuple[str, str, str, str], Promoted] = {}
    for (spec,) in connection.execute(query):
        if not spec["devices"] and spec["digest"] not in gone:
            text = spec.get("selector", "")
            key = spec["fleet"], text, spec["model"], spec["digest"]
            selector = parse(text) if text else None
            found.setdefault(key, Promoted(key[0], selector, key[2], key[3], spec, able))
    return list(found.values())


def promoted_to(promoted: Iterable[Promoted], device: Device, model: str) -> Promoted | None:
    return next((one for one in promoted if one.model == model and one.means(device)), None)


def promoted_for(promoted: Iterable[Promoted], device: Device, model: str) -> str | None:
    one = promoted_to(promoted, device, model)
    return one.digest if one else None


def newcomers(
    devices: Mapping[str, Device], documents: Mapping[str, Desired], promoted: Sequence[Promoted], now_ms: int
) -> list[Wish]:
    """Devices that nobody has told anything yet get what their fleet runs, as far as their documents hold it, and
    unless they are held."""
    models = sorted({one.model for one in promoted})
    wishes = []
    begun: dict[str, list[int]] = {}  # by digest
    for name, device in devices.items():
        free = room(documents.get(name))
        for model in models:
            if free < 1 or device.held or told(documents.get(name), model):
                continue
            if (one := promoted_to(promoted, device, model)) is None:
                continue
            spec, free = stored(one.asked), free - 1
            if one.digest not in begun:
                begun[one.digest] = _begun(documents.values(), one.digest)
            at = turn(spec, device.tz, begun[one.digest], now_ms)
            begun[one.digest].append(at)
            timed = at > now_ms or bool(_caps(spec))
            wishes.append(Wish(name, model, one.digest, trial=False, not_before=at if timed else None))
    return wishes


def turn(spec: RolloutSpec, tz: str, begun: Sequence[int], now_ms: int) -> int:
    """When the next device may begin, after those that did or will: UTC milliseconds, not before now."""
    at = now_ms
    for most, span_ms in _caps(spec):
        if len(begun) >= most:
            at = max(at, sorted(begun)[-most] + span_ms)
    opening = schedule.next_opening(spec.windows, tz, at)
    return at if opening is None else max(at, opening.begin_ms)


def _caps(spec: RolloutSpec) -> list[tuple[int, int]]:
    """So many devices in so many milliseconds."""
    found = [] if spec.concurrency is None else [(spec.concurrency, int(1000 * spec.device_timeout_s))]
    if spec.bandwidth_bytes_s is not None and spec.release_bytes:
        found.append((1, int(1000 * spec.release_bytes / spec.bandwidth_bytes_s)))
    return found


def _begun(documents: Iterable[Desired], digest: str) -> list[int]:
    """When devices that got it for good may have begun, of those of which that is written."""
    return [
        model.not_before
        for document in documents
        for model in document.models
        if model.digest == digest and not model.rollout and model.not_before is not None
    ]
