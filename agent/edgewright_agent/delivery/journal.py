"""The spool's file: `<generation>.log`, a snapshot of the state and the records since, each framed by length and crc.

Guarantee: after `write(…, durable=True)` a restart reads at least those records; whatever is cut, it reads a prefix of
them. A log is only appended to while it is whole: after a failed write, or a torn tail found at opening, a new
generation begins with a snapshot, and the old one goes once the new one is durable. So does a log that has grown to
twice what it holds (and 256 KiB). Flash: one page or two per durable write, benchmarks/spool_wear.py; docs/adr/0012.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgewright_contracts.built import built

from ..disk import Disk, atomic_write
from . import ledger
from .ledger import Record, State

REWRITE_BYTES: Final = 256 << 10

_NAME: Final = re.compile(r"\A[0-9]{8}\.log\Z")
_FRAME: Final = struct.Struct("<II")  # length, crc32
_DECODER: Final = msgspec.msgpack.Decoder(built(State | Record))
_ENCODER: Final = msgspec.msgpack.Encoder()

log = logging.getLogger(__name__)


class Found(NamedTuple):
    state: State | None
    generation: int  # the highest there is
    size: int | None  # of its log, in bytes; None: nothing may be appended to it


class Journal:
    """Not thread-safe: the spool's lock is held."""

    def __init__(self, disk: Disk, root: Path) -> None:
        """Reads what there is, and changes nothing."""
        self._disk, self._root = disk, root
        self.found, self._generation, self._size = read(disk, root)
        self._named = False  # whether the file's name is durable: a killed boot may not have got that far

    @property
    def path(self) -> Path:
        return self._root / f"{self._generation:08d}.log"

    def write(self, records: Sequence[Record], after: State, *, durable: bool) -> None:
        """`after` is the state behind the records. Raises OSError: then a restart may read them or not, and the next
        write that succeeds decides."""
        if self._size is None or self._size > max(REWRITE_BYTES, 2 * after.held_bytes):
            self._rewrite(after)
            return
        data = b"".join(map(frame, records))
        size, self._size = self._size, None  # half a record may stand at the end: nothing may follow it then
        self._disk.append(self.path, data)
        if durable:
            self._disk.fsync(self.path)
            if not self._named:
                self._disk.fsync(self._root)
                self._named = True
        self._size = size + len(data)

    def _rewrite(self, state: State) -> None:
        # Whatever happens to this one, it may be what a restart reads: nothing may follow in an older generation.
        self._generation, self._size = self._generation + 1, None
        data = frame(state)
        self._disk.mkdir(self._root)
        atomic_write(self._disk, self.path, data)
        self._size, self._named = len(data), True
        try:
            for name in self._disk.list(self._root):
                if name != self.path.name:
                    self._disk.unlink(self._root / name)
        except OSError as error:  # the new generation rules already; the next rewrite clears what is left
            log.warning("an old spool log could not be removed: %s", error)


def read(disk: Disk, root: Path) -> Found:
    """What is on disk. Changes nothing."""
    names = sorted((n for n in disk.list(root) if _NAME.match(n)), reverse=True)
    highest = int(names[0].removesuffix(".log")) if names else 0
    for name in names:
        try:
            data = disk.read(root / name)
        except OSError as error:  # a worn page: what it held is lost, and the hub finds the rewind; the model answers
            log.error("spool log %s cannot be read: %s", name, error)  # noqa: TRY400
            continue
        state, end = fold(data)
        if state is not None:
            return Found(state, highest, end if name == names[0] and end == len(data) else None)
        log.warning("spool log %s does not begin with a whole snapshot; trying an older one", name)
    return Found(None, highest, None)


def fold(data: bytes) -> tuple[State | None, int]:
    """The state of a log up to its first record that is not whole, and where that begins; None when not even its
    snapshot is whole."""
    state: State | None = None
    at = 0
    while at + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, at)
        payload = data[at + _FRAME.size : at + _FRAME.size + length]
        if not length or len(payload) < length or zlib.crc32(payload) != crc:  # zeros are no record
            break
        try:
            record = _DECODER.decode(payload)
        except msgspec.MsgspecError as error:  # whole, but of a later version: what is behind it cannot be told either
            log.error("the spool holds a record that this version does not read: %s", error)  # noqa: TRY400
            break
        try:
            state = record if isinstance(record, State) else ledger.apply(_begun(state), record)
        except ledger.RuleBroken as error:  # no reason for a device not to start
            log.error("the spool holds a record that does not follow from those before it: %s", error)  # noqa: TRY400
            break
        at += _FRAME.size + length
    return state, at


def frame(record: State | Record) -> bytes:
    payload = _ENCODER.encode(record)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _begun(state: State | None) -> State:
    if state is None:
        raise ledger.RuleBroken("a log begins with a snapshot")
    return state
