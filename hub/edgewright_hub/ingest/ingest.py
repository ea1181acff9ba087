"""What a batch of messages changes: the rows of telemetry.db and the answers to devices. Pure.

Order in a batch: read all, load what they touch (`Keys`), take them in the order of their arrival, add the windows to
the rollups, write the rows and commit, and only then acknowledge. A message that is refused (`refusals`) is never
counted; if its number can still be read, that number is taken as done, so that the device is not held up for ever by a
report that nobody can use. A window that fits no rollup is kept and leaves a note.

A device's row also holds what its newest window ran (by their numbers, since some come late) and how much it has
reported in all, because windows themselves are kept for a day or so only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from edgewright_contracts import birth, event, report
from edgewright_contracts.desired import BirthMark, birth_mark

from ..registry.edges import Layout
from . import clones
from .columns import Columns, Unchecked
from .counting import Spool, ack, count, counted
from .messages import Item
from .refusals import LETTER_BYTES, Reason, Tally, unlike
from .rollups import Placed, Rollup, RollupKey, added, believed, keys_of, placed
from .turns import Answer

Row = dict[str, Any]
SpoolKey = tuple[str, str]  # device, spool id

# Of a window's row; the rest of the columns is the database's.
WINDOW: Final = (
    "device", "spool_id", "seq", "arrived_ms", "start_ms", "placed", "mono_start_ms", "mono_end_ms", "boot_id",
    "cohort", "digest", "variant", "context", "edge_hash", "phase", "rollout", "n", "n_monitored", "errors",
    "rejected", "labels_n", "labels_wrong", "latency_total", "cells", "body", "next_due_s", "repeated",
    "latency_run", "input_age", "outcomes", "confidence", "shadow_n", "shadow_agree",
)  # fmt: skip
_NO_HITS: Final = report.Hits()


@dataclass(frozen=True, slots=True)
class Known:
    """What the hub knows besides telemetry.db: asked for each report, so it must be quick."""

    cohort_of: Callable[[str], str]
    layout_of: Callable[[str, str], Layout | None] = lambda _digest, _variant: None  # of a package's variant


class Keys(NamedTuple):
    """What must be loaded before the items can be taken."""

    devices: set[str]
    born: set[str]  # devices whose birth is among the items


def keys(items: Iterable[Item]) -> Keys:
    found = Keys(set(), set())
    for item in items:
        if item.device:
            found.devices.add(item.device)
        if isinstance(item.content, birth.Birth):
            found.born.add(item.device)
    return found


@dataclass(slots=True)
class Device:
    """A row of devices, but for what only births change."""

    device: str
    online: bool
    boot_id: str
    connection: int
    last_seen_ms: int
    next_due_ms: int | None = None
    windows: int = 0
    inferences: int = 0
    digest: str | None = None
    variant: str | None = None
    phase: str | None = None
    rollout: str | None = None
    birth_mark: BirthMark = ""  # of the last birth; "" before the first


@dataclass(slots=True)
class Ledger:
    """The rows that a batch touches, as they are in the database, and then as they shall be."""

    known: Known
    columns: Columns  # of the windows
    spools: dict[SpoolKey, Spool] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    births: dict[str, Row] = field(default_factory=dict)  # of devices whose birth is in the batch: the rest of the row
    renewed: set[SpoolKey] = field(default_factory=set)  # told to end: nothing of them is counted or acknowledged
    # What is new: inserted, or set over what was loaded.
    windows: list[tuple[Any, ...]] = field(default_factory=list)  # WINDOW
    placed: list[Placed] = field(default_factory=list)  # the same, as the rollups want them
    events: list[Row] = field(default_factory=list)
    dead_letters: list[Row] = field(default_factory=list)
    refused: dict[tuple[str, Reason], Tally] = field(default_factory=dict)
    interruptions: dict[tuple[str, str], Row] = field(default_factory=dict)
    changed_spools: dict[SpoolKey, int] = field(default_factory=dict)  # → first arrival
    newly_renewed: dict[SpoolKey, int] = field(default_factory=dict)  # → when
    changed_devices: set[str] = field(default_factory=set)
    changed_births: set[str] = field(default_factory=set)
    answers: dict[SpoolKey, Answer] = field(default_factory=dict)

    def take(self, item: Item) -> None:
        content = item.content
        if content is None:
            self.refuse(item, item.reason, item.said)
        elif isinstance(content, birth.Birth):
            self._birth(item, content)
        elif isinstance(content, birth.Status):
            self._status(item, content)
        if not item.seq:
            return
        key = (item.device, item.spool_id)
        spool = self.spools.get(key, Spool())
        before = counted(spool, item.seq)
        if before and content is not None:
            self._note(item, "replay", f"number {item.seq} of spool {item.spool_id} was counted before")
        again = before or key in self.renewed
        if not again:
            if isinstance(content, Unchecked):
                self._window(item, content)
            elif isinstance(content, event.Event):
                self._event(item, content)
            self.spools[key] = count(spool, item.seq)
            self.changed_spools.setdefault(key, item.message.arrived_ms)
        self._answer(key, again=again)

    def add(self, rollups: dict[RollupKey, Rollup], items: list[Item]) -> set[RollupKey]:
        """Add the windows to the rollups that `rollup_keys` asked for; which of them changed."""
        changed, unfit = added(rollups, self.placed, self.columns)
        item_of = {item.row: item for item in items}
        for one, said in unfit:
            self.refuse(item_of[one.row], "width", f"counted, but not in the rollups: {said}")
        return changed

    def rollup_keys(self) -> set[RollupKey]:
        return {key for one in self.placed for key in keys_of(one)}

    def refuse(self, item: Item, reason: Reason, said: str) -> None:
        """Leave a dead letter and count it."""
        self._note(item, reason, said)
        self.dead_letters.append(
            {
                "arrived_ms": item.message.arrived_ms,
                "device": item.device,
                "topic": item.message.topic[:1024].replace("\0", "\N{REPLACEMENT CHARACTER}"),
                "reason": f"{reason}: {said}"[:1024].replace("\0", "\N{REPLACEMENT CHARACTER}"),
                "body": item.message.body[:LETTER_BYTES],
            }
        )

    def _note(self, item: Item, reason: Reason, said: str) -> None:
        at_ms = item.message.arrived_ms
        tally = self.refused.setdefault((item.device, reason), Tally(0, at_ms, at_ms, ""))
        tally.count, tally.last_ms, tally.said = tally.count + 1, at_ms, said[:1024]

    def _answer(self, key: SpoolKey, *, at_once: bool = False, again: bool = False) -> None:
        known = self.devices.get(key[0])
        now = ack(key[1], self.spools.get(key, Spool()), known.birth_mark if known else "")
        answer = Answer(*key, now, at_once, again, key in self.renewed)
        before = self.answers.get(key)
        self.answers[key] = answer if before is None else answer.behind(before)

    def _device(self, item: Item, *, online: bool, boot_id: str, connection: int) -> Device:
        at_ms = item.message.arrived_ms
        row = self.devices.get(item.device)
        if row is None:
            row = self.devices[item.device] = Device(item.device, online, boot_id, connection, at_ms)
        self.changed_devices.add(item.device)
        if not item.message.retained and at_ms > row.last_seen_ms:
            row.last_seen_ms = at_ms
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
        last_boot, _, last_connection = row.birth_mark.partition(".") if row is not None else ("", "", "")
        same_boot = row is not None and row.boot_id == born.boot_id
        if row is not None and same_boot and last_boot and born.connection < row.connection:
            self._answer((item.device, born.spool.id), at_once=True)
            return
        # A birth that comes again may be older than reports that we have counted since; only a fresh one shows what
        # number the spool stands at. (A status of the same connection may have come before it.)
        seen = last_boot == born.boot_id and int(last_connection) >= born.connection
        fresh = not item.message.repeated and not seen
        row = self._device(item, online=True, boot_id=born.boot_id, connection=born.connection)
        row.online, row.boot_id, row.connection = True, born.boot_id, born.connection
        row.next_due_ms = item.message.arrived_ms + born.window_s * 2000
        row.birth_mark = birth_mark(born.boot_id, born.connection)
        rest = self.births.setdefault(item.device, {"boots": None, "cloned_ms": None})
        rest |= {
            "birth": msgspec.to_builtins(born),
            "birth_ms": item.message.arrived_ms,
            "desired_rev": born.desired_rev,
        }
        self.changed_births.add(item.device)
        if not item.message.repeated:
            self._boot(rest, born, item.message.arrived_ms)
        key = (item.device, born.spool.id)
        if fresh and key not in self.renewed and born.spool.next_seq <= self.spools.get(key, Spool()).highest:
            self.renewed.add(key)
            self.newly_renewed[key] = item.message.arrived_ms
        self._answer(key, at_once=True)

    def _boot(self, rest: Row, born: birth.Birth, arrived_ms: int) -> None:
        before = rest["boots"] or []
        rest["boots"], came_back = clones.followed(before, born.boot_id)
        if came_back:
            if rest["cloned_ms"] is None or arrived_ms - rest["cloned_ms"] > clones.QUIET_MS:
                self.events.append(clones.event(born, before[-1], arrived_ms))
            rest["cloned_ms"] = arrived_ms

    def _status(self, item: Item, status: birth.Status) -> None:
        known = self.devices.get(item.device)
        if known is not None:
            older = known.boot_id == status.boot_id and status.connection < known.connection
            other_boot_left = known.boot_id != status.boot_id and not status.online
            if older or other_boot_left:
                return
        row = self._device(item, online=status.online, boot_id=status.boot_id, connection=status.connection)
        row.online, row.boot_id, row.connection = status.online, status.boot_id, status.connection

    def _window(self, item: Item, w: Unchecked) -> None:
        message = item.message
        arrived_ms = message.arrived_ms
        start_ms, by = placed(w, arrived_ms)
        if by == "future":
            ahead_s = (start_ms - arrived_ms) // 1000
            said = f"expected a time that was, got one in {ahead_s} s: set the clock of {item.device}"
            self.refuse(item, "clock", f"report.window.wall_start_ms: {said}")
            return
        layout = self.known.layout_of(w.digest, w.variant)
        if layout is not None and (odd := unlike(w, layout, *self.columns.cells_of(item.row))):
            self.refuse(item, *odd)
            return
        cohort = self.known.cohort_of(item.device)
        errors = sum(w.errors.values()) if w.errors else 0
        rejected = sum(w.rejected.values()) if w.rejected else 0
        correct = w.outcomes.get(report.CORRECT, _NO_HITS) if w.outcomes else _NO_HITS
        wrong = correct.n - correct.hits
        outcomes = _json({name: (one.n, one.hits) for name, one in w.outcomes.items()}) if w.outcomes else "{}"
        self.windows.append((
            item.device, item.spool_id, item.seq, arrived_ms, start_ms, by, w.mono_start_ms, w.mono_end_ms, w.boot_id,
            cohort, w.digest, w.variant, w.context, w.edge_hash, w.phase, w.rollout, w.n, w.n_monitored, errors,
            rejected, correct.n, wrong, w.latency_total, w.cells, message.body, w.next_due_s, w.repeated,
            w.latency_run, w.input_age, outcomes, w.correct_by_confidence, w.shadow.n, w.shadow.hits,
        ))  # fmt: skip
        sums = (1, w.n, w.n_monitored, errors, rejected, correct.n, wrong)
        self.placed.append(Placed(item.row, start_ms, cohort, w, sums))
        row = self._device(item, online=True, boot_id=w.boot_id, connection=0)
        row.next_due_ms = arrived_ms + w.next_due_s * 1000
        row.windows += 1
        row.inferences += w.n
        if row.digest is None or item.seq > self.spools.get((item.device, item.spool_id), Spool()).highest:
            row.digest, row.variant, row.phase, row.rollout = w.digest, w.variant, w.phase, w.rollout

    def _event(self, item: Item, step: event.Event) -> None:
        arrived_ms = item.message.arrived_ms
        known = step.wall_ms is not None and believed(step.wall_ms, arrived_ms)
        self.events.append(
            {
                "device": item.device,
                "spool_id": item.spool_id,
                "seq": item.seq,
                "arrived_ms": arrived_ms,
                "at_ms": step.wall_ms if known else arrived_ms,
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


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
