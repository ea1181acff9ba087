"""A hub in a process of its own that is killed in the middle of one thing that it does."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from edgewright_hub.registry.registry import Registry
from edgewright_hub.rollouts.conductor import Conductor
from edgewright_hub.storage.places import Places
from edgewright_hub.storage.store import open_engine

from .house import SETTINGS

Moment = Literal["decided", "committed"]  # all decided and nothing written; all written and nothing told


def die(place: Path, stored: Places, moment: Moment, method: str, arguments: Any, named: Any) -> None:
    """What `Conductor.method` does, until the kill."""
    control = open_engine(stored.control, schema="control")
    telemetry = open_engine(stored.telemetry, schema="telemetry")
    if moment == "decided":
        sa.event.listen(control, "commit", _kill)
    registry = Registry(place / "repo", place / "keys", control)
    getattr(Conductor(control, telemetry, registry, _kill, SETTINGS), method)(*arguments, **named)
    _kill()  # it told nobody anything


def _kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
