"""Alerts about rollouts: they open and close in the transaction of what they are about, and the audit says why.

    rollout:ID         the release is sent back: a page, or a ticket where an experiment or a revocation takes it back
    rollout:ID:still   it stands still and needs a person, since it waits for approval, cannot be judged, or does not
                       get on (`headway`): a ticket
    rollout:ID:blocked another rollout sent its release back, so the hub paused it: a ticket

The first is over when a later release of the model was promoted to the same devices, since what was wrong has been put
right; those that were retired since, or that its rollout is not for any more, do not count. A ticket of it is over
already when all devices are back. The second is over when the rollout is judged again, or ends; the third when it ends,
or goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa

from ..alerts import alerts
from ..fleet.selectors import Device
from ..storage import control
from .admission import chosen
from .progress import unpacked
from .records import note
from .retreat import away
from .specification import RolloutSpec, stored
from .state import ACTIVE, GOING_BACK, RolloutState

QUIET: Final = ("taken back", "withdrawn")  # somebody wanted it so


def moved(
    connection: sa.Connection, before: RolloutState, after: RolloutState, spec: RolloutSpec,
    fleet: Mapping[str, Device], now_ms: int,
) -> None:  # fmt: skip
    """What people are told, or no longer told, of a step or a command."""
    if after.stage > before.stage and not before.exposed:
        note(connection, now_ms, "hub", "rollout stage", f"{after.id}: {after.reason}")
    if after.state == "rolling-back" and before.state != "rolling-back":
        _sent_back(connection, after, spec, now_ms)
    if after.state == "rolled-back" and before.state != "rolled-back" and after.outcome in QUIET and not away(after):
        _close(connection, f"rollout:{after.id}", "all devices are back", now_ms)
    if after.state == "done" and before.state != "done":
        _superseded(connection, after, spec, fleet, now_ms)
    if after.state not in ACTIVE or after.state in GOING_BACK:
        _close(connection, f"rollout:{after.id}:blocked", f"it is {after.state}", now_ms)
    why = after.headway.stalled
    if why and why != before.headway.stalled:
        consent = f"`edgewright rollout approve {after.id} --digest {spec.digest}`, or abort it"
        way = consent if after.state == "unapproved" else f"Its reason: {after.reason}"
        stuck(connection, after.id, f"{why}. {way}", now_ms)
    if not why:
        said = "it gets on" if after.state == "running" else f"it is {after.state}"
        _close(connection, f"rollout:{after.id}:still", said, now_ms)


def stuck(connection: sa.Connection, rollout_id: str, said: str, now_ms: int) -> None:
    alerts.open_alert(
        connection,
        f"rollout:{rollout_id}:still",
        severity="ticket",
        kind="rollout",
        subject=rollout_id,
        text=f"rollout {rollout_id} stands still: {said}",
        now_ms=now_ms,
    )


def blocked(connection: sa.Connection, rollout_id: str, spec: RolloutSpec, why: str, now_ms: int) -> None:
    note(connection, now_ms, "hub", "rollout pause", f"{rollout_id}: {spec.model} {spec.version} is blocked: {why}")
    alerts.open_alert(
        connection,
        f"rollout:{rollout_id}:blocked",
        severity="ticket",
        kind="rollout",
        subject=rollout_id,
        text=f"rollout {rollout_id} is paused: {spec.model} {spec.version} is blocked: {why}. "
        f"`edgewright rollout abort {rollout_id}` takes it back",
        now_ms=now_ms,
    )


def _sent_back(connection: sa.Connection, state: RolloutState, spec: RolloutSpec, now_ms: int) -> None:
    alerts.open_alert(
        connection,
        f"rollout:{state.id}",
        severity="ticket" if state.outcome in QUIET else "page",
        kind="rollout",
        subject=state.id,
        text=f"{spec.model} {spec.version} is sent back from {state.exposed} devices: {state.reason}",
        now_ms=now_ms,
    )


def _superseded(
    connection: sa.Connection, state: RolloutState, spec: RolloutSpec, fleet: Mapping[str, Device], now_ms: int
) -> None:
    """Close what is open about earlier releases of the model that these devices were given."""
    reached = frozenset(state.members.devices)
    for row in _open(connection, spec.model):
        earlier, about = unpacked(row.progress), stored(row.spec)
        had = {d for d, given in zip(earlier.members.devices, earlier.members.given.tolist(), strict=True) if given}
        still = had.intersection(chosen(about, fleet))
        if row.id != state.id and row.state not in ACTIVE and still <= reached:
            whom = "all that were" if still == had else "all that are left of those that were"
            why = f"{spec.version} was promoted to {whom} given {about.version} (rollout {state.id})"
            _close(connection, f"rollout:{row.id}", why, now_ms)


def _open(connection: sa.Connection, model: str) -> Iterable[sa.Row[Any]]:
    """Rollouts of the model with an open alert."""
    a, r = control.alerts.c, control.rollouts.c
    query = sa.select(control.rollouts).join(control.alerts, a.subject == r.id)
    return connection.execute(query.where(a.kind == "rollout", a.open_key.is_not(None), r.name == model)).all()


def _close(connection: sa.Connection, key: str, why: str, now_ms: int) -> None:
    if alerts.close_alert(connection, key, now_ms=now_ms):
        note(connection, now_ms, "hub", "alert close", f"{key}: {why}")
