"""A package by hand, at once: where no agent runs, one is started until the package answers or is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable

from .. import identity
from ..agent import Agent
from ..delivery.nohub import NoHub
from ..disk import RealDisk
from ..updating import sideload as sideloads
from ..updating import slots
from ..updating.slots import ModelState
from ..updating.update import Record, State
from . import status

LONGEST_S: Final = 600.0  # a large model tests itself slowly on a small device
LOOK_S: Final = 0.1


class Done(msgspec.Struct, frozen=True):
    """`answers` is false when a running agent was left to take it up; then it has no variant yet."""

    name: str
    version: str
    digest: str
    trusted: str
    answers: bool
    variant: str = ""
    runtime: str = ""


def sideload(home: Path, file: Path, *, key: str | None, this_file: bool) -> Done:
    """Raises RequestError, ContractError, Refused (not trusted, fails its self-test, not suited), Unavailable."""
    if key is not None and (len(key) != 64 or set(key) - set("0123456789abcdef")):
        raise RequestError(f"expected --key as `edgewright sign` prints it, 64 digits of 0-9 and a-f, got {key[:80]!r}")
    disk = RealDisk()
    enrolled = identity.is_enrolled(home)
    disk.mkdir(home)
    rev = status.read(home).desired_rev if enrolled else 0
    began = {name: _record(disk, home / "models" / name) for name in disk.list(home / "models")}
    wish = sideloads.offer(disk, home, file, enrolled=enrolled, rev=rev, key=key, this_file=this_file)
    done = Done(wish.name, wish.version, wish.digest, wish.trusted, answers=False)
    if status.alive(home):
        return done
    with Agent(home, transport=NoHub()) as agent:
        end = time.monotonic() + LONGEST_S
        while time.monotonic() < end:
            state = agent.states().get(wish.name)
            running = state.running if state else None
            if running is not None and running.digest == wish.digest:
                return msgspec.structs.replace(done, answers=True, variant=running.variant, runtime=running.runtime)
            if state is not None:
                _refused(state, wish.digest, began.get(wish.name))
            time.sleep(LOOK_S)
    raise Unavailable(
        f"{wish.name} {wish.version} is not installed after {LONGEST_S:.0f} s; `agent run` goes on with it"
    )


def _record(disk: RealDisk, root: Path) -> Record | None:
    try:
        return slots.load(disk, root).record
    except ContractError:
        return None  # the agent will say so, and recover


def _refused(state: ModelState, digest: str, began: Record | None) -> None:
    """Raises Refused when the machine has given this package up for now; `began` is what it was at before."""
    record, running = state.record, state.running
    now = f"{running.version} goes on answering" if running else "no package answers now"
    if digest in state.blocked:
        raise Refused(f"the package does not work on this device: {state.blocked[digest]}; {now}")
    given_up = record.state in (State.IDLE, State.HELD) and record.digest == digest and record.failure is not None
    if given_up and record != began:
        raise Refused(f"not installed: {record.reason}; {now}")
