"""Devices that come after the end of the rollout that brought a release out, and when each may begin.

Two kinds come later: newcomers, which nobody has told anything of a model, and those that the end of a rollout passed
over, because they were silent, held, out of their hours, unable, gone, or tried in vain. They get the newest promoted
release that means them and that they can run: at once, if that rollout asked for no hours and no caps. Else each waits
for its turn: it is heard, within its own maintenance windows, not held, and in the time that a device may take
(`device_timeout_s`) no more of them begin than `concurrency`, and no more than `bandwidth_bytes_s` bears. Its document
then says until when it may begin; if it did not by then, its turn comes again, unless it gave the release up.

Nobody is told anything while another rollout of the model is under way on the device. What is remembered is in the
documents and in the rollouts that are done, so a hub that dies forgets none and asks none twice.
Cost of a tick: 1 µs for each device, 16 µs for each that waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import sqlalchemy as sa

from edgewright_contracts.desired import Desired, DesiredModel

from ..fleet.selectors import Device
from ..storage import control, telemetry
from . import schedule
from .desired_documents import entry, room
from .evidence import Heard
from .members import Members
from .progress import unpacked
from .promoted import Promoted, means, promoted_to
from .schedule import Opening
from .specification import RolloutSpec, stored
from .wishes import Wish

_LOG = logging.getLogger(__name__)
_SOME: Final = 500  # devices in one SELECT
_BEGUN: Final = ("activate", "probation")  # what agents say while they try a release
_GAVE_UP: Final = ("rollback", "blocked", "held")


class Late(NamedTuple):
    device: Device
    model: str
    one: Promoted
    before: DesiredModel | None  # what it is told now of the model

    @property
    def renewed(self) -> bool:
        """Its turn came before, and it did not begin."""
        return self.before is not None and self.before.digest == self.one.digest


def passed_over(members: Members) -> list[str]:
    """Devices that do not run the release at the end, and are to get it still."""
    return [members.devices[i] for i in np.flatnonzero(members.has("waiting", "asked", "resting", "late")).tolist()]


def free(spec: RolloutSpec, begun: Iterable[int], now_ms: int) -> int | None:
    """How many more may begin now, after those that began at these times; None: as many as there are."""
    at = [min(one, now_ms) for one in begun]  # the hub's clock may have been put back
    left = [most - sum(now_ms - one < span_ms for one in at) for most, span_ms in _caps(spec)]
    return max(0, min(left)) if left else None


class Latecomers:
    """Used by one thread at a time: the conductor's lock is held. `waits` may be called by any."""

    def __init__(self, telemetry_engine: sa.Engine) -> None:
        self._telemetry = telemetry_engine
        self._ended: tuple[str, ...] = ()  # rollouts that are done, in the order of their ends
        self._passed: dict[tuple[str, str], str] = {}  # the digest that a device still is to get, by model and device
        self._waiting: Mapping[tuple[str, str], tuple[str, str]] = {}  # digest and what for, by model and device

    def read(self, connection: sa.Connection) -> None:
        """Whom the ends of rollouts passed over. A later end that reached a device makes up for an earlier one."""
        r = control.rollouts.c
        query = sa.select(r.id).where(r.state == "done").order_by(r.updated_ms, r.created_ms)
        ended = tuple(connection.execute(query).scalars())
        if ended == self._ended:
            return
        known = len(self._ended) if ended[: len(self._ended)] == self._ended else 0
        if not known:
            self._passed = {}
        for name in ended[known:]:
            row = connection.execute(sa.select(r.name, r.spec, r.progress).where(r.id == name)).one()
            try:
                members = unpacked(row.progress).members
            except (ValueError, KeyError) as error:
                _LOG.error("whom the end of rollout %s passed over cannot be read: %s", name, error)
                continue
            for device in members.devices:
                self._passed.pop((row.name, device), None)
            gone = [members.devices[i] for i in np.flatnonzero(members.has("gone")).tolist()]  # they may come back
            self._passed |= {(row.name, device): row.spec["digest"] for device in (*passed_over(members), *gone)}
        self._ended = ended

    def wishes(
        self,
        fleet: Mapping[str, Device],
        documents: Mapping[str, Desired],
        promoted: Sequence[Promoted],
        under_way: Sequence[Mapping[str, Any]],
        now_ms: int,
    ) -> list[Wish]:
        """What those are told whose turn it is, at most once for each device and model. `under_way`: specifications."""
        specs: dict[str, RolloutSpec] = {}  # by rollout
        waiting: dict[tuple[str, str], tuple[str, str]] = {}
        told: list[Wish] = []
        ready: list[tuple[Late, Opening | None]] = []
        openings: dict[tuple[str, str], Opening | None] = {}
        for late in self._late(fleet, documents, promoted, under_way, now_ms):
            if late.one.rollout not in specs:
                specs[late.one.rollout] = stored(late.one.asked)
            spec, tz, key = specs[late.one.rollout], late.device.tz, (late.model, late.device.id)
            if late.device.held:
                waiting[key] = late.one.digest, "held by an operator"
                continue
            if not spec.paced:
                told.append(Wish(late.device.id, late.model, late.one.digest, trial=False))
                continue
            at = late.one.rollout, tz
            opening = openings[at] if at in openings else schedule.next_opening(spec.windows, tz, now_ms)
            openings[at] = opening
            if opening is not None and opening.begin_ms > now_ms:
                waiting[key] = late.one.digest, "waits for its maintenance window"
            else:
                ready.append((late, opening))
        if ready:
            told += self._in_turn(ready, specs, documents, waiting, now_ms)
        self._waiting = waiting
        return told

    def waits(self, asked: Mapping[str, Any], device: Device) -> str:
        """What the device waits for to get what the rollout with this specification brought out; "": it does not."""
        digest, why = self._waiting.get((asked["model"], device.id), ("", ""))
        return why if digest == asked["digest"] and means(asked, device) else ""

    def _late(
        self,
        fleet: Mapping[str, Device],
        documents: Mapping[str, Desired],
        promoted: Sequence[Promoted],
        under_way: Sequence[Mapping[str, Any]],
        now_ms: int,
    ) -> Iterable[Late]:
        models = sorted({one.model for one in promoted})
        for name, device in fleet.items():
            document = documents.get(name)
            left = room(document)
            for model in models:
                before, passed = entry(document, model), self._passed.get((model, name))
                over = before is not None and before.not_after is not None and before.not_after < now_ms
                if (before is None and left < 1) or (before is not None and (before.rollout or not (passed or over))):
                    continue
                if (one := promoted_to(promoted, device, model)) is None:
                    continue
                if before is None:
                    left -= 1
                elif one.digest != passed if before.digest != one.digest else not over:
                    continue  # something newer was promoted, or it is told so already
                elif any(s["model"] == model and means(s, device) for s in under_way):
                    continue
                yield Late(device, model, one, before)

    def _in_turn(
        self,
        ready: Sequence[tuple[Late, Opening | None]],
        specs: Mapping[str, RolloutSpec],
        documents: Mapping[str, Desired],
        waiting: dict[tuple[str, str], tuple[str, str]],
        now_ms: int,
    ) -> list[Wish]:
        """Those whose turn came before are behind the others."""
        heard = self._heard([late.device.id for late, _ in ready])
        again = [late for late, _ in ready if late.before is not None and late.renewed]
        said = self._said([late for late in again if late.device.id in heard])
        rooms: dict[str, int | None] = {}  # by digest
        told = []
        for late, opening in sorted(ready, key=lambda one: one[0].renewed):
            spec, digest, name = specs[late.one.rollout], late.one.digest, late.device.id
            if digest not in rooms:
                rooms[digest] = free(spec, _begun(documents.values(), digest), now_ms)
            left = rooms[digest]
            seen, runs = heard.get(name, (None, None))
            last = said.get((late.model, name), "")
            if late.renewed and (runs == digest[:16] or last == "commit"):  # it did begin in time: its hours are over
                told.append(Wish(name, late.model, digest, trial=False))
            elif last in _BEGUN or last in _GAVE_UP:
                waiting[late.model, name] = digest, "tries it" if last in _BEGUN else "gave it up; its log says why"
            elif seen is None or not seen.present(now_ms):
                waiting[late.model, name] = digest, "silent"
            elif left == 0:
                waiting[late.model, name] = digest, "waits for its turn"
            else:
                begin_ms, ends_ms = now_ms, [opening.end_ms] if opening else []
                if left is None and opening is not None:
                    begin_ms = opening.begin_ms
                if left is not None:
                    rooms[digest] = left - 1
                    ends_ms.append(now_ms + int(1000 * spec.device_timeout_s))
                told.append(
                    Wish(
                        name, late.model, digest, trial=False, not_before=begin_ms, not_after=min(ends_ms, default=None)
                    )
                )
        return told

    def _heard(self, devices: Sequence[str]) -> dict[str, tuple[Heard, str | None]]:
        """When devices were heard last, and what they ran."""
        d = telemetry.devices.c
        query = sa.select(d.device, d.online, d.last_seen_ms, d.next_due_ms, d.digest)
        rows = self._rows(query, d.device, devices)
        return {row.device: (Heard(row.online, row.last_seen_ms, row.next_due_ms), row.digest) for row in rows}

    def _said(self, late: Sequence[Late]) -> dict[tuple[str, str], str]:
        """What devices said last in the turn that they had, by model and device; nothing where the turn was too short,
        or an operator has to put something right."""
        e, found = telemetry.events.c, {}
        turns = {(one.device.id, one.one.digest): one for one in late}
        query = sa.select(e.device, e.digest, e.arrived_ms, e.after, e.failure).order_by(e.id)
        for row in self._rows(query, e.device, [one.device.id for one in late]):
            one = turns.get((row.device, row.digest))
            if one is not None and one.before is not None and row.arrived_ms >= (one.before.not_before or 0):
                found[one.model, row.device] = {"model": "blocked", "operator": ""}.get(row.failure, row.after)
        return found

    def _rows(self, query: sa.Select[Any], device: sa.Column[str], devices: Sequence[str]) -> Iterator[sa.Row[Any]]:
        """Those of these devices, `_SOME` in each SELECT."""
        with self._telemetry.connect() as connection:
            for at in range(0, len(devices), _SOME):
                yield from connection.execute(query.where(device.in_(devices[at : at + _SOME])))


def _caps(spec: RolloutSpec) -> list[tuple[int, int]]:
    """So many devices in so many milliseconds."""
    found = [] if spec.concurrency is None else [(spec.concurrency, int(1000 * spec.device_timeout_s))]
    if spec.bandwidth_bytes_s is not None and spec.release_bytes:
        found.append((1, int(1000 * spec.release_bytes / spec.bandwidth_bytes_s)))
    return found


def _begun(documents: Iterable[Desired], digest: str) -> list[int]:
    """When devices that got it for good may have begun, of those of which that is written."""
    return [
        model.not_before
        for document in documents
        for model in document.models
        if model.digest == digest and not model.rollout and model.not_before is not None
    ]
