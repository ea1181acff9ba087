"""Rows: the facts of each inference, from the moment it ends until the telemetry thread counts them.

A row is one `bytes` object, so that what waits is small, contiguous once joined, and nothing that the garbage collector
has to look at:

    id, began, ran, ended    int64, the times in ns
    age                      int64, ns from the capture of the input to `began`; NO_AGE, WRONG_AGE
    context, error           int16, numbers that `Rows` gave; 0 is none
    repeated                 int16, 1 when the input was that of the inference before
    monitored                int16, COUNTED when channels are to be counted; else outputs are there for labels alone
    outputs                  the monitored tensors, as the manifest declares them; missing when none were kept

Guarantee: `add` may be called from any thread, never blocks but for a lock that is only taken when rows overflow, and
counts every call once: as a row, or in `overflow`. Cost: about 0.5 µs.
"""

from __future__ import annotations

import struct
import threading
import weakref
from collections import Counter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgewright_contracts.baseline import Baseline
from edgewright_contracts.manifest import Manifest, Variant
from edgewright_contracts.report import Phase

ROWS: Final = 16_384  # waiting for the telemetry thread
HELD_BYTES: Final = 8 << 20  # of rows in waiting: a model with large outputs gets fewer
# Fewer, longer rounds cost less: each time that two threads hand the interpreter over costs more than ten rows. Beside
# a model of 10 µs, half as many cost 2 µs a call more than these, and 1024 cost 6, with three times the p99.
KICK: Final = 8192  # rows that wake the telemetry thread before its time
# Twice as many need memory that the system takes back and clears each time: 0.2 µs a row more.
BATCH: Final = 2048  # rows counted at a time
SMALL: Final = 8192  # bytes of outputs that are kept for a late label although no channel is counted
NO_AGE: Final = -1  # nobody said when the input was taken
WRONG_AGE: Final = -2  # in the future, or so long ago that it cannot be
LEFT_OUT: Final = 0  # nobody asked for the channels of this one
COUNTED: Final = 1
SPARED: Final = 2  # the hub asked for them, and the device had no room
ERRORS: Final = 24  # kinds that are told apart; what is more is "other" (a contract allows 32)

_HEAD: Final = struct.Struct("<qqqqqhhhh")
_pack: Final = _HEAD.pack
_FIELDS: Final = [
    ("id", "<i8"), ("began", "<i8"), ("ran", "<i8"), ("ended", "<i8"), ("age", "<i8"),
    ("context", "<i2"), ("error", "<i2"), ("repeated", "<i2"), ("monitored", "<i2"),
]  # fmt: skip

Table = npt.NDArray[np.void]


class Subject(msgspec.Struct, frozen=True, eq=False):
    """What is being counted: one variant of one package, in one phase of one rollout."""

    model: str
    manifest: Manifest
    digest: str
    variant: Variant
    baseline: Baseline
    phase: Phase = "normal"
    rollout: str = ""

    @property
    def monitored(self) -> tuple[str, ...]:
        """Output tensors that rows must carry: those that channels and delayed labels look at."""
        names = {c.source.tensor for c in self.baseline.channels} | {c.source.mask for c in self.baseline.channels}
        names |= {t.name for t in self.manifest.outputs if t.role == "probabilities"}
        return tuple(t.name for t in self.manifest.outputs if t.name in names)

    @property
    def probabilities(self) -> str | None:
        return next((t.name for t in self.manifest.outputs if t.role == "probabilities"), None)


class Rows:
    """Those of one subject. `batch` and `overflown` are the telemetry thread's."""

    def __init__(self, subject: Subject, wake: threading.Event, owner: object) -> None:
        """`owner` is whoever adds: while it lives, more rows may come."""
        self.subject, self.owner = subject, weakref.ref(owner)
        self.contexts = ("", *subject.manifest.contexts)
        shapes = {t.name: (t.name, t.dtype, t.shape) for t in subject.manifest.outputs}
        self._layout = np.dtype([("head", _FIELDS), ("outputs", [shapes[name] for name in subject.monitored])])
        self._head = np.dtype([("head", _FIELDS)])
        self._full: list[bytes] = []
        self._bare: list[bytes] = []  # without outputs: failed, or not monitored
        self._bytes = self._layout.itemsize
        self.keeps = subject.probabilities is not None and self._bytes <= SMALL
        self.limit = max(64, min(ROWS, HELD_BYTES // self._bytes))
        self._kick = min(KICK, self.limit // 2)
        self._wake = wake
        self.kinds = [""]  # of errors, by number
        self._rare = threading.Lock()
        self._overflow: Counter[tuple[str, str]] = Counter()
        self._misshapen = 0

    def add(
        self,
        identifier: int,
        began: int,
        ran: int,
        ended: int,
        context: int,
        repeated: bool,
        outputs: bytes,
        age: int = NO_AGE,
        monitored: int = COUNTED,
    ) -> None:
        """The hot path. `outputs` are the bytes of all monitored tensors, b"" when they are not kept."""
        full, bare = self._full, self._bare
        waiting = len(full) + len(bare)
        if waiting >= self.limit:
            self._overflows(context, "")
            return
        row = _pack(identifier, began, ran, ended, age, context, 0, repeated, monitored) + outputs
        if len(row) == self._bytes:
            full.append(row)
        else:
            bare.append(row[: _HEAD.size])
            if outputs:
                with self._rare:
                    self._misshapen += 1
        if waiting >= self._kick and not self._wake.is_set():
            self._wake.set()

    def fail(
        self, identifier: int, began: int, ran: int, ended: int, context: int, kind: str, age: int = NO_AGE
    ) -> None:
        """An inference that the runtime did not finish; `kind` of its error."""
        with self._rare:
            if kind not in self.kinds:
                kind = kind if len(self.kinds) < ERRORS else "other"
                self.kinds += [] if kind in self.kinds else [kind]
            error = self.kinds.index(kind)
        if len(self._full) + len(self._bare) >= self.limit:
            self._overflows(context, kind)
        else:
            self._bare.append(_pack(identifier, began, ran, ended, age, context, error, 0, 0))

    def batch(self, until_ns: int | None = None) -> tuple[Table, Table | None]:
        """Up to `BATCH` waiting rows, heads and outputs; none when nothing waits that ended before `until_ns`."""
        if self._full:
            table = _joined(self._full, self._layout, until_ns)
            if table.size:
                return table["head"], table["outputs"]
        return _joined(self._bare, self._head, until_ns)["head"], None

    def overflown(self) -> tuple[dict[tuple[str, str], int], int]:
        """Since the last call: inferences by (context, kind of error) that left no row, and rows without outputs
        because the file's were not of the size that its manifest declares."""
        with self._rare:
            found, self._overflow = self._overflow, Counter()
            misshapen, self._misshapen = self._misshapen, 0
        return found, misshapen

    def _overflows(self, context: int, kind: str) -> None:
        with self._rare:
            self._overflow[self.contexts[context], kind] += 1


def _joined(waiting: list[bytes], layout: np.dtype[Any], until_ns: int | None) -> Table:
    """Up to `BATCH` of them as one array, oldest first; from the first that ended later on, they go on waiting.

    Other threads append meanwhile: to copy the front and to delete it is one step each for the interpreter.
    """
    table = np.frombuffer(b"".join(waiting[:BATCH]), layout)
    if until_ns is not None:
        late = np.flatnonzero(table["head"]["ended"] >= until_ns)
        if late.size:
            table = table[: late[0]]
    del waiting[: len(table)]
    return table
