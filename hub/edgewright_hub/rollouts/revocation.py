"""What devices run instead of a package that was revoked, and which packages rollouts still need. Pure.

A device goes back to what it ran before the newest rollout that gave it the package; if that is gone too, or it got the
package without a rollout, to the newest that was promoted to it; and if there is none, it runs no package of this name.
Rollouts of the package that are under way take it back by themselves (`rollout.step`, `withdrawn`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import msgspec
import numpy as np

from edgewright_contracts.desired import Desired

from ..fleet.selectors import Device
from .desired_documents import current
from .members import Members
from .progress import unpacked
from .promoted import Promoted, promoted_for
from .specification import RolloutSpec
from .state import ACTIVE
from .wishes import Wish


def taken_back(
    model: str,
    digest: str,
    fleet: Mapping[str, Device],
    documents: Mapping[str, Desired],
    rows: Iterable[Any],
    promoted: Sequence[Promoted],
    gone: Set[str],
) -> list[Wish]:
    """A wish for each device that is told to run the package outside a rollout under way. `rows`: of control.rollouts,
    the oldest first; `gone`: digests that nobody may run."""
    before: dict[str, str | None] = {}
    busy: set[str] = set()
    for row in rows:
        if row.spec["digest"] == digest:
            members = unpacked(row.progress).members
            if row.state in ACTIVE:
                busy |= set(members.devices)
            before |= {one.device: one.previous for one in members.rows()}
    wishes = []
    for device, one in fleet.items():
        if current(documents.get(device), model) == digest and device not in busy:
            previous = before.get(device)
            if previous is None or previous in gone:
                previous = promoted_for(promoted, one, model)
            wishes.append(Wish(device, model, previous, trial=False))
    return wishes


def safe(
    wishes: Iterable[Wish],
    spec: RolloutSpec,
    fleet: Mapping[str, Device],
    documents: Mapping[str, Desired],
    promoted: Sequence[Promoted],
    gone: Set[str],
) -> list[Wish]:
    """The wishes of a rollout. It takes its release back only from devices that are still told to run it; and where one
    would go back to a package that nobody may run, it gets what was promoted to it instead."""
    found = []
    for wish in wishes:
        if wish.digest != spec.digest and current(documents.get(wish.device), wish.model) != spec.digest:
            continue
        if wish.digest in gone:
            device = fleet.get(wish.device)
            other = promoted_for(promoted, device, wish.model) if device else None
            wish = msgspec.structs.replace(wish, digest=other)
        found.append(wish)
    return found


def heading(members: Members, wishes: Iterable[Wish], digest: str) -> Members:
    """The members of a rollout of `digest` after these wishes of it: who goes back to another package than the one
    before is waited for there."""
    places, digests, previous = members.columns(), list(members.digests), members.previous.copy()
    for wish in wishes:
        place = places[wish.device]
        had = members.digests[previous[place]] if previous[place] >= 0 else None
        if wish.digest not in (digest, had):
            if wish.digest is not None and wish.digest not in digests:
                digests.append(wish.digest)
            previous[place] = -1 if wish.digest is None else digests.index(wish.digest)
    if np.array_equal(previous, members.previous):
        return members
    return dataclasses.replace(members, digests=tuple(digests), previous=previous)


def needed(rows: Iterable[Any], promoted: Iterable[Promoted], *, since_ms: int) -> dict[str, str]:
    """Why rollouts need packages, by digest: those under way, or that ended since then, and what newcomers get."""
    found: dict[str, str] = {}
    for row in rows:
        if row.state in ACTIVE or row.updated_ms >= since_ms:
            found.setdefault(row.spec["digest"], f"rollout {row.id} is about it")
            for digest in unpacked(row.progress).members.digests:
                found.setdefault(digest, f"rollout {row.id} may go back to it")
    for one in promoted:
        found.setdefault(one.digest, f"newcomers get it ({one.fleet or 'all fleets'})")
    return found
