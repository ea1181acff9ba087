"""How a rollout goes back: after harm, when its release is withdrawn, and when that is over. Pure.

It is rolled back when every device that ran the release was seen running what it had before; or `device_timeout_s` has
passed, and then the reason names those that were not. They go back when they speak again: their document says so. A
rollout that is done can be reverted at any later time, in the same way: to what is still in the other slot, and without
waiting for maintenance windows.
"""

from __future__ import annotations

import msgspec
import numpy as np

from .gates import Judgement
from .members import Indices, Members
from .specification import RolloutSpec
from .state import GOING_BACK, Event, Outcome, RolloutState, move
from .wishes import Wishes, all_of


def harmed(state: RolloutState, judgement: Judgement, now_ms: int) -> tuple[RolloutState, Wishes]:
    """Every device that was given it goes back; the reason says what those that failed have told."""
    members = state.members
    failed = members.has("failed")
    reasons = {members.reasons.get(members.devices[i], "") for i in np.flatnonzero(failed).tolist()}
    told = "; ".join(sorted(filter(None, reasons))[:3])
    refused = failed.any() and bool(members.refused[failed].all()) and not members.windows.any()
    state = move(state, "harm", judgement.reason + (f": {told}" if told else ""), now_ms)
    outcome: Outcome = "refused by self-test" if refused else "rolled back"
    return msgspec.structs.replace(state, outcome=outcome), all_of("back", members.given)


def withdrawn(state: RolloutState, reason: str, now_ms: int) -> tuple[RolloutState, Wishes]:
    """Nobody may run the release any more: before the start there is nothing to take back."""
    event: Event = "abort" if state.state in ("draft", "unapproved") else "harm"
    after = msgspec.structs.replace(move(state, event, reason, now_ms), outcome="withdrawn")
    return after, all_of("back", state.members.given)


def undone(state: RolloutState, spec: RolloutSpec, now_ms: int) -> RolloutState:
    """The state, ended if it goes back and nobody is waited for."""
    if state.state not in GOING_BACK:
        return state
    gone = _not_back(state.members)
    if gone.size and now_ms - state.since_ms <= 1000 * spec.device_timeout_s:
        return state
    return move(state, "undone", state.reason + _unseen(state.members, gone), now_ms)


def away(state: RolloutState) -> int:
    """How many devices ran the release and were not seen on what they had before."""
    return int(_not_back(state.members).size)


def _not_back(members: Members) -> Indices:
    """Devices that ran the release and were not seen on their previous one, unless they had nothing before."""
    return np.flatnonzero(members.has("active", "committed") & ~members.back & (members.previous >= 0))


def _unseen(members: Members, gone: Indices) -> str:
    if not gone.size:
        return ""
    named = ", ".join(members.devices[i] for i in gone[:5].tolist())
    more = f" and {gone.size - 5} more" if gone.size > 5 else ""
    return f"; told to go back and not seen there yet: {named}{more}"
