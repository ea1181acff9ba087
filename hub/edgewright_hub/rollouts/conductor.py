"""The shell around `rollout.step`: reads what was reported, steps every rollout, writes and publishes what is desired.

Guarantee: one transaction of hub.db holds the new state of every rollout, the new desired documents and the positions
up to which telemetry.db was read. A hub that dies before it repeats the tick, one that dies after has done it; the
documents are published after the commit, and all of them again at every connection (`consumer`), so a device may get
one twice but never misses one. Revisions of a device's document rise strictly.

Order in a tick: new devices get what is promoted; then events, then windows, both in the order of their arrival; then
documents follow the configuration that operators set.
`tick` and the commands of people exclude one another; both may be called from any thread. Cost of an idle tick: six
small SELECTs, about 10 µs for each device. `drift` has ticks of its own, so that neither can hold up the other.

A rollout whose step fails says so in its reason and stands still, without what was reported meanwhile; the others go
on. Only a database that fails stops a tick, which is then repeated whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.desired import Config, Desired

from ..drift.fleet_drift import FleetDrift
from ..fleet.orders import Orders, Publish
from ..fleet.roster import Roster
from ..fleet.selectors import Device
from ..registry import stages
from ..registry.registry import Registry
from ..storage import control
from ..storage.store import upsert
from . import admission, configuration, desired_documents, evidence, hours, notices, plan, revocation, rollout
from .abilities import Abilities
from .configuration import Configurations
from .desired_documents import Changes, Documents, current
from .downloads import expected
from .experiment import Answer
from .gates import Ledger, SequentialGate
from .members import Members
from .progress import unpacked
from .promoted import Promoted, newcomers, promoted
from .prospects import Prospects
from .readings import BATCH, Readings
from .records import columns, describe, find, note
from .specification import RolloutSpec, stored
from .state import ACTIVE, RolloutState
from .wishes import NOTHING, Wish, Wishes

Verb = Literal["pause", "resume", "abort", "revert"]  # what a person may do to a rollout

_LOG = logging.getLogger(__name__)

Decided = tuple[RolloutState, Wishes]
Grant = tuple[Wish, str, RolloutSpec | None]  # a wish, the rollout that has it ("": none), and its specification


class Conductor:
    """`publish` hands a document to the broker; it may be called from the thread that calls `tick`."""

    def __init__(
        self,
        control_engine: sa.Engine,
        telemetry_engine: sa.Engine,
        registry: Registry,
        publish: Publish,
        config: Config = Config(),  # noqa: B008 (frozen)
    ) -> None:
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
        self.drift = FleetDrift(control_engine, telemetry_engine, registry.blobs)

    def tick(self, now_ms: int) -> bool:
        """Everything that is due. True when there was more to read than one tick takes: call it again soon."""
        with self._lock:
            more, changed = self._rollouts(now_ms)
            self._send(changed)  # inside the lock: an older document must not be published after a newer one
        return more

    # Commands of people.

    def create_rollout(self, spec: RolloutSpec, *, who: str, now_ms: int, force: bool = False) -> str:
        """Start a rollout and return its id; the first devices are given the release at the next tick.

        Raises, before anything moves, RequestError for values that cannot be stored, and as `admission.propose`.
        """
        seen = self._prospects.look(spec, now_ms, force=force)
        with self._lock, self._control.begin() as connection:
            fleet, proposal = self._prospects.propose(connection, seen.proposal.spec, now_ms, force=force)
            spec, joined, processes = proposal.spec, seen.joined, seen.processes
            if proposal.previous != seen.proposal.previous:  # something else moved meanwhile
                joined, processes = self._readings.before(spec, fleet, proposal.previous, now_ms)
            mark = hashlib.sha256(f"{now_ms}{spec.digest}".encode()).hexdigest()[:4]
            state = RolloutState(id=f"r{proposal.number}-{mark}", author=who)
            state = rollout.enrol(msgspec.structs.replace(state, ledger=Ledger(processes)), joined)
            state, _ = rollout.command(state, spec, "start", f"started by {who}", now_ms)
            values = {"id": state.id, "name": spec.model, "spec": msgspec.to_builtins(spec), "created_ms": now_ms}
            connection.execute(control.rollouts.insert().values(**values, **columns(state, now_ms)))
            forced = ", although devices rest from it" if force else ""
            note(connection, now_ms, who, "rollout create", f"{state.id}: {spec.model} {spec.version}{forced}")
            return state.id

    def plan(self, spec: RolloutSpec, *, now_ms: int, force: bool = False) -> dict[str, Any]:
        """What it would do: `plan.plan`. Nothing moves; what `create_rollout` would refuse is refused here too."""
        return self._prospects.plan(self._prospects.look(spec, now_ms, force=force), now_ms)

    def command(self, rollout_id: str, event: Verb, *, who: str, now_ms: int, reason: str = "") -> None:
        """Pause, resume, abort or revert; the last two send devices back to what they had: every one that was given
        the release, or, of a rollout that is done, those that are still told to run it."""
        why = f": {reason}" if reason else ""

        def decide(state: RolloutState, spec: RolloutSpec, documents: Mapping[str, Desired]) -> Decided:
            if event != "revert":
                return rollout.command(state, spec, event, f"{event} by {who}{why}", now_ms)
            still = [current(documents.get(d), spec.model) == spec.digest for d in state.members.devices]
            return rollout.revert(state, np.array(still, np.bool_), f"reverted by {who}{why}", now_ms)

        self._decide(rollout_id, event, decide, who=who, now_ms=now_ms, reason=reason)

    def approve(self, rollout_id: str, digest: str, *, who: str, now_ms: int) -> None:
        """`who` consents to this digest. Raises RequestError, Refused: `rollout.approve`."""
        self._decide(
            rollout_id,
            "approve",
            lambda state, spec, _: (rollout.approve(state, spec, who, digest, now_ms), NOTHING),
            who=who,
            now_ms=now_ms,
        )

    def conclude(self, rollout_id: str, answer: Answer, *, who: str, now_ms: int) -> None:
        """End an experiment. Raises RequestError, Refused: `rollout.conclude`."""
        self._decide(
            rollout_id,
            f"conclude, {answer}",
            lambda state, spec, _: rollout.conclude(state, spec, answer, f"{answer}: {who} concluded so", now_ms),
            who=who,
            now_ms=now_ms,
        )

    def _decide(
        self,
        rollout_id: str,
        what: str,
        decide: Callable[[RolloutState, RolloutSpec, Mapping[str, Desired]], Decided],
        *,
        who: str,
        now_ms: int,
        reason: str = "",
    ) -> None:
        """A person's decision, the documents that follow from it, and the note of it: in one transaction."""
        with self._lock:
            with self._control.begin() as connection:
                row = find(connection, rollout_id)
                spec, fleet = stored(row.spec), self.roster.read(connection)
                documents = self._documents.read(connection)
                before = unpacked(row.progress)
                state, asked = decide(before, spec, documents)
                wishes = hours.timed(asked.expand(state.members, spec), spec, fleet, documents, now_ms)
                changes = self._changes(connection, documents, {}, fleet)
                _write(connection, {state.id: columns(state, now_ms)}, [(w, state.id, spec) for w in wishes], changes)
                note(connection, now_ms, who, f"rollout {what}", f"{rollout_id}: {reason}" if reason else rollout_id)
                notices.moved(connection, before, state, spec, now_ms)
            self._send(changes.bodies)

    def revoke(self, name: str, version: str, *, reason: str, who: str, now_ms: int) -> list[str]:
        """Nobody may run this package from now on; the devices that are sent back at once. Rollouts of it under way
        take it back at the next tick. Raises RequestError: `stages.decide`."""
        with self._lock:
            with self._control.begin() as connection:
                package = stages.decide(connection, name, version, "revoke", reason=reason, who=who, now_ms=now_ms)
                fleet, documents = self.roster.read(connection), self._documents.read(connection)
                rows = connection.execute(sa.select(control.rollouts).order_by(control.rollouts.c.created_ms)).all()
                done, gone = self._promoted(connection), admission.withdrawn(connection).keys()
                wishes = revocation.taken_back(name, package.digest, fleet, documents, rows, done, gone)
                changes = self._changes(connection, documents, {}, fleet)
                _write(connection, {}, [(wish, "", None) for wish in wishes], changes)
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
        devices = [
            {"device": m.device, "status": m.status, "stage": m.stage, "windows": m.windows, "reason": m.reason}
            for m in state.members.rows()
        ]
        return {**describe(row), "devices": devices, "excluded": plan.told(unable)}

    # A tick.

    def _rollouts(self, now_ms: int) -> tuple[bool, Mapping[str, bytes]]:
        with self._control.connect() as connection:
            fleet, documents = self.roster.read(connection), self._documents.read(connection)
            cursors, withdrawn = _cursors(connection), admission.withdrawn(connection)
            r = control.rollouts.c
            under_way = sa.select(control.rollouts).where(r.state.in_(ACTIVE)).order_by(r.created_ms, r.id)
            active = connection.execute(under_way).all()
            done = self._promoted(connection, active)
            ahead = self._documents.ahead(documents, self._readings.held())
            changes = self._changes(connection, documents, ahead, fleet)
        for device in fleet:
            changes.configure(device)
        grants: list[Grant] = [(wish, "", None) for wish in newcomers(fleet, documents, done, now_ms)]
        windows, events = self._readings.arrived(cursors, reading=bool(active))
        stepped: dict[str, dict[str, Any]] = {}
        told: list[Callable[[sa.Connection], None]] = []  # what people are to know
        heard = self._readings.heard() if active else {}
        present = frozenset(device for device, one in heard.items() if one.present(now_ms))
        for row in active:
            try:
                spec, before = stored(row.spec), unpacked(row.progress)
                joined = self._readings.joined(spec, before, fleet, documents, done, self._abilities, now_ms)
                whole = rollout.enrol(before, joined)
                seen = evidence.observe(spec, whole, windows, events, present, heard, now_ms)
                seen = dataclasses.replace(
                    seen,
                    held=np.array([d in fleet and fleet[d].held for d in whole.members.devices], np.bool_),
                    open=hours.open_now(spec, whole.members, fleet, now_ms),
                    withdrawn=withdrawn.get(spec.digest, ""),
                    **self._known(spec, whole.members),
                )
                after, more = rollout.step(whole, spec, seen, SequentialGate(spec.gate), now_ms)
            except sa.exc.SQLAlchemyError:
                raise
            except Exception as error:
                said = f"this rollout cannot be judged ({type(error).__name__}: {error}); the hub's log says more"
                if row.progress.get("reason") != said:
                    _LOG.exception("rollout %s cannot be judged", row.id)
                    stepped[row.id] = {"progress": {**row.progress, "reason": said}, "updated_ms": now_ms}
                    told.append(partial(notices.stuck, rollout_id=row.id, said=said, now_ms=now_ms))
                continue
            grants += [
                (revocation.redirected(wish, fleet, done, withdrawn.keys()), after.id, spec)
                for wish in hours.timed(more.expand(after.members, spec), spec, fleet, documents, now_ms)
            ]
            if after != before:
                stepped[after.id] = columns(after, now_ms)
                told.append(partial(notices.moved, before=before, after=after, spec=spec, now_ms=now_ms))
        positions = {"rollout.windows": windows, "rollout.events": events}
        moved = {name: rows[-1].id for name, rows in positions.items() if rows}
        if stepped or moved or grants or changes.bodies:
            with self._control.begin() as connection:
                _write(connection, stepped, grants, changes)
                for tell in told:
                    tell(connection)
                rows = [{"name": name, "position": position} for name, position in moved.items()]
                upsert(connection, control.cursors, rows, keys=["name"])
        return max(len(windows), len(events)) == BATCH, changes.bodies

    def _promoted(self, connection: sa.Connection, active: Sequence[Any] = ()) -> list[Promoted]:
        """What newcomers get, as far as they can run it. The packages that rollouts are about are known then too."""
        found = promoted(connection, lambda device, digest: not self._abilities.why_not(device, digest))
        about = {digest for row in active for digest in (row.spec["digest"], *row.progress["members"]["digests"])}
        self._abilities.read(connection, {one.digest for one in found} | about)
        return found

    def _known(self, spec: RolloutSpec, members: Members) -> dict[str, Any]:
        """Of each device: whether it cannot run the release, and the bytes that it downloads where they are capped."""
        unable = np.array([bool(self._abilities.why_not(d, spec.digest)) for d in members.devices], np.bool_)
        if spec.bandwidth_bytes_s is None:
            return {"unable": unable}
        return {"unable": unable, "bytes": expected(members, spec.digest, self._abilities, self._prospects.patch)}

    def _changes(
        self,
        connection: sa.Connection,
        documents: Mapping[str, Desired],
        ahead: Mapping[str, int],
        fleet: Mapping[str, Device],
    ) -> Changes:
        self._configurations.read(connection, len(documents))
        return Changes(
            documents,
            ahead,
            lambda device: self._configurations.of(fleet.get(device) or Device(device)),
            held={device.id for device in fleet.values() if device.held},
            floor=desired_documents.floor(connection),
        )

    def _send(self, bodies: Mapping[str, bytes]) -> None:
        for device, body in bodies.items():
            self._publish(device, "desired", body, True)


def _write(
    connection: sa.Connection,
    stepped: Mapping[str, Mapping[str, Any]],  # columns of control.rollouts, by id
    grants: Iterable[Grant],
    changes: Changes,
) -> None:
    for rollout_id, values in stepped.items():
        connection.execute(control.rollouts.update().where(control.rollouts.c.id == rollout_id).values(**values))
    for wish, rollout_id, spec in grants:
        changes.grant(wish, rollout_id, spec)
    upsert(connection, control.desired, changes.rows(), keys=["device"])


def _cursors(connection: sa.Connection) -> dict[str, int]:
    return {row.name: row.position for row in connection.execute(sa.select(control.cursors))}
