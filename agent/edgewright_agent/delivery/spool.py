"""Store and forward: sealed windows and events wait here until the hub says that it has committed them.

Guarantee: once `seal` or `event` returns, a kill or power cut loses nothing of it and doubles nothing; what `offer`
returns was durably numbered before. Rules in `ledger.py`, the file in `journal.py`.

Bound: `cap` bytes of windows and events, in memory as on disk. Beyond it events have a quarter of them, and the oldest
windows become hours, then days (`coarsening.py`). What does not fit even so is dropped, and counted: counts come first,
but for the last event of each kind, which says how a model or an update ended up. A seal while the hub is there is one
durable write, with its numbers in it; a boot is another. Threads: any; one lock, held over the fsync, never taken by an
inference.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgewright_contracts import birth, event, report
from edgewright_contracts.birth import Unclean
from edgewright_contracts.built import built
from edgewright_contracts.desired import Ack
from edgewright_contracts.errors import ContractError
from edgewright_contracts.packing import pack

from ..disk import Disk
from . import coarsening, ledger
from .journal import Journal
from .ledger import Item, Kind, Record, State

CAP_BYTES: Final = 4 << 20
EVENTS_PART: Final = 4  # of a full spool, events keep one part in so many: hundreds of them

log = logging.getLogger(__name__)


class Offer(NamedTuple):
    seq: int
    kind: Kind
    payload: bytes


class EventKind(msgspec.Struct, frozen=True, rename={"before": "from", "after": "to"}):
    """Events of one kind repeat each other: the same step of the same package in the same rollout."""

    before: str
    after: str
    model: str = ""
    digest: str = ""
    rollout: str = ""


_read_kind: Final = msgspec.json.Decoder(built(EventKind)).decode


class Terms(NamedTuple):
    """What numbering fixes for good: whether the bytes are compressed, and what this boot knows of the time by now."""

    compress: bool = False
    boot_id: str = ""
    offset_ms: int | None = None  # the wall clock less the monotonic one
    clock: report.Clock = "unknown"


PLAIN: Final = Terms()


class Spool:
    """`new_id` gives a fresh random spool id of 16 hex digits; `cap` bounds the bytes held, not the log's."""

    def __init__(self, disk: Disk, root: Path, *, new_id: Callable[[], str], cap: int = CAP_BYTES) -> None:
        """Reads what the last boot left, and changes nothing: `begin` does."""
        self._new_id, self._cap = new_id, cap
        self._lock = threading.Lock()
        self._journal = Journal(disk, root)
        found = self._journal.found
        self.after_crash = found is not None and found.open is not None  # the boot before this one ended unclean
        self._state = found or State(new_id())
        self.trouble = ""  # why the disk takes nothing at present

    def begin(self, opened: Unclean) -> None:
        """This boot counts from now on. A disk that takes nothing delays that, as it delays all else: until it does,
        what is to be kept raises OSError and stays with the caller, in memory."""
        with self._lock:
            booted = ledger.Booted(opened)
            try:
                self._write(booted)
            except OSError as error:
                self._state = ledger.apply(self._state, booted)  # and the next write is one of the whole state
                log.error("the spool is in memory only, and lost with this process, until the disk takes it: %s", error)  # noqa: TRY400

    @property
    def state(self) -> State:
        return self._state

    def seal(self, windows: Sequence[report.Window], opened: Unclean, terms: Terms | None = None) -> None:
        """Durably keep `windows`; `opened` is the window that is counted from now on. With terms, what may have a
        number gets it in the same write: the hub is there. Raises OSError, and then the caller still has the windows
        and may try again."""
        with self._lock:
            sealed = ledger.Sealed(tuple(("report", report.encode_window(w)) for w in windows), opened)
            numbers = [] if terms is None else _numbers(ledger.apply(self._state, sealed), terms)
            self._keep(sealed, *numbers)

    def lost(self, windows: int) -> None:
        """Count windows that cannot be kept, so that the hub hears of them. Raises OSError."""
        with self._lock:
            self._write(ledger.Dropped((), windows))

    def event(self, draft: event.Event) -> None:
        """Durably keep an event; its spool id and number are set when it is offered. Raises OSError."""
        with self._lock:
            self._keep(ledger.Sealed((("event", event.encode_event(draft)),)))

    def offer(self, terms: Terms = PLAIN) -> list[Offer]:
        """Everything numbered and unacknowledged, after numbering what may be: at most 16, oldest first."""
        with self._lock:
            numbers = _numbers(self._state, terms)
            if numbers:
                try:
                    self._write(*numbers)
                except OSError as error:  # what has a number can still go, and so make room
                    log.warning("the disk does not take numbers for what waits: %s", error)
            return [Offer(i.seq, i.kind, encode(i, self._state.spool_id)) for i in self._state.numbered]

    def ack(self, ack: Ack) -> None:
        """Free what the hub has committed. Losing this record only means to offer again, so it is not synced."""
        with self._lock:
            if ledger.rewound(self._state, ack):
                log.warning("the hub has counted numbers that this spool never gave: it was restored or cloned")
                self._write(ledger.Renumbered(self._new_id()))
            elif any(i.seq in ack for i in self._state.numbered) and ack.spool_id == self._state.spool_id:
                self._write(ledger.Acked(ack), durable=False)

    def renumber(self, seen: str) -> None:
        """Take a new id, unless `seen` is no longer the id of this spool: then the demand was answered before."""
        with self._lock:
            if seen in ("", self._state.spool_id):
                self._write(ledger.Renumbered(self._new_id()))

    def declared(self, boot_ids: tuple[str, ...]) -> None:
        with self._lock:
            if any(u.boot_id in boot_ids for u in self._state.unclean):
                self._write(ledger.Declared(boot_ids))

    def close(self) -> None:
        """Nothing is open any more: the next boot has nothing to declare."""
        with self._lock:
            self._write(ledger.Closed())

    def told(self) -> birth.Spool:
        """For the birth message."""
        s = self._state
        return birth.Spool(
            id=s.spool_id,
            next_seq=s.next_seq,
            unacknowledged=len(s.numbered),
            sealed=len(s.unnumbered),
            dropped=s.dropped,
            trouble=self.trouble[:1024],
        )

    def _keep(self, *records: Record) -> None:
        """Write them, and make room behind them. Raises OSError, and then nothing was kept."""
        self._write(*records)
        if self._state.held_bytes > self._cap:
            try:
                self._shrink()
            except Exception as error:  # whatever it is, they are sealed: nobody may seal them again
                log.error("the spool is over its bound, and does not shrink: %r", error)  # noqa: TRY400

    def _write(self, *records: Record, durable: bool = True) -> None:
        """All of them or, raising OSError, none."""
        after = self._state
        for record in records:
            after = ledger.apply(after, record)
        try:
            self._journal.write(records, after, durable=durable)
        except OSError as error:
            self.trouble = str(error)
            raise
        self._state, self.trouble = after, ""

    def _shrink(self) -> None:
        """Until an eighth of the bound is free, so that this comes seldom: the events beyond their share go, then the
        oldest windows become coarser, then what is missed least goes."""
        state, records, goal = self._state, list[Record](), self._cap * 7 // 8
        events = sum(len(i.body) for i in state.items if i.kind == "event")
        beyond = min(events - self._cap // EVENTS_PART, state.held_bytes - goal)
        if gone := _as_many([i for i in _missed_least(state) if i.kind == "event"], beyond):
            records.append(_dropped(gone))
            state = ledger.apply(state, records[-1])
        excess = state.held_bytes - goal
        for span in coarsening.SPANS:
            groups = [
                coarsening.group(coarsening.read_heading(i.body), span) if i.kind == "report" else None
                for i in state.unnumbered
            ]
            for items in ledger.to_merge(state, groups):
                if excess <= 0:
                    break
                try:
                    body = report.encode_window(coarsening.merged([report.decode_window(i.body) for i in items]))
                except ContractError as error:  # such as a sum beyond its bound: they stay apart, and may be dropped
                    log.warning("windows that cannot be merged: %s", error)
                    continue
                records.append(ledger.Merged(tuple(i.id for i in items), body))
                state = ledger.apply(state, records[-1])
                excess -= sum(len(i.body) for i in items) - len(body)
        if gone := _as_many(_missed_least(state), excess):
            records.append(_dropped(gone))
        if lost := sum(r.windows for r in records if isinstance(r, ledger.Dropped)):
            log.error("the spool is full: dropping %d windows or events that the hub will never see", lost)
        if records:
            self._write(*records)


def encode(item: Item, spool_id: str) -> bytes:
    """The bytes on the wire of a numbered item: the window's own bytes, framed."""
    if item.kind == "event":
        draft = event.decode_event(item.body)
        return event.encode_event(msgspec.structs.replace(draft, spool_id=spool_id, seq=item.seq))
    raw = msgspec.msgpack.encode((report.VERSION, spool_id, item.seq, msgspec.Raw(item.body)))
    return pack(raw) if item.compress else raw


def _missed_least(state: State) -> list[Item]:
    """What may be dropped, in that order: events that a later one repeats, windows, the other events; of each, the
    oldest first."""
    last = {_read_kind(item.body): item.id for item in state.unnumbered if item.kind == "event"}
    latest = set(last.values())
    return sorted(state.unnumbered, key=lambda i: (2 if i.id in latest else i.kind == "report", i.id))


def _as_many(items: Sequence[Item], size: int) -> list[Item]:
    """As many as free `size` bytes; none of them for 0 or less."""
    held = itertools.accumulate((len(item.body) for item in items), initial=0)
    return [item for item, before in zip(items, held, strict=False) if before < size]


def _dropped(items: Sequence[Item]) -> ledger.Dropped:
    lost = sum(coarsening.read_heading(item.body).span if item.kind == "report" else 1 for item in items)
    return ledger.Dropped(tuple(item.id for item in items), lost)


def _numbers(state: State, terms: Terms) -> list[Record]:
    """The records that give numbers to what may have them; a window whose boot knows the time only now gets its time
    first, because it cannot change any more behind its number."""
    ids = ledger.to_number(state)
    records: list[Record] = []
    for item in state.unnumbered[: len(ids)]:
        if item.kind == "report" and terms.boot_id.encode() in item.body:
            window = coarsening.dated(report.decode_window(item.body), terms.boot_id, terms.offset_ms, terms.clock)
            if window is not None:
                records.append(ledger.Merged((item.id,), report.encode_window(window)))
    return [*records, ledger.Numbered(ids, terms.compress)] if ids else []
