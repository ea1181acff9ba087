"""What is asked for when a rollout begins. It never changes afterwards."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.codec import Name
from edgewright_contracts.desired import Probation, Seconds
from edgewright_contracts.errors import ContractError, RequestError

from ..fleet import selectors
from . import schedule
from .gates import GatePolicy

_LOG = logging.getLogger(__name__)

# Devices in all, a share of them as "25%", or a selector as "site=berlin": the devices that it means.
Stage = int | Annotated[str, msgspec.Meta(max_length=256)]
_SHARE: Final = re.compile(r"[0-9]{1,3}(\.[0-9]+)?%", re.ASCII)

Window = Annotated[str, msgspec.Meta(max_length=64)]  # as `schedule` reads it

Retried = Literal["link", "power", "disk", "hub"]
RETRIED: Final[tuple[Retried, ...]] = get_args(Retried)
LONGEST_S: Final = 6 * 3600.0  # between two attempts, whatever the back-off has grown to


class Retry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """After failure number n of a device, it is asked again `first_s` times 2^(n - 1) later; at most `attempts` times.

    It then takes no further part, and gets the release after the end of the rollout.
    """

    attempts: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5
    first_s: Annotated[float, msgspec.Meta(ge=1, le=86400.0)] = 300.0


class Retries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By class of failure. `model` is never retried; what needs an `operator` is waited for, as long as for an answer.

    A device tries again by itself meanwhile; to be asked again ends its own waiting.
    """

    link: Retry = Retry()
    power: Retry = Retry()
    disk: Retry = Retry(attempts=3, first_s=3600.0)
    hub: Retry = Retry()

    def of(self, cause: Retried) -> Retry:
        return {"link": self.link, "power": self.power, "disk": self.disk, "hub": self.hub}[cause]


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rollout stays at `share` and compares, until somebody concludes it, `at_most_s` are over, or the interval of
    the effect on `outcome` leaves out 0. If that says the release is better it goes on, if worse it is taken back; and
    if it does not say, `undecided` holds."""

    share: Stage
    outcome: Annotated[str, msgspec.Meta(max_length=64)] = ""  # "": ends by hand or by time only
    at_most_s: Annotated[float, msgspec.Meta(gt=0, le=366 * 86400.0)] | None = None
    undecided: Literal["promote", "take back"] = "take back"


class RolloutSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for. One of `digest` and `version` may be left out; the hub completes it from its packages."""

    model: Name
    digest: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    fleet: Annotated[str, msgspec.Meta(max_length=64)] = ""  # "": every fleet
    devices: tuple[Name, ...] = ()  # only these of the fleet; none named: all, and those that join later
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1, max_length=32)] = (1, "25%", "100%")
    selector: Annotated[str, msgspec.Meta(max_length=256)] = ""  # only devices of the fleet that it means; "": all
    gate: GatePolicy = GatePolicy()
    device_timeout_s: Seconds = 3600.0  # from when a device is asked; hours in which it is closed do not count
    window_s: Seconds = 60.0  # of reports during the rollout; also the shortest interval that the gate judges
    probation: Probation = Probation()
    retry: Retries = Retries()
    concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None  # most devices that update at once
    bandwidth_bytes_s: Annotated[float, msgspec.Meta(gt=0)] | None = None  # of all its downloads together
    release_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0  # that a device downloads at most; the hub completes it
    windows: Annotated[tuple[Window, ...], msgspec.Meta(max_length=32)] = ()  # of maintenance; none: always
    approvals: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0  # persons besides the one who created it
    experiment: Experiment | None = None
    cooldown_s: Annotated[float, msgspec.Meta(ge=0, le=90 * 86400.0)] = 0.0  # after it was taken back, until the next

    def __post_init__(self) -> None:
        if self.selector:
            selectors.parse(self.selector)
        for window in self.windows:
            schedule.parse(window)
        got = ", ".join(str(stage) for stage in self.stages)
        shown = "counts or percentages"
        if not all(_is_stage(stage) or is_selector(stage) for stage in self.stages):
            raise RequestError(f"stages: expected {shown}, as 1, 25%, 100%, or selectors, as site=berlin; got {got}")
        sizes = [stage_size(stage, 1000) for stage in self.stages if not is_selector(stage)]
        if sorted(sizes) != sizes or self.stages[-1] != "100%":
            raise RequestError(f"stages: expected {shown} that grow and end in 100%, as 1, 25%, 100%; got {got}")
        if self.experiment is not None and (not _is_stage(share := self.experiment.share) or share == "100%"):
            raise RequestError(f"experiment: expected a count or a percentage below 100%, as 50%; got {share}")

    @property
    def paced(self) -> bool:
        """Whether devices that come after its end wait for their turn."""
        return bool(self.windows) or self.concurrency is not None or self.bandwidth_bytes_s is not None

    @property
    def ladder(self) -> tuple[Stage, ...]:
        """The stages, with that of the experiment among them."""
        place = self.experiment_stage
        if self.experiment is None or place is None or self.stages[place] == self.experiment.share:
            return self.stages
        return (*self.stages[:place], self.experiment.share, *self.stages[place:])

    @property
    def experiment_stage(self) -> int | None:
        """Where in `ladder` the rollout stays until its experiment is concluded; None: it has none."""
        if self.experiment is None:
            return None
        size = stage_size(self.experiment.share, 1000)
        return next(i for i, s in enumerate(self.stages) if not is_selector(s) and stage_size(s, 1000) >= size)


def stored(document: Mapping[str, Any]) -> RolloutSpec:
    """The spec of a row of control.rollouts. A gate that this release does not accept any more counts as the default,
    so that its rollout can still be looked at, judged and aborted."""
    try:
        return msgspec.convert(document, built(RolloutSpec))
    except msgspec.ValidationError as error:
        _LOG.warning("the gate of a stored rollout of %s counts as the default: %s", document.get("model"), error)
        return msgspec.convert({**document, "gate": {}}, built(RolloutSpec))


@functools.lru_cache(maxsize=256)
def is_selector(stage: Stage) -> bool:
    try:
        return isinstance(stage, str) and not stage.endswith("%") and bool(selectors.parse(stage).alternatives)
    except ContractError:
        return False


def _is_stage(stage: Stage) -> bool:
    if isinstance(stage, int):
        return stage >= 1
    return _SHARE.fullmatch(stage) is not None and 0 < float(stage[:-1]) <= 100


def stage_size(stage: Stage, members: int) -> int:
    """How many of `members` devices a stage exposes in all, at least one."""
    if isinstance(stage, int):
        return max(1, min(stage, members))
    return max(1, min(members, math.ceil(float(stage[:-1]) / 100 * members)))
