"""What a batch of messages changes: the rows of telemetry.db and the answers to devices. Pure.

Order in a batch: read all, load what they touch (`Keys`), take them in the order of their arrival, write the rows and
commit, and only then acknowledge. A message that cannot be read becomes a dead letter; if its number can still be
read, that number is counted, so that the device is not held up for ever by a report that nobody can use. A report that
fits no rollup (another width under the same edge hash, a sum beyond 2**40) keeps its window and leaves a note.

A device's row also holds what its newest window ran and how much it has reported in all, because windows themselves
are kept for a day or so only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from edgewright_contracts import birth, event, report
from edgewright_contracts.binning import unpack, unpack_grid
from edgewright_contracts.desired import Ack, BirthMark, birth_mark
from edgewright_contracts.errors import ContractError

from . import clones
from .counting import Spool, ack, count, counted
from .messages import Item, Message
from .rollups import AHEAD_MS, Rollup, RollupKey, Row, buckets, placed

DEAD_LETTER_BYTES: Final = 64 * 1024

SpoolKey = tuple[str, str]  # device, spool id


class Answer(NamedTuple):
    """Sent after the commit, when `consumer.Turns` says so: the acknowledgement, or, if `renew`, the command to begin a
    new spool."""

    device: str
    spool_id: str
    ack: Ack
    at_once: bool  # a birth
    again: bool  # something came that was counted before: the device has not heard of it
    renew: bool  # the spool was restored or cloned: an ack would free windows that reuse numbers counted before

    def behind(self, before: Answer | None) -> Answer:
        """This answer in the place of an older one that was not sent: as urgent as the more urgent of them."""
        if before is None:
            return self
        return self._replace(at_once=self.at_once or before.at_once, again=self.again or before.again)


class Keys(NamedTuple):
    spools: set[SpoolKey]
    devices: set[str]
    rollups: set[RollupKey]


def keys(items: Iterable[Item], cohort_of: Callable[[str], str]) -> Keys:
    """What must be loaded before the items can be taken."""
    found = Keys(set(), set(), set())
    for item in items:
        if item.device:
            found.devices.add(item.device)
        if item.spool_id:
            found.spools.add((item.device, item.spool_id))
        if isinstance(item.content, report.Window):
            found.rollups.update(buckets(item.content, cohort_of(item.device), item.message.arrived_ms))
    return found


@dataclass(slots=True)
class Ledger:
    """The rows that a batch touches, as they are in the database, and then as they shall be."""

    cohort_of: Callable[[str], str]
    spools: dict[SpoolKey, Spool] = field(default_factory=dict)
    devices: dict[str, Row] = field(default_factory=dict)
    rollups: dict[RollupKey, Rollup] = field(default_factory=dict)
    renewed: set[SpoolKey] = field(default_factory=set)  # told to end: nothing of them is counted or acknowledged
    # What is new: inserted, or set over what was loaded.
    windows: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    dead_letters: list[Row] = field(default_factory=list)
    interruptions: dict[tuple[str, str], Row] = field(default_factory=dict)
    changed_spools: dict[SpoolKey, int] = field(default_factory=dict)  # → first arrival
    newly_renewed: dict[SpoolKey, int] = field(default_factory=dict)  # → when
    changed_devices: set[str] = field(default_factory=set)
    changed_rollups: set[RollupKey] = field(default_factory=set)
    answers: dict[SpoolKey, Answer] = field(default_factory=dict)

    def take(self, item: Item) -> None:
        match item.content:
            case None:
                self._bury(item.message, item.reason)
            case birth.Birth():
                self._birth(item, item.content)
            case birth.Status():
                self._status(item, item.content)
        if item.seq:
            key = (item.device, item.spool_id)
            spool = self.spools.get(key, Spool())
            again = key in self.renewed or counted(spool, item.seq)
            if not again:
                if isinstance(item.content, report.Window):
                    self._window(item, item.content)
                elif isinstance(item.content, event.Event):
                    self._event(item, item.content)
                self.spools[key] = count(spool, item.seq)
                self.changed_spools.setdefault(key, item.message.arrived_ms)
            self._answer(key, again=again)

    def _answer(self, key: SpoolKey, *, at_once: bool = False, again: bool = False) -> None:
        now = ack(key[1], self.spools.get(key, Spool()), self._born(key[0]))
        answer = Answer(*key, now, at_once, again, key in self.renewed)
        self.answers[key] = answer.behind(self.answers.get(key))

    def _born(self, device: str) -> BirthMark:
        born = (self.devices.get(device) or {}).get("birth")
        return birth_mark(born["boot_id"], born["connection"]) if born else ""

    def _bury(self, message: Message, reason: str) -> None:
        self.dead_letters.append(
            {
                "arrived_ms": message.arrived_ms,
                "topic": message.topic[:1024],
                "reason": reason[:1024],
                "body": message.body[:DEAD_LETTER_BYTES],
            }
        )

    def _device(self, item: Item, *, online: bool, boot_id: str, connection: int) -> Row:
        row = self.devices.get(item.device)
        if row is None:
            row = self.devices[item.device] = {
                "device": item.device,
                "birth": None,
                "birth_ms": None,
                "online": online,
                "boot_id": boot_id,
                "connection": connection,
                "last_seen_ms": item.message.arrived_ms,
                "next_due_ms": None,
                "desired_rev": 0,
                "windows": 0,
                "inferences": 0,
                "digest": None,
                "variant": None,
                "phase": None,
                "rollout": None,
                "boots": None,
                "cloned_ms": None,
            }
        self.changed_devices.add(item.device)
        if not item.message.retained:
            row["last_seen_ms"] = max(row["last_seen_ms"], item.message.arrived_ms)
        return row

    def _birth(self, item: Item, born: birth.Birth) -> None:
        for lost in born.unclean:
            self.interruptions[item.device, lost.boot_id] = {
                "device": item.device,
                "boot_id": lost.boot_id,
                "open_since_mono_ms": lost.open_since_mono_ms,
                "told_ms": item.message.arrived_ms,
            }
        row = self.devices.get(item.device)
        same_boot = row is not None and row["boot_id"] == born.boot_id
        if row is not None and same_boot and row["birth"] is not None and born.connection < row["connection"]:
            self._answer((item.device, born.spool.id), at_once=True)
            return
        # A birth that comes again may be older than reports that we have counted since; only a fresh one shows what
        # number the spool stands at. (A status of the same connection may have come before it.)
        last = row["birth"] if row is not None else None
        seen = last is not None and last["boot_id"] == born.boot_id and last["connection"] >= born.connection
        fresh = not item.message.repeated and not seen
        row = self._device(item, online=True, boot_id=born.boot_id, connection=born.connection)
        row.update(
            birth=msgspec.to_builtins(born),
            birth_ms=item.message.arrived_ms,
            online=True,
            boot_id=born.boot_id,
            connection=born.connection,
            next_due_ms=item.message.arrived_ms + born.window_s * 2000,
            desired_rev=born.desired_rev,
        )
        if not item.message.repeated:
            self._boot(row, born, item.message.arrived_ms)
        key = (item.device, born.spool.id)
        if fresh and key not in self.renewed and born.spool.next_seq <= self.spools.get(key, Spool()).highest:
            self.renewed.add(key)
            self.newly_renewed[key] = item.message.arrived_ms
        self._answer(key, at_once=True)

    def _boot(self, row: Row, born: birth.Birth, arrived_ms: int) -> None:
        before = row["boots"] or []
        row["boots"], came_back = clones.followed(before, born.boot_id)
        if came_back:
            if row["cloned_ms"] is None or arrived_ms - row["cloned_ms"] > clones.QUIET_MS:
                self.events.append(clones.event(born, before[-1], arrived_ms))
            row["cloned_ms"] = arrived_ms

    def _status(self, item: Item, status: birth.Status) -> None:
        known = self.devices.get(item.device)
        if known is not None:
            older = known["boot_id"] == status.boot_id and status.connection < known["connection"]
            other_boot_left = known["boot_id"] != status.boot_id and not status.online
            if older or other_boot_left:
                return
        row = self._device(item, online=status.online, boot_id=status.boot_id, connection=status.connection)
        row.update(online=status.online, boot_id=status.boot_id, connection=status.connection)

    def _window(self, item: Item, window: report.Window) -> None:
        arrived_ms = item.message.arrived_ms
        start_ms, by = placed(window, arrived_ms)
        cohort = self.cohort_of(item.device)
        correct = window.outcomes.get("correct", report.Hits())
        sums: Row = {
            "n": window.n,
            "n_monitored": window.n_monitored,
            "errors": window.error_count,
            "rejected": sum(window.rejected.values()),
            "labels_n": correct.n,
            "labels_wrong": correct.n - correct.hits,
        }
        self.windows.append(
            {
                "device": item.device,
                "spool_id": item.spool_id,
                "seq": item.seq,
                "arrived_ms": arrived_ms,
                "start_ms": start_ms,
                "placed": by,
                "mono_start_ms": window.mono_start_ms,
                "mono_end_ms": window.mono_end_ms,
                "boot_id": window.boot_id,
                "cohort": cohort,
                "digest": window.digest,
                "variant": window.variant,
                "context": window.context,
                "edge_hash": window.edge_hash,
                "phase": window.phase,
                "rollout": window.rollout,
                "latency_total": window.latency_total,
                "cells": window.cells,
                "body": item.message.body,
                "next_due_s": window.next_due_s,
                "repeated": window.repeated,
                "latency_run": window.latency_run,
                "input_age": window.input_age,
                "outcomes": {name: [one.n, one.hits] for name, one in window.outcomes.items()},
                "confidence": window.correct_by_confidence,
                "shadow_n": window.shadow.n,
                "shadow_agree": window.shadow.hits,
                **sums,
            }
        )
        cells = unpack(window.cells) if window.cells else None
        latency = unpack_grid(window.latency_total)
        for key in buckets(window, cohort, arrived_ms):
            try:
                self.rollups.setdefault(key, Rollup()).add(sums, cells, latency)
                self.changed_rollups.add(key)
            except ContractError as error:
                self._bury(item.message, f"counted, but not in the rollup of {key[0]} s: {error}")
        row = self._device(item, online=True, boot_id=window.boot_id, connection=0)
        row.update(
            next_due_ms=arrived_ms + window.next_due_s * 1000,
            windows=row["windows"] + 1,
            inferences=row["inferences"] + window.n,
            digest=window.digest,
            variant=window.variant,
            phase=window.phase,
            rollout=window.rollout,
        )

    def _event(self, item: Item, step: event.Event) -> None:
        arrived_ms = item.message.arrived_ms
        believed = step.wall_ms is not None and step.wall_ms <= arrived_ms + AHEAD_MS
        self.events.append(
            {
                "device": item.device,
                "spool_id": item.spool_id,
                "seq": item.seq,
                "arrived_ms": arrived_ms,
                "at_ms": step.wall_ms if believed else arrived_ms,
                "boot_id": step.boot_id,
                "mono_ms": step.mono_ms,
                "model": step.model,
                "digest": step.digest,
                "variant": step.variant,
                "rollout": step.rollout,
                "before": step.before,
                "after": step.after,
                "reason": step.reason,
                "failure": step.failure,
                "attempt": step.attempt,
                "log": step.log,
            }
        )
        self._device(item, online=True, boot_id=step.boot_id, connection=0)
