"""What the agent says of itself at each connection: its birth."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgewright_contracts import birth
from edgewright_contracts.birth import Birth, Hardware, Slot

from . import clock as clocks
from .clock import Clock
from .delivery.spool import Spool
from .updating.slots import ModelState
from .updating.update import UNDER_WAY, State


def born(
    *,
    device: str,
    boot_id: str,
    connection: int,
    runtimes: Mapping[str, str],
    states: Mapping[str, ModelState],
    spool: Spool,
    clock: Clock,
    window_s: int,
    desired_rev: int,
) -> bytes:
    return birth.encode(
        Birth(
            device=device,
            boot_id=boot_id,
            connection=connection,
            agent=importlib.metadata.version("edgewright"),
            hardware=hardware(),
            runtimes=dict(runtimes),
            slots=tuple(slots(states)),
            clock=clocks.state(clock),
            uptime_ms=clock.monotonic_ns() // 1_000_000,
            window_s=window_s,
            unclean=spool.state.unclean,
            spool=spool.told(),
            desired_rev=desired_rev,
        )
    )


def hardware() -> Hardware:
    board = Path("/proc/device-tree/model")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return Hardware(
        arch=platform.machine().lower(),
        model=board.read_text(errors="replace").strip("\0\n ") if board.exists() else "",
        cores=os.cpu_count() or 0,
        ram_mb=pages >> 20,
    )


def slots(states: Mapping[str, ModelState]) -> list[Slot]:
    """Every filled slot of every model."""
    found = []
    for name, state in states.items():
        on_trial = state.record.state is State.PROBATION
        staging = state.record.state in UNDER_WAY - {State.FETCH}
        for side, slot in (("a", state.a), ("b", state.b)):
            if slot is None:
                continue
            kind: Literal["active", "previous", "staged", "probation"]
            if side == state.active:
                kind = "probation" if on_trial else "active"
            else:
                kind = "staged" if staging and slot.digest == state.record.digest else "previous"
            found.append(Slot(model=name, digest=slot.digest, version=slot.version, variant=slot.variant, state=kind))
    return found
