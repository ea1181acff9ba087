"""A rollout that is done is reverted by a person: who goes back, and when that is refused. Pure.

Those go back that are still told to run its release, and those that came later and got it because of this rollout: to
what they would get now. What has gone on since stays, and so does what another rollout gave it to, or gives it.

While another rollout of the model is under way on any of its devices, that one would lose what it compares with, and
might lead back to the release that is taken back here; so nothing is reverted before its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgewright_contracts.desired import Desired
from edgewright_contracts.errors import Refused

from ..fleet.selectors import Device
from . import admission, rollout
from .desired_documents import current
from .members import Member
from .progress import unpacked
from .promoted import Promoted, promoted_for
from .specification import RolloutSpec, stored
from .state import GOING_BACK, RolloutState
from .wishes import Wishes


class Around(NamedTuple):
    """What holds beside a rollout when a person decides about it."""

    fleet: Mapping[str, Device]
    documents: Mapping[str, Desired]
    rows: Sequence[Any]  # of control.rollouts: the others of its model
    promoted: Sequence[Promoted]  # by others


def revert(
    state: RolloutState, spec: RolloutSpec, around: Around, reason: str, now_ms: int
) -> tuple[RolloutState, Wishes]:
    """Raises RequestError, Refused: `rollout.revert`; and Refused under another rollout."""
    if later := _later(state, spec, around):
        reason = f"{reason}; with {len(later)} device{'s' * (len(later) > 1)} that got it later"
    whole = rollout.enrol(state, later)
    still = [current(around.documents.get(d), spec.model) == spec.digest for d in whole.members.devices]
    found = rollout.revert(whole, np.array(still, np.bool_), reason, now_ms)
    for row, shared in admission.overlapping(spec.model, whole.members.devices, around.fleet, around.rows):
        way = (
            "Wait until its devices are back"
            if row.state in GOING_BACK
            else f"Wait for its end, or `edgewright rollout abort {row.id}` first"
        )
        raise Refused(
            f"rollout {row.id} ({spec.model} {stored(row.spec).version}) is {row.state} on {len(shared)} of the same "
            f"devices, and would lead back to {spec.version}. {way}"
        )
    return found


def _later(state: RolloutState, spec: RolloutSpec, around: Around) -> tuple[Member, ...]:
    """Devices that are told to run the release and have it from no rollout, with what they go back to."""
    given = set(state.members.devices)
    for row in around.rows:
        if row.spec["digest"] == spec.digest:
            members = unpacked(row.progress).members
            given |= {members.devices[i] for i in np.flatnonzero(members.given).tolist()}
    found = []
    for device in admission.chosen(spec, around.fleet):
        if device not in given and current(around.documents.get(device), spec.model) == spec.digest:
            instead = promoted_for(around.promoted, around.fleet[device], spec.model)
            if instead != spec.digest:
                found.append(Member(device=device, previous=instead))
    return tuple(found)
