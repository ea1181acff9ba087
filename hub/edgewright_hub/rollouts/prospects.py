"""What a rollout would meet if it began now: what `create`, `plan` and the last consent look at before anything moves.

To read the past of the devices takes longest (`readings`: seconds for a large fleet), and nobody else waits for it: the
conductor's lock is not held here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import sqlalchemy as sa

from edgewright_contracts import delta
from edgewright_contracts.built import built
from edgewright_contracts.errors import ContractError

from ..accuracy.labels import Source
from ..fleet.roster import Roster
from ..fleet.selectors import Device
from ..storage import control
from . import admission, label_past, plan, rollout
from .abilities import Abilities
from .admission import Proposal
from .desired_documents import Documents
from .downloads import download
from .gates import Ledger
from .label_delay import label_delay_h
from .label_past import DAY_MS, DAYS, Came, Counted
from .members import Member
from .processes import Metric, Process
from .readings import Readings
from .specification import RolloutSpec
from .state import NOBODY, RolloutState

TOGETHER: Final = 500  # devices whose labels are read in one SELECT


@dataclass(frozen=True, slots=True)
class Prospect:
    fleet: Mapping[str, Device]
    proposal: Proposal
    joined: tuple[Member, ...]
    processes: tuple[Process, ...]
    seldom: Mapping[Metric, Came]  # labels and outcomes that came before the last 24 hours only

    def begin(self, state: RolloutState) -> RolloutState:
        """The state with these devices and what they did until now, in place of all that it had of them."""
        anew = {"members": NOBODY, "ledger": Ledger(self.processes), "seldom": tuple(self.seldom)}
        return rollout.enrol(msgspec.structs.replace(state, **anew), self.joined)


class Prospects:
    def __init__(
        self,
        control_engine: sa.Engine,
        readings: Readings,
        roster: Roster,
        documents: Documents,
        abilities: Abilities,
        repository: Path,
    ) -> None:
        self._control, self._readings, self._roster = control_engine, readings, roster
        self._documents, self._abilities, self._repository = documents, abilities, repository

    def look(self, spec: RolloutSpec, now_ms: int, *, force: bool = False, begins: str = "") -> Prospect:
        """Raises RequestError for values that cannot be stored, and as `admission.propose`."""
        spec = _storable(spec)
        with self._control.connect() as connection:
            fleet, proposal = self._propose(connection, spec, now_ms, force, begins)
        return self._past(fleet, proposal, now_ms)

    def look_again(
        self,
        connection: sa.Connection,
        seen: Prospect | None,
        spec: RolloutSpec,
        now_ms: int,
        *,
        force: bool = False,
        begins: str = "",
    ) -> Prospect:
        """In the transaction that begins it: what was `seen` before, or what is seen now if something moved meanwhile.

        Raises as `admission.propose`.
        """
        fleet, proposal = self._propose(connection, spec, now_ms, force, begins)
        if seen is None or proposal.previous != seen.proposal.previous:
            return self._past(fleet, proposal, now_ms)
        return replace(seen, fleet=fleet, proposal=proposal)

    def _past(self, fleet: Mapping[str, Device], proposal: Proposal, now_ms: int) -> Prospect:
        spec = proposal.spec
        joined, processes = self._readings.before(spec, fleet, proposal.previous, now_ms)
        with self._control.connect() as connection:
            labels = _labelled(connection, joined, now_ms)
            return Prospect(fleet, proposal, *label_past.filled(spec.gate, joined, processes, labels))

    def _propose(
        self, connection: sa.Connection, spec: RolloutSpec, now_ms: int, force: bool, begins: str
    ) -> tuple[Mapping[str, Device], Proposal]:
        fleet, documents = self._roster.read(connection), self._documents.read(connection)
        with admission.or_abort(begins) if begins else nullcontext():
            return fleet, admission.propose(
                connection, spec, fleet, documents, self._abilities, now_ms=now_ms, force=force, begins=begins
            )

    def plan(self, seen: Prospect, now_ms: int) -> dict[str, Any]:
        """As people read it: `plan.plan`."""
        proposal = seen.proposal
        digest = proposal.spec.digest
        new = self._abilities.manifest(digest)
        assert new is not None, "it was proposed"
        downloads = {
            member.device: download(
                self._abilities.manifest(member.previous),
                new,
                self.patch,
                self._abilities.variant(member.device, digest),
            )
            for member in seen.joined
        }
        return plan.plan(
            proposal,
            seen.fleet,
            seen.joined,
            seen.processes,
            seldom=seen.seldom,
            reported_s=self._readings.reported_s(proposal.previous, now_ms),
            label_delay_s=None if (late := self._label_delay_h(proposal.spec.model, now_ms)) is None else 3600 * late,
            downloads=downloads,
            left_out=plan.excluded(proposal, seen.fleet, self._readings.heard(), now_ms),
            now_ms=now_ms,
        )

    def _label_delay_h(self, model: str, now_ms: int) -> float | None:
        p = control.packages.c
        with self._control.connect() as connection:
            digests = connection.execute(sa.select(p.digest).where(p.name == model)).scalars().all()
        return label_delay_h(self._readings.labelled(digests, now_ms))

    def patch(self, old: str, new: str) -> int | None:
        """Bytes of the patch from a file to another, by their hashes; None: there is none."""
        place = self._repository / delta.path(old, new)
        return place.stat().st_size if place.is_file() else None


def _labelled(connection: sa.Connection, members: Sequence[Member], now_ms: int) -> Iterator[Counted]:
    """What came of labels and outcomes, of what the members run. Cost: 20 µs for each day of a device."""
    ran = {member.device: member.previous[:16] for member in members if member.previous}
    t, devices = control.label_counts.c, list(ran)
    query = sa.select(t.device, t.digest, t.day_ms, t.outcomes)
    query = query.where(t.source.in_(get_args(Source)), t.day_ms > now_ms - DAYS * DAY_MS)
    for some in (devices[at : at + TOGETHER] for at in range(0, len(devices), TOGETHER)):
        for device, digest, day_ms, outcomes in connection.execute(query.where(t.device.in_(some))):
            if digest == ran[device]:
                yield device, day_ms, outcomes


def _storable(spec: RolloutSpec) -> RolloutSpec:
    """msgspec checks ranges only when it reads: what is stored must be one that can be read."""
    try:
        return msgspec.convert(msgspec.to_builtins(spec), built(RolloutSpec))
    except msgspec.ValidationError as error:
        raise ContractError("rollout", "a specification that can be stored", str(error)) from None
