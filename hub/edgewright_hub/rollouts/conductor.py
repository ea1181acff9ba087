"""The shell around `rollout.step`: ticks and the commands of people exclude one another, and devices are told of both.

Guarantee: one transaction of hub.db holds the new state of every rollout, the new desired documents and the positions
up to which telemetry.db was read (`rounds`). A hub that dies before it repeats the tick, one that dies after has done
it; the documents are published after the commit, and all of them again at every connection (`consumer`), so a device
may get one twice but never misses one. Revisions of a device's document rise strictly.

All may be called from any thread. `drift` has ticks of its own, so that neither can hold up the other.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.desired import Config

from ..drift.fleet_drift import FleetDrift
from ..fleet.orders import Orders, Publish
from ..fleet.roster import Roster
from ..registry import stages
from ..registry.registry import Registry
from ..storage import control
from . import admission, configuration, hours, notices, plan, reversal, revocation, rollout
from .abilities import Abilities
from .configuration import Configurations
from .desired_documents import Documents
from .experiment import Answer
from .latecomers import Latecomers
from .progress import unpacked
from .promoted import promoted
from .prospects import Prospect, Prospects
from .readings import Readings
from .records import columns, describe, find, note
from .reversal import Around
from .rounds import Rounds, write
from .specification import RolloutSpec, stored
from .state import ACTIVE, RolloutState
from .wishes import NOTHING, Wishes

Verb = Literal["pause", "resume", "abort", "revert"]  # what a person may do to a rollout

Decided = tuple[RolloutState, Wishes]


class Conductor:
    """`publish` hands a document to the broker; it may be called from the thread that calls `tick`."""

    def __init__(
        self,
        control_engine: sa.Engine,
        telemetry_engine: sa.Engine,
        registry: Registry,
        publish: Publish,
        config: Config = Config(),  # noqa: B008 (frozen)
        approvals: int = 0,  # that every rollout needs, whatever it asks for
    ) -> None:
        self._approvals = approvals
        self._control = control_engine
        self._readings = Readings(telemetry_engine)
        self._publish = publish
        self._configurations = Configurations(config)
        self._documents = Documents()
        self.roster = Roster(telemetry_engine)
        self.orders = Orders(control_engine, telemetry_engine, publish)
        self._lock = threading.Lock()
        self._abilities = Abilities(telemetry_engine)
        self._prospects = Prospects(
            control_engine, self._readings, self.roster, self._documents, self._abilities, registry.folder
        )
        self._rounds = Rounds(
            control_engine,
            self._readings,
            self.roster,
            self._documents,
            self._configurations,
            self._abilities,
            self._prospects.patch,
            Latecomers(telemetry_engine),
        )
        self.drift = FleetDrift(control_engine, telemetry_engine, registry.blobs)

    def tick(self, now_ms: int) -> bool:
        """Everything that is due. True when there was more to read than one tick takes: call it again soon."""
        with self._lock:
            more, changed = self._rounds.go(now_ms)
            self._send(changed)  # inside the lock: an older document must not be published after a newer one
        return more

    # Commands of people.

    def create_rollout(self, spec: RolloutSpec, *, who: str, now_ms: int, force: bool = False) -> str:
        """Start a rollout and return its id; the first devices are given the release at the next tick.

        Raises, before anything moves, RequestError for values that cannot be stored, and as `admission.propose`.
        """
        seen = self._prospects.look(self._consented(spec), now_ms, force=force)
        with self._lock, self._control.begin() as connection:
            seen = self._prospects.look_again(connection, seen, seen.proposal.spec, now_ms, force=force)
            spec = seen.proposal.spec
            mark = hashlib.sha256(f"{now_ms}{spec.digest}".encode()).hexdigest()[:4]
            state = seen.begin(RolloutState(id=f"r{seen.proposal.number}-{mark}", author=who))
            state, _ = rollout.command(state, spec, "start", f"started by {who}", now_ms)
            values = {"id": state.id, "name": spec.model, "spec": msgspec.to_builtins(spec), "created_ms": now_ms}
            connection.execute(control.rollouts.insert().values(**values, **columns(state, now_ms)))
            forced = ", although devices rest from it" if force else ""
            note(connection, now_ms, who, "rollout create", f"{state.id}: {spec.model} {spec.version}{forced}")
            return state.id

    def plan(self, spec: RolloutSpec, *, now_ms: int, force: bool = False) -> dict[str, Any]:
        """What it would do: `plan.plan`. Nothing moves; what `create_rollout` would refuse is refused here too."""
        return self._prospects.plan(self._prospects.look(self._consented(spec), now_ms, force=force), now_ms)

    def _consented(self, spec: RolloutSpec) -> RolloutSpec:
        return msgspec.structs.replace(spec, approvals=max(spec.approvals, self._approvals))

    def command(self, rollout_id: str, event: Verb, *, who: str, now_ms: int, reason: str = "") -> None:
        """Pause, resume, abort or revert; the last two send devices back to what they had: every one that was given
        the release, or, of a rollout that is done, those that have it from that one still (`reversal`)."""
        why = f": {reason}" if reason else ""

        def decide(state: RolloutState, spec: RolloutSpec, around: Around) -> Decided:
            if event == "revert":
                return reversal.revert(state, spec, around, f"reverted by {who}{why}", now_ms)
            return rollout.command(state, spec, event, f"{event} by {who}{why}", now_ms)

        onward = event == "resume"
        self._decide(rollout_id, event, decide, who=who, now_ms=now_ms, reason=reason, onward=onward)

    def approve(self, rollout_id: str, digest: str, *, who: str, now_ms: int) -> None:
        """`who` consents to this digest. With the last consent the rollout begins as if it were created now: with these
        devices, what they run, and what they did in the 24 hours before.

        Raises RequestError, Refused: `rollout.approve`, `admission.refuse_onward`, `admission.propose`.
        """
        with self._control.connect() as connection:
            row = find(connection, rollout_id)
        spec, seen = stored(row.spec), None
        if rollout.is_last(unpacked(row.progress), spec, who, digest):
            seen = self._prospects.look(spec, now_ms, begins=rollout_id)
        self._decide(
            rollout_id,
            "approve",
            lambda state, spec, _: (rollout.approve(state, spec, who, digest, now_ms), NOTHING),
            who=who,
            now_ms=now_ms,
            onward=True,
            seen=seen,
        )

    def conclude(self, rollout_id: str, answer: Answer, *, who: str, now_ms: int) -> None:
        """End an experiment. Raises RequestError, Refused: `rollout.conclude`."""
        self._decide(
            rollout_id,
            f"conclude, {answer}",
            lambda state, spec, _: rollout.conclude(state, spec, answer, f"{answer}: {who} concluded so", now_ms),
            who=who,
            now_ms=now_ms,
            onward=answer == "promote",
        )

    def _decide(
        self,
        rollout_id: str,
        what: str,
        decide: Callable[[RolloutState, RolloutSpec, Around], Decided],
        *,
        who: str,
        now_ms: int,
        reason: str = "",
        onward: bool = False,
        seen: Prospect | None = None,
    ) -> None:
        """A person's decision, the documents that follow from it, and the note of it: in one transaction. `onward`:
        further devices are given the release after it. `seen`: what it meets if it begins with it, as far as known."""
        with self._lock:
            with self._control.begin() as connection:
                row = find(connection, rollout_id)
                spec, fleet = stored(row.spec), self.roster.read(connection)
                documents = self._documents.read(connection)
                before = unpacked(row.progress)
                r = control.rollouts.c
                others = sa.select(control.rollouts).where(r.name == spec.model, r.id != row.id).order_by(r.created_ms)
                done, gone = self._rounds.promoted(connection, but=row.id), admission.withdrawn(connection).keys()
                around = Around(fleet, documents, connection.execute(others).all(), done)
                state, asked = decide(before, spec, around)
                if onward:
                    admission.refuse_onward(connection, state.id, spec)
                if before.state == "unapproved" and state.state == "running":
                    met = self._prospects.look_again(connection, seen, spec, now_ms, begins=state.id)
                    state = met.begin(state)
                wishes = hours.timed(asked.expand(state.members, spec), spec, fleet, now_ms)
                wishes = revocation.safe(wishes, spec, fleet, documents, done, gone)
                state = msgspec.structs.replace(state, members=revocation.heading(state.members, wishes, spec.digest))
                changes = self._rounds.changes(connection, documents, {}, fleet)
                write(connection, {state.id: columns(state, now_ms)}, [(w, state.id, spec) for w in wishes], changes)
                note(connection, now_ms, who, f"rollout {what}", f"{rollout_id}: {reason}" if reason else rollout_id)
                notices.moved(connection, before, state, spec, fleet, now_ms)
            self._send(changes.bodies)

    def revoke(self, name: str, version: str, *, reason: str, who: str, now_ms: int) -> list[str]:
        """Nobody may run this package from now on; the devices that are sent back at once. Rollouts of it under way
        take it back at the next tick. Raises RequestError: `stages.decide`."""
        with self._lock:
            with self._control.begin() as connection:
                package = stages.decide(connection, name, version, "revoke", reason=reason, who=who, now_ms=now_ms)
                fleet, documents = self.roster.read(connection), self._documents.read(connection)
                rows = connection.execute(sa.select(control.rollouts).order_by(control.rollouts.c.created_ms)).all()
                done, gone = self._rounds.promoted(connection), admission.withdrawn(connection).keys()
                wishes = revocation.taken_back(name, package.digest, fleet, documents, rows, done, gone)
                changes = self._rounds.changes(connection, documents, {}, fleet)
                write(connection, {}, [(wish, "", None) for wish in wishes], changes)
            self._send(changes.bodies)
        return [wish.device for wish in wishes]

    def needed(self, connection: sa.Connection, *, since_ms: int) -> dict[str, str]:
        """Why rollouts need packages: `revocation.needed`."""
        rows = connection.execute(sa.select(control.rollouts)).all()
        return revocation.needed(rows, promoted(connection), since_ms=since_ms)

    def configure(self, asked: configuration.Asked, *, who: str, now_ms: int) -> list[dict[str, Any]]:
        """Keep settings of devices; their documents follow at the next tick. Answers as `configuration`.

        Raises RequestError, ContractError: `configuration.put`.
        """
        with self._lock, self._control.begin() as connection:
            fleet = self.roster.read(connection)
            configuration.put(connection, self._configurations.base, asked, fleet, who=who, now_ms=now_ms)
            whom = (
                ", ".join(asked.devices) or asked.select or (f"fleet {asked.fleet}" if asked.fleet else "all devices")
            )
            said = ", ".join(f"{key}={value}" for key, value in asked.settings.items())
            note(connection, now_ms, who, "config", f"{whom}: {'reset ' if asked.reset else ''}{said}".strip())
        return self.configuration(asked.fleet, asked.devices, asked.select)

    def configuration(self, fleet: str, names: Sequence[str], select: str = "") -> list[dict[str, Any]]:
        """What is in force for each of the devices, or the fleet, or whom a selector means, or all, as people read it:
        JSON values only."""
        with self._control.connect() as connection:
            devices = self.roster.read(connection)
            return configuration.told(connection, self._configurations.base, fleet, names, select, devices)

    def rollouts(self) -> list[dict[str, Any]]:
        """Every rollout as people read it, newest first: JSON values only."""
        with self._control.connect() as connection:
            rows = connection.execute(sa.select(control.rollouts).order_by(control.rollouts.c.created_ms.desc())).all()
        return [describe(row) for row in rows]

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """One of them, with its devices. Raises RequestError for an unknown id."""
        with self._control.connect() as connection:
            row = find(connection, rollout_id)
            spec, state = stored(row.spec), unpacked(row.progress)
            fleet = self.roster.read(connection)
            self._abilities.read(connection, {spec.digest})
        unable = defaultdict[str, list[str]](list)
        for device in admission.chosen(spec, fleet) if state.state in ACTIVE else ():
            if why := self._abilities.why_not(device, spec.digest):
                unable[f"cannot run it: {why}"].append(device)
        for place in np.flatnonzero(state.members.has("gone")).tolist():
            device = state.members.devices[place]
            unable[f"gone: {state.members.reasons.get(device, '')}"].append(device)
        if state.state == "done":
            for one in fleet.values():
                if why := self._rounds.latecomers.waits(row.spec, one):
                    unable[why].append(one.id)
        devices = [
            {"device": m.device, "status": m.status, "stage": m.stage, "windows": m.windows, "reason": m.reason}
            for m in state.members.rows()
        ]
        return {**describe(row), "devices": devices, "excluded": plan.told(unable)}

    def _send(self, bodies: Mapping[str, bytes]) -> None:
        for device, body in bodies.items():
            self._publish(device, "desired", body, True)
