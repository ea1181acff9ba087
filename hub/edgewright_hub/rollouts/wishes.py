"""What devices shall run, as a step decides it: columns, and the few that changed as rows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np

from .members import Bools, Indices, Members, Small
from .specification import RolloutSpec

Kind = Literal["give", "again", "keep", "back"]
KINDS: Final[tuple[Kind, ...]] = ("give", "again", "keep", "back")


class Wish(msgspec.Struct, frozen=True):
    """Device `device` shall run `digest`; `trial`: under the rollout's id, and so with its short windows; `again`: it
    is told so even if it was before, so that it tries at once; it begins between `not_before` and `not_after`, in UTC
    milliseconds."""

    device: str
    model: str
    digest: str | None
    trial: bool
    again: bool = False
    not_before: int | None = None
    not_after: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Wishes:
    """What devices shall run, in columns: give (the release, on trial), again (likewise, anew), keep (it, for good),
    back (what they had). At most one for each device."""

    device: Indices  # their places among the members
    kind: Small  # places in KINDS

    def __len__(self) -> int:
        return int(self.device.size)

    def expand(self, members: Members, spec: RolloutSpec) -> list[Wish]:
        out = []
        for place, code in zip(self.device.tolist(), self.kind.tolist(), strict=True):
            kind, previous = KINDS[code], int(members.previous[place])
            had = members.digests[previous] if previous >= 0 else None
            digest = had if kind == "back" else spec.digest
            on_trial = kind in ("give", "again")
            out.append(Wish(members.devices[place], spec.model, digest, on_trial, kind == "again"))
        return out


def all_of(kind: Kind, devices: Bools) -> Wishes:
    places = np.flatnonzero(devices)
    return Wishes(places, np.full(places.size, KINDS.index(kind), np.int8))


def together(*wishes: Wishes) -> Wishes:
    some = [one for one in wishes if len(one)]
    if len(some) == 1:
        return some[0]
    return Wishes(
        np.concatenate([one.device for one in some]) if some else np.zeros(0, np.intp),
        np.concatenate([one.kind for one in some]) if some else np.zeros(0, np.int8),
    )


NOTHING: Final = Wishes(np.zeros(0, np.intp), np.zeros(0, np.int8))
