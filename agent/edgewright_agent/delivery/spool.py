"""Store and forward: sealed windows and events wait here until the hub says that it has committed them.

Guarantee: once `seal` or `event` returns, a kill or power cut loses nothing of it and doubles nothing; what `offer`
returns was durably numbered before. Rules in `ledger.py`.

On disk: `<generation>.log`, a snapshot and the records since, each framed by length and crc. A torn tail is cut at
opening. A log that has grown to twice what it holds (and 256 KiB) is rewritten, so flash wear is at most about twice
the windows' own bytes. Threads: any; one lock, held over the fsync, never taken by an inference.
"""

from __future__ import annotations

import logging
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgewright_contracts import birth, event, report
from edgewright_contracts.birth import Unclean
from edgewright_contracts.desired import Ack
from edgewright_contracts.errors import ContractError

from ..disk import Disk, atomic_write
from . import ledger
from .ledger import Item, Kind, Record, State

CAP_BYTES: Final = 4 << 20
REWRITE_BYTES: Final = 256 << 10
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

_FRAME: Final = struct.Struct("<II")  # length, crc32
_DECODER: Final = msgspec.msgpack.Decoder(State | Record)
_ENCODER: Final = msgspec.msgpack.Encoder()

log = logging.getLogger(__name__)


class Offer(NamedTuple):
    seq: int
    kind: Kind
    payload: bytes


class Spool:
    """`new_id` gives a fresh random spool id of 16 hex digits; `cap` bounds the bytes held, not the log's."""

    def __init__(self, disk: Disk, root: Path, *, new_id: Callable[[], str], cap: int = CAP_BYTES) -> None:
        """Reads what the last boot left, and changes nothing: `begin` does."""
        self._disk, self._root, self._new_id, self._cap = disk, root, new_id, cap
        self._lock = threading.Lock()
        found, self._generation = read(disk, root)
        self.after_crash = found is not None and found.open is not None  # the boot before this one ended unclean
        self._state = found or State(new_id())
        self._path, self._size, self._damaged = root, 0, True

    def begin(self, opened: Unclean) -> None:
        """This boot counts from now on. A disk that takes nothing delays that, as it delays all else: until it does,
        what is to be kept raises OSError and stays with the caller, in memory."""
        with self._lock:
            self._state = ledger.booted(self._state, opened)
            try:
                self._rewrite()
            except OSError as error:
                log.error("the spool is in memory only, and lost with this process, until the disk takes it: %s", error)  # noqa: TRY400

    @property
    def state(self) -> State:
        return self._state

    def seal(self, windows: Sequence[report.Window], opened: Unclean) -> None:
        """Durably keep `windows`; `opened` is the window that is counted from now on. Raises OSError, and then the
        caller still has the windows and may try again."""
        with self._lock:
            self._record(
                ledger.Sealed(tuple(("report", report.encode_window(w)) for w in windows), opened), durable=True
            )
            if self._state.held_bytes > self._cap:
                try:
                    self._shrink()
                except OSError as error:  # the windows are sealed all the same; the next one shrinks again
                    log.error("the spool is over its bound, and the disk does not let it shrink: %s", error)  # noqa: TRY400

    def lost(self, windows: int) -> None:
        """Count windows that cannot be kept, so that the hub hears of them. Raises OSError."""
        with self._lock:
            self._record(ledger.Dropped((), windows), durable=True)

    def event(self, draft: event.Event) -> None:
        """Durably keep an event; its spool id and number are set when it is offered. Raises OSError."""
        with self._lock:
            self._record(ledger.Sealed((("event", event.encode_event(draft)),)), durable=True)

    def offer(self, *, compress: bool = False) -> list[Offer]:
        """Everything numbered and unacknowledged, after numbering what may be: at most 16, oldest first."""
        with self._lock:
            ids = ledger.to_number(self._state)
            if ids:
                try:
                    self._record(ledger.Numbered(ids, compress), durable=True)
                except OSError as error:  # what has a number can still go, and so make room
                    log.warning("the disk does not take numbers for what waits: %s", error)
            return [Offer(i.seq, i.kind, encode(i, self._state.spool_id)) for i in self._state.numbered]

    def ack(self, ack: Ack) -> None:
        """Free what the hub has committed. Losing this record only means to offer again, so it is not synced."""
        with self._lock:
            if ledger.rewound(self._state, ack):
                log.warning("the hub has counted numbers that this spool never gave: it was restored or cloned")
                self._record(ledger.Renumbered(self._new_id()), durable=True)
            elif any(i.seq in ack for i in self._state.numbered) and ack.spool_id == self._state.spool_id:
                self._record(ledger.Acked(ack), durable=False)

    def renumber(self, seen: str) -> None:
        """Take a new id, unless `seen` is no longer the id of this spool: then the demand was answered before."""
        with self._lock:
            if seen in ("", self._state.spool_id):
                self._record(ledger.Renumbered(self._new_id()), durable=True)

    def declared(self, boot_ids: tuple[str, ...]) -> None:
        with self._lock:
            if any(u.boot_id in boot_ids for u in self._state.unclean):
                self._record(ledger.Declared(boot_ids), durable=True)

    def close(self) -> None:
        """Nothing is open any more: the next boot has nothing to declare."""
        with self._lock:
            self._record(ledger.Closed(), durable=True)

    def told(self) -> birth.Spool:
        """For the birth message."""
        s = self._state
        return birth.Spool(
            id=s.spool_id,
            next_seq=s.next_seq,
            unacknowledged=len(s.numbered),
            sealed=len(s.unnumbered),
            dropped=s.dropped,
        )

    def _record(self, record: Record, *, durable: bool) -> None:
        after = ledger.apply(self._state, record)
        if self._damaged or self._size > max(REWRITE_BYTES, 2 * after.held_bytes):
            before, self._state = self._state, after
            try:
                self._rewrite()
            except OSError:
                self._state = before
                raise
            return
        data = frame(record)
        try:
            self._disk.append(self._path, data)
            if durable:
                self._disk.fsync(self._path)
        except OSError:
            self._damaged = True  # half a record may stand at the end: nothing may follow it
            raise
        self._size += len(data)
        self._state = after

    def _rewrite(self) -> None:
        """A new generation that begins with a snapshot; the old one goes once the new one is durable."""
        # Whatever happens to this one, it may be what a restart reads: nothing may follow in an older generation.
        self._generation, self._damaged = self._generation + 1, True
        path = self._root / f"{self._generation:08d}.log"
        data = frame(self._state)
        self._disk.mkdir(self._root)
        atomic_write(self._disk, path, data)
        self._path, self._size, self._damaged = path, len(data), False
        try:
            for name in self._disk.list(self._root):
                if name != path.name:
                    self._disk.unlink(self._root / name)
        except OSError as error:  # the new generation rules already; the next rewrite clears what is left
            log.warning("an old spool log could not be removed: %s", error)

    def _shrink(self) -> None:
        """Merge windows into hours, then into days across boots, then drop the oldest: until it fits in the cap."""
        for span in (HOUR_MS, DAY_MS):
            windows = [report.decode_window(i.body) if i.kind == "report" else None for i in self._state.unnumbered]
            groups = [w and _group(w, span) for w in windows]
            for items in ledger.to_merge(self._state, groups):
                try:
                    merged = report.decode_window(items[0].body)
                    for item in items[1:]:
                        merged = report.merge(merged, report.decode_window(item.body))
                    body = report.encode_window(merged)
                except ContractError as error:  # such as a sum beyond its bound: they stay apart, and may be dropped
                    log.warning("windows that cannot be merged: %s", error)
                    continue
                self._record(ledger.Merged(tuple(i.id for i in items), body), durable=False)
            if self._state.held_bytes <= self._cap:
                break
        while self._state.held_bytes > self._cap and self._state.unnumbered:
            windows_first = sorted(self._state.unnumbered, key=lambda i: (i.kind == "event", i.id))
            oldest = windows_first[0]
            span = report.decode_window(oldest.body).span if oldest.kind == "report" else 1
            what = "windows" if oldest.kind == "report" else "event"
            log.error("the spool is full: dropping %d %s that the hub will never see", span, what)
            self._record(ledger.Dropped((oldest.id,), span), durable=False)
        self._disk.fsync(self._path)


def encode(item: Item, spool_id: str) -> bytes:
    """The bytes on the wire of a numbered item: the window's own bytes, framed."""
    if item.kind == "event":
        draft = event.decode_event(item.body)
        return event.encode_event(msgspec.structs.replace(draft, spool_id=spool_id, seq=item.seq))
    raw = msgspec.msgpack.encode((report.VERSION, spool_id, item.seq, msgspec.Raw(item.body)))
    return zlib.compress(raw) if item.compress else raw


def read(disk: Disk, root: Path) -> tuple[State | None, int]:
    """The state on disk and its generation; (None, highest number seen) when there is none. Changes nothing."""
    generations = sorted((n for n in disk.list(root) if n.endswith(".log")), reverse=True)
    for name in generations:
        state = fold(disk.read(root / name))
        if state is not None:
            return state, int(name.removesuffix(".log"))
        log.warning("spool log %s does not begin with a whole snapshot; trying an older one", name)
    return None, int(generations[0].removesuffix(".log")) if generations else 0


def fold(data: bytes) -> State | None:
    """The state of a log up to its first record that is not whole; None when not even its snapshot is."""
    state: State | None = None
    at = 0
    while at + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, at)
        payload = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(payload) < length or zlib.crc32(payload) != crc:
            break
        try:
            record = _DECODER.decode(payload)
        except msgspec.MsgspecError as error:  # whole, but of a later version: what is behind it cannot be told either
            log.error("the spool holds a record that this version does not read: %s", error)  # noqa: TRY400
            break
        state = record if isinstance(record, State) else ledger.apply(_begun(state), record)
        at += _FRAME.size + length
    return state


def frame(record: State | Record) -> bytes:
    payload = _ENCODER.encode(record)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _begun(state: State | None) -> State:
    if state is None:
        raise ledger.RuleBroken("a log begins with a snapshot")
    return state


def _group(window: report.Window, span_ms: int) -> object | None:
    """Windows of one group merge. Within hours only those of one boot do; into days those of any."""
    if span_ms == HOUR_MS:
        return (window.key, window.boot_id, window.mono_start_ms // span_ms)
    return (window.key, None if window.wall_start_ms is None else window.wall_start_ms // span_ms)
