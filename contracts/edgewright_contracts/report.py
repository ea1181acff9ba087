"""Windows and reports: what a device counted. Counts, never samples.

A *window* is one span of time of one key (digest, variant, context, edge hash, phase, rollout) on one device. It is
sealed without a number, and only such windows merge. A *report* is a window with `spool_id` and `seq`: from the first
offer on, its bytes never change. That windows merge and reports cannot is what keeps any count from being added twice.

`merge` is associative, commutative and exact: sums and counts add, maxima take the maximum, the key must be equal, and
what cannot be kept falls to the weaker value (several boots: boot_id ""; clocks: the least certain). A map that would
outgrow its bound keeps the first names of a fixed order and adds the rest into `other`: which names stay then depends
on the set of names alone, never on counts or on what was merged first (the smallest counts could not promise that).

Every window within its bounds, merged or not, is at most WINDOW_BYTES long, so that it always fits a report.

Wire: MessagePack arrays, new fields only at the end; optionally packed (packing.py). At most 64 KiB, checked
before decoding, both packed and unpacked. About 500 bytes for 22 channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Annotated, Final, Literal

import msgspec

from .binning import add, add_grid, unpack, unpack_grid
from .channels import MAX_CHANNELS, SCORE_BINS
from .codec import (
    MAX_COUNT,
    MAX_SUM,
    REPORT_BYTES,
    Count,
    Hex64,
    Label,
    Millis,
    Sequence,
    Sum,
    decode,
    encode,
)
from .errors import ContractError
from .manifest import Context, VariantId
from .packing import plain

VERSION: Final = 1
CONFIDENCE_BINS: Final = 10  # delayed labels by confidence: n then hits, of each tenth of [0, 1]

Clock = Literal["synced", "free", "unknown"]
Phase = Literal["normal", "shadow", "probation"]
MAX_NAMES: Final = 32
MAX_OUTCOMES: Final = 16
OTHER: Final = "other"
CORRECT: Final = "correct"  # the delayed label: the outcome that is never folded into `other`
MAX_CELLS: Final = MAX_CHANNELS * (SCORE_BINS + 2)  # the widest channel is a score
WINDOW_BYTES: Final = REPORT_BYTES - 64  # a report adds v, spool_id and seq

Tally = Annotated[dict[Label, Count], msgspec.Meta(max_length=MAX_NAMES)]
Rollout = Annotated[str, msgspec.Meta(max_length=64)]
BootId = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{16})?\Z")]

_CLOCKS: Final[tuple[Clock, ...]] = ("synced", "free", "unknown")


# gc=False: nothing here can hold a cycle, and a hub makes thousands of these a second.
class Hits(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """n trials, of which `hits` came out true."""

    n: Count = 0
    hits: Count = 0

    def __post_init__(self) -> None:
        if self.hits > self.n:
            raise ContractError("hits", f"at most n = {self.n}", str(self.hits))

    def __add__(self, other: Hits) -> Hits:
        return Hits(_plus(self.n, other.n, "hits.n"), _plus(self.hits, other.hits, "hits.hits"))


class Gauge(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A level sampled n times: its sum and its maximum."""

    n: Count = 0
    sum: Sum = 0
    max: Count = 0

    def __add__(self, other: Gauge) -> Gauge:
        return Gauge(
            _plus(self.n, other.n, "gauge.n"),
            _plus(self.sum, other.sum, "gauge.sum", MAX_SUM),
            max(self.max, other.max),
        )


class Shift(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How much surer a candidate is than the active model of the same n inputs: sums of the rises and of the falls of
    confidence, in parts per million."""

    n: Count = 0
    up: Sum = 0
    down: Sum = 0

    def __add__(self, other: Shift) -> Shift:
        return Shift(
            _plus(self.n, other.n, "shift.n"),
            _plus(self.up, other.up, "shift.up", MAX_SUM),
            _plus(self.down, other.down, "shift.down", MAX_SUM),
        )


class Usage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    rss_kb: Gauge = Gauge()
    cpu_permille: Gauge = Gauge()  # of one core
    temperature_dk: Gauge = Gauge()  # tenths of a kelvin, so that it is never negative
    discharge_permille: Gauge = Gauge()  # 1000 - battery level
    cpu_ms: Sum = 0
    bytes_sent: Sum = 0
    bytes_received: Sum = 0
    bytes_written: Sum = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.rss_kb + other.rss_kb,
            self.cpu_permille + other.cpu_permille,
            self.temperature_dk + other.temperature_dk,
            self.discharge_permille + other.discharge_permille,
            _plus(self.cpu_ms, other.cpu_ms, "usage.cpu_ms", MAX_SUM),
            _plus(self.bytes_sent, other.bytes_sent, "usage.bytes_sent", MAX_SUM),
            _plus(self.bytes_received, other.bytes_received, "usage.bytes_received", MAX_SUM),
            _plus(self.bytes_written, other.bytes_written, "usage.bytes_written", MAX_SUM),
        )


class Window(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    boot_id: BootId  # "" when windows of several boots were merged
    mono_start_ms: Millis
    mono_end_ms: Millis
    wall_start_ms: Millis | None  # None: this boot never had a clock
    clock: Clock
    span: Annotated[int, msgspec.Meta(ge=1, le=2**40)] = 1  # how many sealed windows this one holds
    next_due_s: Count  # silence longer than this is silence, not a long window
    digest: Hex64  # the first 16 hex digits of the package's digest
    variant: VariantId
    context: Context = ""
    edge_hash: Hex64
    phase: Phase = "normal"
    rollout: Rollout = ""
    n: Count = 0  # inferences, whether or not they succeeded
    n_monitored: Count = 0  # those whose channels were counted
    latency_queue: bytes = b""  # sparse grid counts, binning.pack_grid; an agent tells waits and runs on every eighth
    latency_run: bytes = b""  # edge
    latency_total: bytes = b""
    errors: Tally = {}  # by kind
    rejected: Tally = {}  # inputs refused before inference, by reason
    repeated: Count = 0  # inputs equal to the one before
    input_age: bytes = b""  # sparse grid counts
    cells: bytes = b""  # varints of all channels; empty is all zeros
    outcomes: Annotated[dict[Label, Hits], msgspec.Meta(max_length=MAX_OUTCOMES)] = {}  # `correct` is the delayed label
    correct_by_confidence: bytes = b""  # varints: n of each confidence bin, then hits of each
    shadow: Hits = Hits()  # n compared with the active model, hits agreed
    usage: Usage = Usage()
    shed: Tally = {}  # what was dropped or coarsened, by what
    shadow_confidence: Shift | None = None  # None: nothing was compared, and costs one byte

    def __post_init__(self) -> None:
        if self.mono_end_ms < self.mono_start_ms:
            raise ContractError("mono_end_ms", f"at least mono_start_ms = {self.mono_start_ms}", str(self.mono_end_ms))
        if self.n_monitored > self.n:
            raise ContractError("n_monitored", f"at most n = {self.n}", str(self.n_monitored))
        if sum(self.errors.values()) > self.n:
            raise ContractError("errors", f"at most n = {self.n} in all", str(sum(self.errors.values())))
        for name in ("latency_queue", "latency_run", "latency_total", "input_age"):
            data = getattr(self, name)
            if data and int(unpack_grid(data, field=name).sum()) > self.n:
                raise ContractError(name, f"at most n = {self.n} durations", str(int(unpack_grid(data).sum())))
        if (size := unpack(self.cells).size) > MAX_CELLS:
            raise ContractError("cells", f"at most {MAX_CELLS} cells", str(size))
        if self.correct_by_confidence:
            bins = unpack(self.correct_by_confidence, field="correct_by_confidence", count=2 * CONFIDENCE_BINS)
            if (bins[CONFIDENCE_BINS:] > bins[:CONFIDENCE_BINS]).any():
                raise ContractError("correct_by_confidence", "hits of at most n in each bin", "more")

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        return (self.digest, self.variant, self.context, self.edge_hash, self.phase, self.rollout)

    @property
    def error_count(self) -> int:
        return sum(self.errors.values())


class Report(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    spool_id: Hex64
    seq: Sequence
    window: Window


def merge(a: Window, b: Window) -> Window:
    """One window that holds both.

    Raises ContractError when the keys or the numbers of cells differ, or when a sum leaves its bound (2**40 for counts,
    2**53 for usage): both windows then stay as they are.
    """
    if a.key != b.key:
        raise ContractError("key", repr(a.key), repr(b.key))
    starts = [w for w in (a.wall_start_ms, b.wall_start_ms) if w is not None]
    return Window(
        boot_id=a.boot_id if a.boot_id == b.boot_id else "",
        mono_start_ms=min(a.mono_start_ms, b.mono_start_ms),
        mono_end_ms=max(a.mono_end_ms, b.mono_end_ms),
        wall_start_ms=min(starts, default=None),
        clock=_CLOCKS[max(_CLOCKS.index(a.clock), _CLOCKS.index(b.clock))],
        span=_plus(a.span, b.span, "span"),
        next_due_s=max(a.next_due_s, b.next_due_s),
        digest=a.digest,
        variant=a.variant,
        context=a.context,
        edge_hash=a.edge_hash,
        phase=a.phase,
        rollout=a.rollout,
        n=_plus(a.n, b.n, "n"),
        n_monitored=a.n_monitored + b.n_monitored,
        latency_queue=add_grid(a.latency_queue, b.latency_queue),
        latency_run=add_grid(a.latency_run, b.latency_run),
        latency_total=add_grid(a.latency_total, b.latency_total),
        errors=add_tally(a.errors, b.errors, field="errors"),
        rejected=add_tally(a.rejected, b.rejected, field="rejected"),
        repeated=_plus(a.repeated, b.repeated, "repeated"),
        input_age=add_grid(a.input_age, b.input_age),
        cells=add(a.cells, b.cells),
        outcomes=_add_outcomes(a.outcomes, b.outcomes),
        correct_by_confidence=add(a.correct_by_confidence, b.correct_by_confidence, field="correct_by_confidence"),
        shadow=a.shadow + b.shadow,
        usage=a.usage + b.usage,
        shed=add_tally(a.shed, b.shed, field="shed"),
        shadow_confidence=_add_shifts(a.shadow_confidence, b.shadow_confidence),
    )


def encode_window(window: Window) -> bytes:
    """As a spool keeps it while it has no number; maps are sorted, so equal windows give equal bytes.

    Raises ContractError for values that no window may hold.
    """
    return encode(window, name="window", limit=WINDOW_BYTES, wire="msgpack")


def decode_window(data: bytes) -> Window:
    """Raises ContractError."""
    return decode(Window, data, name="window", limit=WINDOW_BYTES, wire="msgpack")


def decode_report(data: bytes) -> Report:
    """As it is, packed, or in a zlib stream as long ago. Raises ContractError."""
    if len(data) > REPORT_BYTES:
        raise ContractError("report", f"at most {REPORT_BYTES} bytes", f"{len(data)} bytes")
    raw = plain(data, name="report", limit=REPORT_BYTES)
    return decode(Report, raw, name="report", limit=REPORT_BYTES, wire="msgpack")


def add_tally(a: Mapping[str, int], b: Mapping[str, int], *, field: str) -> dict[str, int]:
    """Sums by name, at most MAX_NAMES of them: beyond that the first in the alphabet stay and the rest is `other`."""
    kept = _kept(a.keys() | b.keys(), MAX_NAMES)
    out: dict[str, int] = {}
    for name, count in (*a.items(), *b.items()):
        place = name if name in kept else OTHER
        out[place] = _plus(out.get(place, 0), count, f"{field}[{place}]")
    return out


def _add_outcomes(a: Mapping[str, Hits], b: Mapping[str, Hits]) -> dict[str, Hits]:
    kept = _kept(a.keys() | b.keys(), MAX_OUTCOMES)
    out: dict[str, Hits] = {}
    for name, hits in (*a.items(), *b.items()):
        place = name if name in kept else OTHER
        out[place] = out.get(place, Hits()) + hits
    return out


def _add_shifts(a: Shift | None, b: Shift | None) -> Shift | None:
    return (a or b) if a is None or b is None else a + b


def _kept(names: Set[str], most: int) -> Set[str]:
    """The names that stay: a prefix of one fixed order, so a name dropped early would have been dropped late too."""
    if len(names) <= most:
        return names
    return {OTHER, *sorted(names - {OTHER}, key=lambda name: (name != CORRECT, name))[: most - 1]}


def _plus(a: int, b: int, field: str, most: int = MAX_COUNT) -> int:
    if a + b > most:
        raise ContractError(field, f"a sum of at most {most}", str(a + b))
    return a + b
