"""What the agent says of itself at each connection: its birth."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from edgewright_contracts import __version__, birth
from edgewright_contracts.birth import Birth, Hardware, Slot
from edgewright_contracts.errors import ContractError

from . import clock as clocks
from .clock import Clock
from .delivery.spool import Spool
from .updating.slots import ModelState
from .updating.update import UNDER_WAY, State

SLOTS: Final = 64  # of a birth

log = logging.getLogger(__name__)


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
    """Of more slots than a birth can carry, those that answer come first."""
    told = sorted(slots(states), key=lambda slot: slot.state == "previous")[:SLOTS]

    def said(told: Sequence[Slot]) -> bytes:
        return birth.encode(
            Birth(
                device=device,
                boot_id=boot_id,
                connection=connection,
                agent=__version__,
                hardware=hardware(),
                runtimes=dict(runtimes),
                slots=tuple(told),
                clock=clocks.state(clock),
                uptime_ms=clock.monotonic_ns() // 1_000_000,
                window_s=window_s,
                unclean=spool.state.unclean,
                spool=spool.told(),
                desired_rev=desired_rev,
            )
        )

    while True:
        try:
            return said(told)
        except ContractError:  # too long: names may have 63 characters
            if not told:
                raise
            log.warning("a birth does not hold all %d slots", len(told))
            told = told[: len(told) * 3 // 4]


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
