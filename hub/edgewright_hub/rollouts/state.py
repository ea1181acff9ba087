"""The states of a rollout, what leads from one to the next, and what is remembered between two steps. Pure.

What is not in `TABLE` is refused, with what is possible instead. A state that is not in `ACTIVE` has ended: no step
changes it, and only `revert` leads on from one of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

import msgspec
import numpy as np

from edgewright_contracts.errors import RequestError

from .effect import Effect
from .experiment import Conclusion
from .figures import Figure
from .gates import Ledger
from .headway import Headway
from .members import Members
from .processes import Metric
from .specification import LONGEST_S, RolloutSpec

State = Literal[
    "draft", "unapproved", "running", "paused", "rolling-back", "rolled-back", "done", "reverting", "reverted",
    "aborted",
]  # fmt: skip
Event = Literal[
    "start", "submit", "approve", "pause", "resume", "abort", "harm", "conclude", "take back", "finish", "undone",
    "revert",
]  # fmt: skip
Command = Literal["start", "pause", "resume", "abort"]
Outcome = Literal[
    "", "promoted", "rolled back", "refused by self-test", "withdrawn", "taken back", "aborted", "reverted"
]  # fmt: skip
BLOCKS: Final[tuple[Outcome, ...]] = ("rolled back", "refused by self-test")  # the digest, for further rollouts

TABLE: Final[dict[tuple[State, Event], State]] = {
    ("draft",        "start"):     "running",
    ("draft",        "submit"):    "unapproved",    # it needs the consent of others
    ("draft",        "abort"):     "aborted",
    ("unapproved",   "approve"):   "running",
    ("unapproved",   "abort"):     "aborted",
    ("running",      "pause"):     "paused",
    ("running",      "abort"):     "aborted",
    ("running",      "harm"):      "rolling-back",
    ("running",      "conclude"):  "running",       # an experiment: go on behind it
    ("running",      "take back"): "rolling-back",  # or not
    ("running",      "finish"):    "done",
    ("paused",       "resume"):    "running",
    ("paused",       "abort"):     "aborted",
    ("paused",       "harm"):      "rolling-back",
    ("paused",       "conclude"):  "running",
    ("paused",       "take back"): "rolling-back",
    ("rolling-back", "undone"):    "rolled-back",
    ("done",         "revert"):    "reverting",
    ("reverting",    "undone"):    "reverted",
}  # fmt: skip
ACTIVE: Final[tuple[State, ...]] = ("draft", "unapproved", "running", "paused", "rolling-back", "reverting")
GOING_BACK: Final[tuple[State, ...]] = ("rolling-back", "reverting")
ASKED: Final[tuple[Event, ...]] = ("start", "approve", "pause", "resume", "abort", "conclude", "revert")  # by people


NOBODY: Final = Members.of(())


class RolloutState(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    state: State = "draft"
    members: Members = NOBODY
    stage: int = 0
    since_ms: int = 0  # of the stage, or of the roll back
    ledger: Ledger = Ledger()
    judged_ms: int = 0
    seldom: tuple[Metric, ...] = ()  # labels and outcomes that came before the last 24 hours only (`label_past`)
    alone_ms: tuple[int, ...] = ()  # by metrics: since when the control that is hoped for counts nothing; 0: it does
    bucket: float | None = None  # bytes that might be asked for at `asked_ms`; None: nothing was asked for yet
    asked_ms: int = 0
    reason: str = ""  # of the last judgement or transition, for people
    paused: str = ""  # by whom and why, while it is
    outcome: Outcome = ""
    figures: tuple[Figure, ...] = ()
    author: str = ""  # who created it
    approved: tuple[str, ...] = ()  # by whom
    effects: tuple[Effect, ...] = ()  # of an experiment, as far as they are known
    conclusion: Conclusion | None = None
    headway: Headway = Headway()

    @property
    def exposed(self) -> int:
        """How many devices were given the release and did not have it withdrawn before they answered."""
        return int(np.count_nonzero(self.members.given))


def move(state: RolloutState, event: Event, reason: str, now_ms: int) -> RolloutState:
    """Raises RequestError where the table has no such transition."""
    try:
        after = TABLE[state.state, event]
    except KeyError:
        here = [e for s, e in TABLE if s == state.state and e in ASKED]
        asked = ", ".join(e for e in here if e != "conclude" or _compares(state))
        nothing = "nothing, its devices are going back" if state.state in GOING_BACK else "nothing, it has ended"
        raise RequestError(
            f"rollout {state.id} is {state.state} and cannot {event}; possible now: {asked or nothing}"
        ) from None
    since_ms = state.since_ms if event in ("pause", "resume", "conclude") else now_ms
    paused = reason if event == "pause" else ""
    return msgspec.structs.replace(
        state, state=after, since_ms=since_ms, reason=reason, paused=paused, headway=Headway(at_ms=now_ms)
    )


def not_ahead(state: RolloutState, spec: RolloutSpec, now_ms: int) -> RolloutState:
    """Without times that lie ahead. After the hub's clock was put back, what was written before counts as of now: else
    nothing would be judged, asked or given up until the clock has caught up."""
    members = state.members
    longest_ms = now_ms + int(1000 * max(LONGEST_S, spec.device_timeout_s))
    if (members.asked_ms > now_ms).any() or (members.due_ms > longest_ms).any():
        asked_ms, due_ms = np.minimum(members.asked_ms, now_ms), np.minimum(members.due_ms, longest_ms)
        state = msgspec.structs.replace(state, members=replace(members, asked_ms=asked_ms, due_ms=due_ms))
    if max(state.since_ms, state.judged_ms, state.asked_ms, state.headway.at_ms, *state.alone_ms) <= now_ms:
        return state
    return msgspec.structs.replace(
        state,
        since_ms=min(state.since_ms, now_ms),
        judged_ms=min(state.judged_ms, now_ms),
        alone_ms=tuple(min(since, now_ms) for since in state.alone_ms),
        asked_ms=min(state.asked_ms, now_ms),
        headway=msgspec.structs.replace(state.headway, at_ms=min(state.headway.at_ms, now_ms)),
    )


def _compares(state: RolloutState) -> bool:
    """Whether there is an experiment to conclude."""
    return bool(state.effects) and state.conclusion is None
