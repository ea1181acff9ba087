"""Rows of control.rollouts: found, told to people, and what a state writes into its own; and notes of who did what."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.errors import RequestError

from ..storage import control
from .gates import SequentialGate
from .label_past import unknown
from .members import STATUSES, Members
from .progress import packed, unpacked
from .specification import RolloutSpec, Stage, is_selector, stage_size, stored
from .state import ACTIVE, BLOCKS, RolloutState

NAMES: Final = 3  # of devices that are told
ASKED: Final = (
    "selector", "devices", "windows", "concurrency", "bandwidth_bytes_s", "cooldown_s", "experiment", "window_s",
    "device_timeout_s",
)  # fmt: skip


class NotFound(RequestError):
    """No rollout has this id."""


def describe(row: sa.Row[Any]) -> dict[str, Any]:
    """A row of control.rollouts as people read it: JSON values only."""
    spec, state = stored(row.spec), unpacked(row.progress)
    members, reachable = state.members, len(state.members)
    asked = msgspec.to_builtins(spec)
    counts = np.bincount(members.status, minlength=len(STATUSES)).tolist()
    return {
        "id": row.id,
        "model": spec.model,
        "version": spec.version,
        "digest": spec.digest,
        "fleet": spec.fleet,
        "whom": whom(spec),
        "asked": {name: asked[name] for name in ASKED},
        "state": state.state,
        "outcome": state.outcome,
        "standing": state.state if state.state in ACTIVE else state.outcome or state.state,
        "reason": "; ".join(dict.fromkeys(filter(None, (state.paused, state.reason)))),
        "stage": state.stage,
        "stages": [{"size": s, "devices": _devices(members, i, s)} for i, s in enumerate(spec.ladder)],
        "devices_total": reachable,
        "devices_exposed": state.exposed,
        "devices_by_status": {status: n for status, n in zip(STATUSES, counts, strict=True) if n},
        "not_waited_for": unknown(spec.gate, members),
        "figures": [msgspec.to_builtins(figure) for figure in state.figures],
        "approvals": {"needed": spec.approvals, "author": state.author, "by": list(state.approved)},
        "effects": [msgspec.to_builtins(effect) for effect in state.effects],
        "conclusion": msgspec.to_builtins(state.conclusion),
        "created_ms": row.created_ms,
        "updated_ms": row.updated_ms,
    }


def whom(spec: RolloutSpec) -> str:
    """Whom it means, in words: all conditions hold."""
    named = ", ".join(spec.devices[:NAMES]) + (f" and {len(spec.devices) - NAMES} more" * (len(spec.devices) > NAMES))
    parts = (f"fleet {spec.fleet}" if spec.fleet else "", spec.selector, named)
    return "; ".join(filter(None, parts)) or "all"


def _devices(members: Members, place: int, stage: Stage) -> int:
    """How many a stage is for, of those that take part."""
    part = ~members.has("gone")
    if is_selector(stage):
        return int(np.count_nonzero(part & (members.group == place)))
    return stage_size(stage, int(np.count_nonzero(part)))


def gate_of(row: sa.Row[Any]) -> SequentialGate:
    return SequentialGate(stored(row.spec).gate)


def columns(state: RolloutState, now_ms: int) -> dict[str, Any]:
    return {"state": state.state, "progress": packed(state), "updated_ms": now_ms}


def note(connection: sa.Connection, now_ms: int, who: str, what: str, detail: str) -> None:
    connection.execute(control.audit.insert().values(at_ms=now_ms, who=who, what=what, detail=detail))


def blocked(connection: sa.Connection) -> dict[str, str]:
    """Which rollout keeps others from beginning with a package that it sent back, by digest."""
    r = control.rollouts.c
    came_to = r.progress["outcome"].as_string()
    rows = sa.select(r.spec["digest"].as_string(), r.id).where(came_to.in_(BLOCKS)).order_by(r.created_ms.desc())
    return {row[0]: row[1] for row in connection.execute(rows)}


def find(connection: sa.Connection, rollout_id: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(control.rollouts).where(control.rollouts.c.id == rollout_id)).first()
    if row is None:
        raise NotFound(f"no rollout is called {rollout_id!r}; `edgewright rollout status` lists them")
    return row
