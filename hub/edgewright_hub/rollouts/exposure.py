"""Who is given the release next: those that a stage means, as many as the caps allow. Pure; arrays of columns.

    stage        a count or a share: so many devices in all, of those that are not silent; a selector: those it means
                 When all of the stage failed, and may have failed by themselves (`background`), as many more
    again        devices that rest are asked again when their back-off is over, before any new one
    concurrency  at most so many devices are asked and have neither committed nor failed
    bandwidth    a bucket of `BURST_S` seconds' worth of bytes (or one release), filled at the rate; who is asked takes
                 from it what it will download, or `release_bytes` where that is not known. So in any T seconds at most
                 rate * (T + BURST_S) bytes, or one release more than rate * T, are asked for.

Devices that a later stage's selector means wait for that stage, except behind the last. A stage for which nobody is
left is passed by, but never into the last: nobody would have shown then what the release does.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from . import background, census
from .members import OPERATOR, Bools, Indices, Members
from .specification import RolloutSpec, is_selector, stage_size

BURST_S: Final = 60.0


def first_time(members: Members, spec: RolloutSpec, stage: int, here: Bools, able: Bools) -> Indices:
    """Devices that the stage still has to be given to, in order.

    bool[devices]: `here` can be reached now, `able` can be given the release now.
    """
    step = spec.ladder[stage]
    waiting = members.has("waiting")
    if is_selector(step):
        return np.flatnonzero(waiting & able & (members.group >= 0) & (members.group <= stage))
    given = members.given
    exposed = int(np.count_nonzero(given))
    failed, mine = members.has("failed"), census.of_stage(members, stage)
    if mine.any() and failed[mine].all() and background.by_themselves(members, spec.window_s):
        exposed -= int(np.count_nonzero(failed))
    reachable = exposed + int(np.count_nonzero(waiting & here))
    size = stage_size(step, reachable) if reachable else 0
    mine = waiting & able
    if stage < len(spec.ladder) - 1:
        mine &= members.group <= stage
    candidates = np.flatnonzero(mine)
    chosen = candidates[: max(0, size - exposed)]
    if chosen.size and asks_for_labels(spec, stage):
        labelled = members.labelled
        if not labelled[chosen].any() and not labelled[given & ~failed].any():
            # the gate of this stage asks for labels: one device must be able to bring them
            chosen = chosen.copy()
            chosen[-1:] = candidates[labelled[candidates]][:1] if labelled[candidates].any() else chosen[-1:]
    return chosen


def to_come(members: Members, spec: RolloutSpec, stage: int, unable: Bools | None) -> Indices:
    """Devices that the stage could be given to still, if all spoke, were open and not held."""
    able = np.ones(len(members), np.bool_) if unable is None else ~unable
    return first_time(members, spec, stage, able, able)


def nobody_left(members: Members, spec: RolloutSpec, stage: int, unable: Bools | None) -> bool:
    """Whether no device has the release, and none is left that the stage could ever give it to."""
    return not members.given.any() and not to_come(members, spec, stage, unable).size


def again(members: Members, able: Bools, now_ms: int) -> Indices:
    """Devices whose back-off is over."""
    due = members.has("resting") & (members.cause != OPERATOR) & (members.due_ms <= now_ms)
    return np.flatnonzero(due & able)


def asks_for_labels(spec: RolloutSpec, stage: int) -> bool:
    """Whether this is the last stage before everyone, which waits for labels and outcomes."""
    return stage == len(spec.ladder) - 2 and (spec.gate.label is not None or bool(spec.gate.outcomes))


def room(members: Members, spec: RolloutSpec) -> int:
    """How many more devices may be updating."""
    if spec.concurrency is None:
        return len(members)
    return max(0, spec.concurrency - int(np.count_nonzero(members.has("asked", "active"))))


def filled(spec: RolloutSpec, bucket: float | None, elapsed_ms: int) -> float | None:
    """Bytes in the bucket after so long; None: there is no cap."""
    if spec.bandwidth_bytes_s is None or not spec.release_bytes:
        return None
    most = max(float(spec.release_bytes), spec.bandwidth_bytes_s * BURST_S)
    return most if bucket is None else min(most, bucket + spec.bandwidth_bytes_s * elapsed_ms / 1000)
