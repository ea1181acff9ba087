"""Releases that rollouts have brought out to all whom they meant. Pure, but for `promoted`, which reads them. Who gets
them after the end, and when: `latecomers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..fleet.selectors import Device, Selector, parse
from ..storage import control


class Promoted(NamedTuple):
    fleet: str  # "": all of them
    selector: Selector | None
    model: str
    digest: str
    rollout: str  # that brought it out
    names: frozenset[str]  # only these devices; none: all
    asked: Mapping[str, Any]  # its specification
    able: Callable[[str, str], bool]  # whether a device can run a digest, as far as is known

    def means(self, device: Device) -> bool:
        return (
            self.fleet in ("", device.fleet)
            and (not self.names or device.id in self.names)
            and (self.selector is None or self.selector.means(device))
            and self.able(device.id, self.digest)
        )


def promoted(
    connection: sa.Connection, able: Callable[[str, str], bool] = lambda *_: True, but: str = ""
) -> list[Promoted]:
    """The newest first, without the rollout `but`, and without packages that nobody may run any more."""
    r, p = control.rollouts.c, control.packages.c
    query = sa.select(r.id, r.spec).where(r.state == "done", r.id != but)
    query = query.order_by(r.updated_ms.desc(), r.created_ms.desc())
    gone = set(connection.execute(sa.select(p.digest).where((p.state != "allowed") | (p.stage == "revoked"))).scalars())
    found: dict[tuple[str, str, str, str, frozenset[str]], Promoted] = {}
    for rollout, spec in connection.execute(query):
        if spec["digest"] not in gone:
            text, names = spec.get("selector", ""), frozenset(spec["devices"])
            key = spec["fleet"], text, spec["model"], spec["digest"], names
            selector = parse(text) if text else None
            found.setdefault(key, Promoted(key[0], selector, key[2], key[3], rollout, names, spec, able))
    return list(found.values())


def means(asked: Mapping[str, Any], device: Device) -> bool:
    """Whether a rollout with this specification is for the device."""
    selector = asked.get("selector", "")
    return (
        asked["fleet"] in ("", device.fleet)
        and (not asked["devices"] or device.id in asked["devices"])
        and (not selector or parse(selector).means(device))
    )


def promoted_to(promoted: Iterable[Promoted], device: Device, model: str) -> Promoted | None:
    return next((one for one in promoted if one.model == model and one.means(device)), None)


def promoted_for(promoted: Iterable[Promoted], device: Device, model: str) -> str | None:
    one = promoted_to(promoted, device, model)
    return one.digest if one else None
