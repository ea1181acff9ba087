"""Which rollout of a model a device belongs to, where several are under way. Pure.

A device is in one of them at a time, although its attributes may change and several may mean it then: in that which
gave it its release, else in that which began first. It joins another when that one has ended, or means it no longer.
Cost: nothing for a rollout alone; 1 µs for each device of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

import msgspec
import numpy as np

from .progress import unpacked
from .state import RolloutState


class Claims:
    """Of one round. `rows`: of control.rollouts, those under way, the oldest first."""

    def __init__(self, rows: Sequence[Any]) -> None:
        several = {name for name, n in Counter(row.name for row in rows).items() if n > 1}
        self._of: dict[str, dict[str, str]] = {name: {} for name in several}  # the rollout, by model and device
        states = [(row.name, state) for row in rows if row.name in several and (state := _readable(row))]
        for first in (True, False):
            for name, state in states:
                self._claim(name, state, given=first)

    def elsewhere(self, model: str, rollout_id: str) -> Set[str]:
        """Devices that belong to another rollout."""
        return {device for device, one in self._of.get(model, {}).items() if one != rollout_id}

    def renew(self, model: str, state: RolloutState) -> None:
        """Devices that joined it in this round are its own."""
        if model in self._of:
            self._claim(model, state, given=False)

    def _claim(self, model: str, state: RolloutState, *, given: bool) -> None:
        members = state.members
        mine = members.given if given else members.given | members.has("waiting", "late")
        for place in np.flatnonzero(mine).tolist():
            self._of[model].setdefault(members.devices[place], state.id)


def _readable(row: Any) -> RolloutState | None:
    """None for one that cannot be read: its own step says so."""
    try:
        return unpacked(row.progress)
    except (msgspec.ValidationError, ValueError, KeyError):
        return None
