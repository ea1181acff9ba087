"""A package that is blocked or held here may be tried again, because a person at the device says so: where no agent
runs, one is started for as long as that takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.errors import RequestError, Unavailable

from ..agent import Agent
from ..delivery.nohub import NoHub
from ..disk import RealDisk
from ..updating import orders, sideload, slots
from . import status

LONGEST_S: Final = 30.0  # an agent in the middle of a self-test reads it behind that
LOOK_S: Final = 0.1


class Done(msgspec.Struct, frozen=True):
    name: str
    cleared: list[str]  # digests


def clear(home: Path, name: str, begins: str = "") -> Done:
    """Of the model `name`, all that is barred here, or what `begins` so. Raises RequestError, Unavailable."""
    status.of(home)
    disk = RealDisk()
    known = disk.list(home / "models")
    if name not in known:
        raise RequestError(f"expected an installed model among {', '.join(known) or 'none'}, got {name!r}")
    before = slots.load(disk, home / "models" / name)
    barred = orders.barred(before)
    wanted = [digest for digest in barred if digest.startswith(begins)]
    if not wanted:
        if not barred:
            raise RequestError(f"nothing of {name} is blocked or held here, so there is nothing to clear")
        others = ", ".join(digest[:16] for digest in barred)
        raise RequestError(f"expected a digest of {name} that is blocked or held here ({others}), got {begins!r}")
    sideload.ask_to_clear(disk, home, name, wanted)
    if status.alive(home):
        _wait(disk, home / "models" / name, before)
    else:
        with Agent(home, transport=NoHub()):
            _wait(disk, home / "models" / name, before)
    return Done(name, wanted)


def _wait(disk: RealDisk, root: Path, before: slots.ModelState) -> None:
    """Until it was done: what is still wanted may be tried, and blocked again, at once. Raises Unavailable."""
    end = time.monotonic() + LONGEST_S
    while (now := slots.load(disk, root)).record == before.record and now.blocked == before.blocked:
        if time.monotonic() >= end:
            raise Unavailable(
                f"{root.name} is not cleared after {LONGEST_S:.0f} s: the agent is busy, and does it when it is not"
            )
        time.sleep(LOOK_S)
