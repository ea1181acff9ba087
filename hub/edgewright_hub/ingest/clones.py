"""Two machines under one device id: a disk that was copied, identity and all. Pure.

A boot id is random and made anew at each start, so a boot that another one followed never comes back: when its birth
does, two machines take turns. Each ends the other's connection, their reports mix, and neither is what the operator
believes. It is told once, and again only when it was quiet for `QUIET_MS` in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edgewright_contracts import birth

KEPT: Final = 8  # boots that are remembered: of more machines than that, some are missed for a while
QUIET_MS: Final = 7 * 86_400_000


def followed(boots: Sequence[str], boot_id: str) -> tuple[list[str], bool]:
    """The boots with this one as the newest, and whether it came back after another."""
    came_back = boot_id in boots[:-1]
    return [*(b for b in boots if b != boot_id), boot_id][-KEPT:], came_back


def event(born: birth.Birth, other: str, arrived_ms: int) -> dict[str, Any]:
    """The row of events by which the operator learns of it. Devices number theirs from 1: this one is below."""
    reason = (
        f"cloned identity: boots {other} and {born.boot_id} take turns as {born.device}, so two machines run with one "
        "disk's identity. On the copy remove identity/ and spool/ and enrol it under an id of its own; if it is not "
        f"yours, enrol {born.device} with a new key (remove its identity/ first), which shuts the copy out"
    )
    return {
        "device": born.device,
        "spool_id": born.spool.id,
        "seq": -arrived_ms,
        "arrived_ms": arrived_ms,
        "at_ms": arrived_ms,
        "boot_id": born.boot_id,
        "mono_ms": born.uptime_ms,
        "model": "",
        "digest": "",
        "variant": "",
        "rollout": "",
        "before": "identity",
        "after": "cloned",
        "reason": reason,
        "failure": "operator",
        "attempt": 0,
        "log": "",
    }
