"""Devices that were asked and do not run the release: which are put off, and which the rollout gives up. Pure.

    put off    they are held, closed, or say that they cannot run it: their wish is withdrawn, and they wait again as if
               they had not been asked, so that they are not late
    timed out  they have not answered within `device_timeout_s`, or rest and are silent for so long after they were due
    given up   they failed too often, or their operator did not come in time

Who is timed out or given up is *late*: it leaves the count of its stage, and gets the release after the end of the
rollout (`latecomers`).
"""

from __future__ import annotations

import numpy as np

from .members import CAUSES, OPERATOR, Bools, Members, happened
from .specification import RETRIED, RolloutSpec


def put_off(members: Members, unable: Bools | None, held: Bools | None, opened: Bools | None) -> Members:
    """None: nobody is, or, of those that are `opened`, all are."""
    closed = None if opened is None else ~opened
    for off, reason in ((unable, "cannot run it"), (held, "held by an operator"), (closed, "closed")):
        if off is not None and (off := off & members.has("asked", "resting")).any():
            places = np.flatnonzero(off)
            members = happened(members, places, "put off", [reason] * places.size)
    return members


def late(members: Members, spec: RolloutSpec, present: Bools, now_ms: int) -> Members:
    """With those that are timed out or given up."""
    limit = 1000 * spec.device_timeout_s
    silent = members.has("asked") & (now_ms - members.asked_ms > limit)
    silent |= members.has("resting") & (now_ms - members.due_ms > limit) & ~present
    if silent.any():
        places = np.flatnonzero(silent)
        members = happened(members, places, "timeout", [f"no answer within {spec.device_timeout_s:g} s"] * places.size)
    places = np.flatnonzero(_given_up(members, spec, now_ms))
    if not places.size:
        return members
    last = [members.reasons.get(members.devices[i], "") or "no reason told" for i in places.tolist()]
    tries = members.attempts[places].tolist()
    why = [f"given up after {n} attempts: {reason}" for n, reason in zip(tries, last, strict=True)]
    return happened(members, places, "timeout", why)


def _given_up(members: Members, spec: RolloutSpec, now_ms: int) -> Bools:
    """Resting devices that are not asked again."""
    resting = members.has("resting")
    if not resting.any():
        return resting
    most = np.array([spec.retry.of(cause).attempts if cause in RETRIED else 0 for cause in CAUSES])
    operator = members.cause == OPERATOR
    spent = np.where(operator, members.due_ms <= now_ms, members.attempts > most[members.cause])
    return np.asarray(resting & spent)
