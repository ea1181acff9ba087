"""One device in a rollout: what it was before, and how far it has come with the release. Pure.

What devices say comes late, doubled and out of order; `MEMBERS` says what each piece of news changes, and whatever is
not in it changes nothing. Failures of class `model` are held against the release (`fail`); all others are retried by
the device (`retry`) and do not prolong its time-out, except that a device which has run the release already and lost
it gets a new one, `RESTARTS` times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from .processes import METRICS

Status = Literal["waiting", "asked", "active", "committed", "failed", "late"]
Happening = Literal["ask", "activate", "commit", "fail", "retry", "timeout"]

# Whatever is not here changes nothing: devices repeat themselves, and their old news comes late.
MEMBERS: Final[dict[tuple[Status, Happening], Status]] = {
    ("waiting",   "ask"):      "asked",
    ("asked",     "activate"): "active",
    ("asked",     "commit"):   "committed",
    ("asked",     "fail"):     "failed",
    ("asked",     "timeout"):  "late",
    ("active",    "commit"):   "committed",
    ("active",    "fail"):     "failed",
    ("active",    "retry"):    "asked",
    ("committed", "fail"):     "failed",
    ("committed", "retry"):    "asked",
}  # fmt: skip
GIVEN: Final[tuple[Status, ...]] = ("asked", "active", "committed", "failed")

RESTARTS: Final = 3

Numbers = tuple[float, ...]
_ZEROS: Final[Numbers] = (0.0,) * len(METRICS)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    previous: str | None  # the digest that it goes back to; None: it ran no package of this name
    pre_trials: Numbers = _ZEROS  # before the rollout, by METRICS
    pre_events: Numbers = _ZEROS
    control_trials: Numbers = _ZEROS  # since, while it was not given the release
    control_events: Numbers = _ZEROS
    slow_cell: int | None = None  # cells of the latency grid from here on are slow, for this device
    status: Status = "waiting"
    stage: int | None = None  # in which it was given the release
    asked_ms: int = 0
    windows: int = 0  # that it has reported with the release
    retries: int = 0
    restarts: int = 0  # new time-outs that it was given
    back: bool = False  # seen on `previous` again
    failed_in: str = ""  # the step of the device's update in which it failed
    reason: str = ""

    @property
    def labelled(self) -> bool:
        """Whether truth has come for what this device predicted."""
        return self.pre_trials[METRICS.index("label")] > 0


class News(msgspec.Struct, frozen=True):
    device: str
    happening: Happening
    reason: str = ""
    during: str = ""  # the step of the device's update that it left


def order(rollout: str, device: str) -> bytes:
    """Devices are taken in this order: fixed by the rollout, different in the next, independent of what they are."""
    return hashlib.sha256(f"{rollout}\0{device}".encode()).digest()


def hear(
    members: Iterable[Member],
    news: Iterable[News],
    windows: Iterable[tuple[str, int]],
    back: Iterable[str],
    now_ms: int,
) -> tuple[Member, ...]:
    """The members after what was said; `windows`: reports with the release by device, `back`: seen on `previous`."""
    known = {m.device: m for m in members}
    for one in news:
        member = known.get(one.device)
        if member is None:
            continue
        status = MEMBERS.get((member.status, one.happening), member.status)
        changes: dict[str, object] = {"status": status}
        if one.happening == "retry":
            changes |= {"retries": member.retries + 1, "reason": one.reason}
            if member.status in ("active", "committed") and member.restarts < RESTARTS:
                changes |= {"restarts": member.restarts + 1, "asked_ms": now_ms}
        elif status != member.status:
            changes |= {"reason": one.reason, "failed_in": one.during if status == "failed" else ""}
        known[one.device] = msgspec.structs.replace(member, **changes)
    for device, count in windows:
        if device in known:
            known[device] = msgspec.structs.replace(known[device], windows=known[device].windows + count)
    for device in back:
        if device in known:
            known[device] = msgspec.structs.replace(known[device], back=True)
    return tuple(known.values())
