"""What is asked for when a rollout begins. It never changes afterwards."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from edgewright_contracts.codec import Name
from edgewright_contracts.desired import Probation, Seconds
from edgewright_contracts.errors import RequestError

from .gates import GatePolicy

_LOG = logging.getLogger(__name__)

Stage = int | Annotated[str, msgspec.Meta(max_length=16)]  # devices in all, or a share of them as "25%"
_SHARE: Final = re.compile(r"[0-9]{1,3}(\.[0-9]+)?%", re.ASCII)


class RolloutSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for. One of `digest` and `version` may be left out; the hub completes it from its packages."""

    model: Name
    digest: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    fleet: Annotated[str, msgspec.Meta(max_length=64)] = ""  # "": every fleet
    devices: tuple[Name, ...] = ()  # only these of the fleet; none named: all, and those that join later
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1, max_length=32)] = (1, "25%", "100%")
    gate: GatePolicy = GatePolicy()
    device_timeout_s: Seconds = 3600.0
    window_s: Seconds = 60.0  # of reports during the rollout; also the shortest interval that the gate judges
    probation: Probation = Probation()

    def __post_init__(self) -> None:
        got = ", ".join(str(stage) for stage in self.stages)
        if not all(_is_stage(stage) for stage in self.stages):
            raise RequestError(f"stages: expected counts or percentages, as 1, 25%, 100%; got {got}")
        sizes = [stage_size(stage, 1000) for stage in self.stages]
        if sorted(sizes) != sizes or self.stages[-1] != "100%":
            raise RequestError(
                f"stages: expected counts or percentages that grow and end in 100%, as 1, 25%, 100%; got {got}"
            )


def stored(document: Mapping[str, Any]) -> RolloutSpec:
    """The spec of a row of control.rollouts. A gate that this release does not accept any more counts as the default,
    so that its rollout can still be looked at, judged and aborted."""
    try:
        return msgspec.convert(document, RolloutSpec)
    except msgspec.ValidationError as error:
        _LOG.warning("the gate of a stored rollout of %s counts as the default: %s", document.get("model"), error)
        return msgspec.convert({**document, "gate": {}}, RolloutSpec)


def _is_stage(stage: Stage) -> bool:
    if isinstance(stage, int):
        return stage >= 1
    return _SHARE.fullmatch(stage) is not None and 0 < float(stage[:-1]) <= 100


def stage_size(stage: Stage, members: int) -> int:
    """How many of `members` devices a stage exposes in all, at least one."""
    if isinstance(stage, int):
        return max(1, min(stage, members))
    return max(1, min(members, math.ceil(float(stage[:-1]) / 100 * members)))
