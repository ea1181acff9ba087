"""Messages of devices → rows and answers. Pure: `read` takes one message apart, `Ledger.take` counts it.

Order in a batch: read all, load what they touch (`Keys`), take them in the order of their arrival, write the rows and
commit, and only then acknowledge. A message that cannot be read becomes a dead letter; if its number can still be
read, that number is counted, so that the device is not held up for ever by a report that nobody can use. A report that
fits no rollup (another width under the same edge hash, a sum beyond 2**40) keeps its window and leaves a note.

Windows of synced or free-running clocks are placed at their own start; those without a clock, or with one that is
ahead of ours, at arrival. A window belongs whole to the bucket of its start, in the tiers that are at least as wide as
it; the widest tier takes everything. The hub sums by cohort, which is the fleet of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import msgspec

from edgewright_contracts import birth, event, report, topics
from edgewright_contracts.binning import Cells, pack, pack_grid, unpack, unpack_grid
from edgewright_contracts.codec import MAX_COUNT, REPORT_BYTES, Hex64, Sequence, inflate
from edgewright_contracts.desired import Ack
from edgewright_contracts.errors import ContractError

from .counting import Spool, ack, count, counted

TIERS_S: Final = (60, 300, 3600)
AHEAD_MS: Final = 5 * 60_000  # a device's clock may be this much ahead of ours before we stop believing it
DEAD_LETTER_BYTES: Final = 64 * 1024

Row = dict[str, Any]
SpoolKey = tuple[str, str]  # device, spool id
# tier_s, t0_ms, cohort, digest, variant, context, edge_hash, phase
RollupKey = tuple[int, int, str, str, str, str, str, str]
ROLLUP_KEY: Final = ("tier_s", "t0_ms", "cohort", "digest", "variant", "context", "edge_hash", "phase")


class Message(NamedTuple):
    topic: str
    body: bytes
    arrived_ms: int
    retained: bool = False  # kept by the broker, perhaps long ago
    repeated: bool = False  # delivered before, perhaps with others behind it


@dataclass(frozen=True, slots=True)
class Item:
    """One message taken apart. `spool` and `seq` are known even of some that are dead letters."""

    message: Message
    device: str
    content: birth.Birth | birth.Status | report.Window | event.Event | None
    spool_id: str = ""
    seq: int = 0
    reason: str = ""  # why it is a dead letter


class Answer(NamedTuple):
    """Sent after the commit: the acknowledgement, or, if `renew`, the command to begin a new spool. A birth is answered
    at once, a report at the device's next turn."""

    device: str
    spool_id: str
    ack: Ack
    at_once: bool
    renew: bool  # the spool was restored or cloned: an ack would free windows that reuse numbers counted before


class _Head(msgspec.Struct, array_like=True):
    v: int
    spool_id: Hex64
    seq: Sequence


class _EventHead(msgspec.Struct):
    spool_id: Hex64
    seq: Sequence


def read(message: Message) -> Item:
    try:
        device, kind = topics.parse(message.topic)
    except ContractError as error:
        return Item(message, "", None, reason=str(error))
    try:
        return _opened(message, device, kind)
    except ContractError as error:
        head = _head(kind, message.body)
        return Item(message, device, None, head.spool_id if head else "", head.seq if head else 0, str(error))


def _opened(message: Message, device: str, kind: topics.Kind) -> Item:
    match kind:
        case "report":
            one = report.decode_report(message.body)
            return Item(message, device, one.window, one.spool_id, one.seq)
        case "event":
            step = event.decode_event(message.body)
            return Item(message, device, step, step.spool_id, step.seq)
        case "birth":
            born = birth.decode_birth(message.body)
            if born.device != device:
                raise ContractError("birth.device", f"{device}, as the topic says", born.device)
            return Item(message, device, born, born.spool.id)
        case "status":
            return Item(message, device, birth.decode_status(message.body))
        case _:
            raise ContractError("topic", "one that devices publish", message.topic)


def _head(kind: str, body: bytes) -> _Head | _EventHead | None:
    try:
        if kind == "report":
            raw = inflate(body, name="report", limit=REPORT_BYTES) if body[:1] == b"\x78" else body
            return msgspec.msgpack.decode(raw, type=_Head)
        if kind == "event":
            return msgspec.json.decode(body, type=_EventHead)
    except (msgspec.MsgspecError, ContractError, UnicodeDecodeError, RecursionError):
        pass
    return None


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
            found.rollups.update(_rollups(item.content, cohort_of(item.device), item.message.arrived_ms))
    return found


def placed(window: report.Window, arrived_ms: int) -> tuple[int, Literal["wall", "arrival"]]:
    """(start in UTC milliseconds, whose clock says so)."""
    length = window.mono_end_ms - window.mono_start_ms
    wall = window.wall_start_ms
    if wall is not None and window.clock != "unknown" and wall + length <= arrived_ms + AHEAD_MS:
        return wall, "wall"
    return max(0, arrived_ms - length), "arrival"


def _rollups(window: report.Window, cohort: str, arrived_ms: int) -> list[RollupKey]:
    start_ms, _ = placed(window, arrived_ms)
    length_ms = window.mono_end_ms - window.mono_start_ms
    fits = [t for t in TIERS_S if length_ms <= t * 1000] or [TIERS_S[-1]]
    return [
        (
            tier_s,
            start_ms - start_ms % (tier_s * 1000),
            cohort,
            window.digest,
            window.variant,
            window.context,
            window.edge_hash,
            window.phase,
        )
        for tier_s in fits
    ]


_SUMMED: Final = ("n", "n_monitored", "errors", "rejected", "labels_n", "labels_wrong")


@dataclass(slots=True)
class Rollup:
    """One row of rollups, unpacked while a batch adds to it."""

    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("windows", *_SUMMED), 0))
    cells: Cells | None = None  # None: all zeros, of a width that nobody has named yet
    latency: Cells | None = None

    @classmethod
    def of(cls, row: Row) -> Rollup:
        sums = {name: row[name] for name in ("windows", *_SUMMED)}
        return cls(sums, unpack(row["cells"]) if row["cells"] else None, unpack_grid(row["latency_total"]))

    def add(self, sums: Row, cells: Cells | None, latency: Cells) -> None:
        """All of it or, raising ContractError, nothing."""
        total = cells if self.cells is None else self.cells
        if cells is not None and self.cells is not None:
            if cells.size != self.cells.size:
                raise ContractError("cells", f"{self.cells.size} cells, as of this edge hash before", f"{cells.size}")
            total = self.cells + cells
        durations = latency if self.latency is None else self.latency + latency
        if (total is not None and int(total.max()) > MAX_COUNT) or int(durations.max()) > MAX_COUNT:
            raise ContractError("cells", f"sums of at most {MAX_COUNT}", "more")
        self.cells, self.latency = total, durations
        self.sums["windows"] += 1
        for name in _SUMMED:
            self.sums[name] += sums[name]

    def row(self, key: RollupKey) -> Row:
        return {
            **dict(zip(ROLLUP_KEY, key, strict=True)),
            **self.sums,
            "cells": b"" if self.cells is None else pack(self.cells),
            "latency_total": b"" if self.latency is None else pack_grid(self.latency),
        }


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
            if key not in self.renewed and not counted(spool, item.seq):
                if isinstance(item.content, report.Window):
                    self._window(item, item.content)
                elif isinstance(item.content, event.Event):
                    self._event(item, item.content)
                self.spools[key] = count(spool, item.seq)
                self.changed_spools.setdefault(key, item.message.arrived_ms)
            self._answer(key, at_once=False)

    def _answer(self, key: SpoolKey, *, at_once: bool) -> None:
        before = self.answers.get(key)
        self.answers[key] = Answer(
            *key,
            ack(key[1], self.spools.get(key, Spool())),
            at_once or (before is not None and before.at_once),
            key in self.renewed,
        )

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
        )
        key = (item.device, born.spool.id)
        if fresh and key not in self.renewed and born.spool.next_seq <= self.spools.get(key, Spool()).highest:
            self.renewed.add(key)
            self.newly_renewed[key] = item.message.arrived_ms
        self._answer(key, at_once=True)

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
                **sums,
            }
        )
        cells = unpack(window.cells) if window.cells else None
        latency = unpack_grid(window.latency_total)
        for key in _rollups(window, cohort, arrived_ms):
            try:
                self.rollups.setdefault(key, Rollup()).add(sums, cells, latency)
                self.changed_rollups.add(key)
            except ContractError as error:
                self._bury(item.message, f"counted, but not in the rollup of {key[0]} s: {error}")
        row = self._device(item, online=True, boot_id=window.boot_id, connection=0)
        row["next_due_ms"] = arrived_ms + window.next_due_s * 1000

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
