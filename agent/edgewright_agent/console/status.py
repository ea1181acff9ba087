"""What a device's home says about it, read from its disk: works beside a running agent, and over ssh without one. What
only the running agent knows, it is asked at its socket."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from edgewright_contracts import desired as down
from edgewright_contracts.errors import ContractError, RequestError

from .. import identity
from ..delivery import journal
from ..disk import RealDisk
from ..hosting import live
from ..hosting.live import Live
from ..identity import Identity
from ..updating import sideload, slots
from ..updating.recovery import recover
from ..updating.slots import Slot
from ..updating.update import Record, State


class ModelStatus(msgspec.Struct, frozen=True):
    name: str
    state: str
    running: Slot | None
    previous: Slot | None
    wanted: str  # digest
    attempt: int
    reason: str
    failure: str | None
    blocked: dict[str, str]
    waits: str = ""  # what the probation waits for


class Status(msgspec.Struct, frozen=True):
    device: str
    hub: str  # HOST:PORT; "" without one
    alive: bool  # whether an agent holds this home now
    desired_rev: int
    spool_id: str
    next_seq: int
    unacknowledged: int
    sealed: int
    dropped: int
    models: list[ModelStatus]
    certificate_ends: float | None = None  # unix seconds; None: it cannot be read
    proxy: str = ""  # without its password
    damage: str = ""  # of the identity
    live: Live | None = None  # what the running agent says itself; None: none answers
    free_mb: int = 0  # of the disk that the home is on


def read(home: Path) -> Status:
    """Raises RequestError when `home` is not enrolled and holds no package."""
    who = of(home)
    disk = RealDisk()
    held = journal.read(disk, home / "spool").state
    return Status(
        device=who.device,
        damage=who.damage,
        hub="" if who.alone else f"{who.hub.broker.host}:{who.hub.broker.port}",
        alive=alive(home),
        desired_rev=_rev(home),
        spool_id=held.spool_id if held else "",
        next_seq=held.next_seq if held else 1,
        unacknowledged=len(held.numbered) if held else 0,
        sealed=len(held.unnumbered) if held else 0,
        dropped=held.dropped if held else 0,
        models=[_model(disk, home / "models" / name) for name in disk.list(home / "models")],
        certificate_ends=valid.ends if (valid := who.validity()) else None,
        proxy=who.hub.proxy.rpartition("@")[2],
        live=live.ask(home),
        free_mb=disk.free(home) >> 20,
    )


def of(home: Path) -> Identity:
    """Whose home it is. A model that is installed answers whatever became of the identity beside it, without a hub.
    Raises RequestError, ContractError."""
    lone = sideload.waiting(home) and not identity.is_enrolled(home)
    try:
        return identity.alone(home) if lone else identity.load(home)
    except RequestError as error:
        if not any((home / "models").glob("*/[ab]/manifest.json")):
            raise
        return msgspec.structs.replace(identity.alone(home), damage=str(error))


def alive(home: Path) -> bool:
    lock = home / "agent.lock"
    if not lock.exists():
        return False
    descriptor = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _model(disk: RealDisk, root: Path) -> ModelStatus:
    damage = ""
    try:
        state = slots.load(disk, root)
    except ContractError as error:  # whoever looks at the device must see just this
        state, damage = recover(disk, root), f"{error}; the agent goes on from this at its next start"
    record = state.record
    return ModelStatus(
        name=root.name,
        state="damaged" if damage else record.state.value,
        running=state.running,
        previous=state.slot(state.spare),
        wanted=record.digest,
        attempt=record.attempt,
        reason=damage or record.reason,
        failure=record.failure,
        blocked=state.blocked,
        waits=_waits(record),
    )


def _waits(record: Record) -> str:
    wanted = record.wanted
    if record.state is not State.PROBATION or wanted is None:
        return ""
    asked = wanted.probation
    minutes, most = record.tried_s / 60, asked.max_s / 60
    return f"{record.healthy} of {asked.windows} healthy windows (with an inference), {minutes:.0f} of {most:.0f} min"


def _rev(home: Path) -> int:
    try:
        return down.decode_desired((home / "desired.json").read_bytes()).rev
    except (FileNotFoundError, ContractError):
        return 0
