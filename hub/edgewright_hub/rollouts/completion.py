"""How a rollout is done. Pure; arrays of columns.

Behind the last stage there is nobody whom more evidence could spare, so its end takes no proof that the release is no
worse, but time: it waits until *every* device of the last stage that is present has reported its soak windows with the
release (`census`), and until then watches for harm as before; and until no device that is present waits for its
maintenance window. Devices that try again, because their link, power or disk failed, are waited for only as far as the
share that any stage needs. This is so for a rollout of one stage too, and for the first version of a model.

Devices that the end passes over get the release at once, or, where the specification asks for hours or caps, each in
its turn (`latecomers`).
"""

from __future__ import annotations

import msgspec
import numpy as np

from .members import Bools
from .specification import RolloutSpec
from .state import RolloutState, move
from .wishes import NOTHING, Wishes, all_of, together


def done(
    state: RolloutState, spec: RolloutSpec, here: Bools, able: Bools, unable: Bools | None, reason: str, now_ms: int
) -> tuple[RolloutState, Wishes]:
    """What the gate promotes behind the last stage, unless devices wait for their hours; `here`, `able`: as in
    `exposure`."""
    members = state.members
    waiting, failed = members.has("waiting"), members.has("failed")
    closed = int(np.count_nonzero(waiting & here & ~able))
    if closed:
        return msgspec.structs.replace(state, reason=f"{closed} devices wait for their maintenance windows"), NOTHING
    state = msgspec.structs.replace(move(state, "finish", reason, now_ms), outcome="promoted")
    # Those that failed stay with what they had; told so, that the rollout's short windows end for them too.
    if not spec.paced:
        keep = ~members.has("failed", "gone")
        keep = keep if unable is None else keep & ~(unable & waiting)
        return state, together(all_of("keep", keep), all_of("back", failed))
    running, coming = members.has("active", "committed"), members.has("asked", "resting")
    later = int(np.count_nonzero(waiting | coming | members.has("late")))
    if later:
        said = f"{state.reason}; {later} devices were passed over, and come in their turn"
        state = msgspec.structs.replace(state, reason=said)
    return state, together(all_of("keep", running), all_of("back", failed | coming))
