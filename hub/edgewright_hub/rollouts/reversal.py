"""A rollout that is done is reverted by a person: who goes back, and when that is refused. Pure.

Those go back that are still told to run its release; what has gone on since stays. While another rollout of the model
is under way on any of its devices it would lose what it compares with, and might lead back to the release that is
taken back here; so nothing is reverted before its end.
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
from .specification import RolloutSpec, stored
from .state import GOING_BACK, RolloutState
from .wishes import Wishes


class Around(NamedTuple):
    """What holds beside a rollout when a person decides about it."""

    fleet: Mapping[str, Device]
    documents: Mapping[str, Desired]
    rows: Sequence[Any]  # of control.rollouts: the others of its model


def revert(
    state: RolloutState, spec: RolloutSpec, around: Around, reason: str, now_ms: int
) -> tuple[RolloutState, Wishes]:
    """Raises RequestError, Refused: `rollout.revert`; and Refused under another rollout."""
    still = [current(around.documents.get(d), spec.model) == spec.digest for d in state.members.devices]
    found = rollout.revert(state, np.array(still, np.bool_), reason, now_ms)
    for row, shared in admission.overlapping(spec.model, state.members.devices, around.fleet, around.rows):
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
