"""The maintenance windows of a rollout, for the devices that are in it: who may begin now, and until when. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from ..fleet.selectors import Device
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


def timed(wishes: list[Wish], spec: RolloutSpec, fleet: Mapping[str, Device], now_ms: int) -> list[Wish]:
    """On trial: with the hours of the opening in which devices may begin. To go back waits for no window."""
    if not spec.windows:
        return wishes
    return [_in_hours(wish, spec, fleet, now_ms) if wish.trial else wish for wish in wishes]


def _in_hours(wish: Wish, spec: RolloutSpec, fleet: Mapping[str, Device], now_ms: int) -> Wish:
    opening = next_opening(spec.windows, fleet[wish.device].tz if wish.device in fleet else "", now_ms)
    if opening is None:
        return wish
    return msgspec.structs.replace(wish, not_before=opening.begin_ms, not_after=opening.end_ms)
