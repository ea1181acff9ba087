"""The maintenance windows of a rollout, for the devices that are in it: who may begin now, and until when. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from edgewright_contracts.desired import Desired

from ..fleet.selectors import Device
from .desired_documents import current
from .members import Bools, Members
from .schedule import next_opening, opens
from .specification import RolloutSpec
from .wishes import Wish


def open_now(spec: RolloutSpec, members: Members, fleet: Mapping[str, Device], now_ms: int) -> Bools | None:
    """bool[devices]: within their maintenance windows; None: there are none."""
    if not spec.windows:
        return None
    zones = [fleet[device].tz if device in fleet else "" for device in members.devices]
    open_in = {tz: opens(spec.windows, tz, now_ms) for tz in set(zones)}
    return np.array([open_in[tz] for tz in zones], np.bool_)


def timed(
    wishes: list[Wish],
    spec: RolloutSpec,
    fleet: Mapping[str, Device],
    documents: Mapping[str, Desired],
    now_ms: int,
) -> list[Wish]:
    """With the hours in which devices may begin; one that keeps what it has begins nothing."""
    if not spec.windows:
        return wishes
    zone = {device.id: device.tz for device in fleet.values()}
    return [
        wish
        if not wish.trial and current(documents.get(wish.device), wish.model) == wish.digest
        else _in_hours(wish, spec, zone.get(wish.device, ""), now_ms)
        for wish in wishes
    ]


def _in_hours(wish: Wish, spec: RolloutSpec, tz: str, now_ms: int) -> Wish:
    """The wish with the hours in which its device may begin. On trial: those of the opening that holds now. For good,
    of a device that was away so long: from the next opening on. To go back waits for no window."""
    if wish.digest != spec.digest or (opening := next_opening(spec.windows, tz, now_ms)) is None:
        return wish
    if wish.trial:
        return msgspec.structs.replace(wish, not_before=opening.begin_ms, not_after=opening.end_ms)
    return msgspec.structs.replace(wish, not_before=opening.begin_ms if opening.begin_ms > now_ms else None)
