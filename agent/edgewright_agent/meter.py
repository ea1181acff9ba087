"""Counting what the model does, off the inference's path.

Order: an inference appends one row of raw facts to a bounded deque; the telemetry thread `drain`s it in batches, bins,
and joins labels; `take` hands out the windows counted so far. A row belongs to the window that is open when it is
drained.

Guarantee: `n`, errors and rejections are exact. When the telemetry thread cannot keep up, rows lose their channels and
latencies, never their count, and the window says how many (`shed`). Cost on the inference's thread: about 1 µs.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable
from operator import eq
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgewright_contracts import binning
from edgewright_contracts.baseline import Baseline
from edgewright_contracts.channels import Binner
from edgewright_contracts.manifest import Manifest, TensorOut, Variant
from edgewright_contracts.report import CONFIDENCE_BINS, Clock, Hits, Phase, Usage, Window
from edgewright_runtime.runtime import Array

ROWS: Final = 4096  # waiting for the telemetry thread
HELD_BYTES: Final = 8 << 20  # of monitored outputs in waiting rows: a model with large outputs gets fewer rows
KICK: Final = 2048  # rows that wake the telemetry thread before its time: fewer, longer rounds cost less
BATCH: Final = 1024  # rows binned at a time, so that an inference never waits long for the interpreter
RING: Final = 8192  # inferences that a late label still finds
RING_KEYS: Final = 256  # subjects that the ring remembers before it starts anew
TALLY_KEYS: Final = 24  # kinds of errors or outcomes; what is more is "other" (a contract allows 32)
OUTCOMES: Final = 15  # names beside `correct`
SAMPLE_BYTES: Final = 512  # of an input, compared with the one before


Ids = npt.NDArray[np.int64]

_ROWS_OF_3: Final = np.arange(3)[:, np.newaxis] * binning.GRID_CELLS  # three grids in one row


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


# Facts of one inference: subject, context, id, sample of the input, the outputs of `Subject.monitored` (None: it
# failed, or is not monitored), when it began, ran and ended in ns, and the kind of its error. A plain tuple, because
# every inference makes one.
Row = tuple[Subject, str, int, bytes | None, tuple[bytes, ...] | None, int, int, int, str | None]


class Outcome(NamedTuple):
    id: int
    name: str
    truth: int | str  # for `correct` the class, by index or label; else whether it came out true


class Clocks(msgspec.Struct, frozen=True):
    """The span of a window and what its device knew of time."""

    boot_id: str
    start_ms: int
    end_ms: int
    wall_start_ms: int | None
    clock: Clock
    next_due_s: int


class Meter:
    """`record`, `reject` and `outcome` may be called from any thread; `drain` and `take` from the telemetry's only."""

    def __init__(self, wake: threading.Event) -> None:
        self._rows: deque[Row] = deque()
        self.monitor_every = 1  # channels are counted of every n-th inference
        self._limit, self._kick = ROWS, KICK
        self._wake = wake
        self._overflow: Counter[tuple[Subject, str, str | None]] = Counter()
        self._rejected: Counter[tuple[Subject, str, str]] = Counter()
        self._late: deque[Outcome] = deque(maxlen=RING)
        self._lost_outcomes = 0
        self._rare = threading.Lock()
        self._settled = threading.Condition()
        self._drains = 0
        self._counts: dict[tuple[Subject, str], Counts] = {}
        self._ring = Ring()
        self._last: dict[str, bytes] = {}

    def record(self, row: Row) -> None:
        """The hot path. Never blocks but for a lock that is only taken when rows overflow."""
        rows = self._rows
        waiting = len(rows)
        if waiting < self._limit:
            rows.append(row)
            if waiting >= self._kick and not self._wake.is_set():
                self._wake.set()
        else:
            with self._rare:
                self._overflow[row[0], row[1], row[8]] += 1

    def reject(self, subject: Subject, context: str, reason: str) -> None:
        with self._rare:
            self._rejected[subject, context, reason] += 1

    def outcome(self, outcome: Outcome) -> None:
        with self._rare:
            if len(self._late) == self._late.maxlen:
                self._lost_outcomes += 1
            self._late.append(outcome)

    def fit(self, row_bytes: int) -> None:
        """Bound the rows that wait by the bytes that each holds."""
        self._limit = max(64, min(self._limit, HELD_BYTES // max(1, row_bytes)))
        self._kick = min(KICK, self._limit // 2)

    def drain(self) -> int:
        """Count everything that waits; returns how many rows that was."""
        late = self._take_late()  # before the rows: their inferences were recorded before them
        done = 0
        while batch := self._next_batch():
            done += len(batch)
            for (subject, context), rows in _grouped(batch):
                self._count(subject, context, rows)
        with self._rare:
            overflow, self._overflow = self._overflow, Counter()
            rejected, self._rejected = self._rejected, Counter()
            lost, self._lost_outcomes = self._lost_outcomes, 0
        for (subject, context, error), times in overflow.items():
            counts = self._of(subject, context)
            counts.n += times
            counts.shed["rows"] += times
            if error is not None:
                counts.errors[_bounded(counts.errors, error)] += times
            done += times
        for (subject, context, reason), times in rejected.items():
            self._of(subject, context).rejected[reason] += times
        self._join(late)
        if lost and self._counts:
            next(iter(self._counts.values())).shed["outcomes"] += lost
        with self._settled:
            self._drains += 1
            self._settled.notify_all()
        return done

    def settle(self, timeout: float) -> bool:
        """Wake the telemetry thread and wait until it has drained what waited at this call."""
        with self._settled:
            goal = self._drains + 2  # one drain may be under way that began before this call
            while self._drains < goal:
                self._wake.set()
                if not self._settled.wait(timeout):
                    return False
            return True

    def take(self, subjects: Iterable[Subject], clocks: Clocks, usage: Usage) -> list[tuple[Subject, Window]]:
        """Windows of everything counted since the last call, and an empty one for each of `subjects` that had nothing.

        `usage` is the process's, so it goes to one window only: that of the most inferences.
        """
        for subject in subjects:
            if not any(s is subject for s, _ in self._counts):
                self._of(subject, "")
        taken, self._counts = self._counts, {}
        busiest = max(taken, key=lambda k: taken[k].n, default=None)
        return [
            (subject, counts.window(subject, context, clocks, usage if (subject, context) == busiest else Usage()))
            for (subject, context), counts in taken.items()
        ]

    def _next_batch(self) -> list[Row]:
        rows = self._rows
        return [rows.popleft() for _ in range(min(BATCH, len(rows)))]

    def _take_late(self) -> list[Outcome]:
        with self._rare:
            late = list(self._late)
            self._late.clear()
        return late

    def _of(self, subject: Subject, context: str) -> Counts:
        key = (subject, context)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = Counts(subject)
        return counts

    def _count(self, subject: Subject, context: str, rows: list[Row]) -> None:
        counts = self._of(subject, context)
        _, _, ids, samples, kept, began, run, ended, errors = zip(*rows, strict=True)
        n = len(rows)
        counts.n += n
        known = samples if None not in samples else tuple(s for s in samples if s is not None)
        if known:
            counts.repeated += sum(map(eq, known[1:], known)) + (known[0] == self._last.get(subject.model))
            self._last[subject.model] = known[-1]
        for error in errors if any(errors) else ():
            if error is not None:
                counts.errors[_bounded(counts.errors, error)] += 1
        times = np.array((began, run, ended), np.int64)
        spans = np.stack((times[1] - times[0], times[2] - times[1], times[2] - times[0]))
        cells = binning.grid_index(spans) + _ROWS_OF_3
        counts.latency += np.bincount(cells.ravel(), minlength=3 * binning.GRID_CELLS)
        seen = [k for k in kept if k is not None]
        outputs: dict[str, Array] = {}
        if seen:
            columns = zip(*seen, strict=True)
            try:
                outputs = {t.name: _joined(t, c) for t, c in zip(counts.monitored, columns, strict=True)}
            except ValueError:  # the file's outputs are not of the shape that its manifest declares
                counts.shed["monitored"] += len(seen)
                seen = []
        if outputs:
            counts.binner.add(outputs)
            counts.n_monitored += len(seen)
        all_ids = np.array(ids, np.int64)
        with_class = all_ids if len(seen) == n else all_ids[[k is not None and bool(seen) for k in kept]]
        self._ring.add(subject, context, all_ids, with_class, outputs)

    def _join(self, late: list[Outcome]) -> None:
        for one in late:
            found = self._ring.find(one.id)
            if found is None:
                if self._counts:
                    next(iter(self._counts.values())).shed["outcomes"] += 1
                continue
            subject, context, predicted, confidence = found
            counts = self._of(subject, context)
            if one.name == "correct":
                if predicted < 0:
                    counts.shed["outcomes"] += 1
                    continue
                labels = subject.manifest.labels
                hit = one.truth == (labels[predicted] if isinstance(one.truth, str) and labels else predicted)
                at = min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)
                counts.by_confidence[at] += 1
                counts.by_confidence[CONFIDENCE_BINS + at] += hit
            else:
                hit = bool(one.truth)
            if one.name in counts.outcomes or one.name == "correct" or len(counts.outcomes) < OUTCOMES:
                counts.outcomes[one.name] = counts.outcomes.get(one.name, Hits()) + Hits(1, int(hit))
            else:
                counts.shed["outcomes"] += 1


class Counts:
    """One window of one (subject, context) while it is open."""

    def __init__(self, subject: Subject) -> None:
        self.binner = Binner(subject.baseline.channels)
        self.monitored = [t for t in subject.manifest.outputs if t.name in subject.monitored]
        self.n = self.n_monitored = self.repeated = 0
        self.latency = np.zeros(3 * binning.GRID_CELLS, np.int64)  # queue, run, total
        self.errors: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.shed: Counter[str] = Counter()
        self.outcomes: dict[str, Hits] = {}
        self.by_confidence = np.zeros(2 * CONFIDENCE_BINS, np.int64)

    def window(self, subject: Subject, context: str, clocks: Clocks, usage: Usage) -> Window:
        queue, run, total = self.latency.reshape(3, -1)
        return Window(
            boot_id=clocks.boot_id,
            mono_start_ms=clocks.start_ms,
            mono_end_ms=clocks.end_ms,
            wall_start_ms=clocks.wall_start_ms,
            clock=clocks.clock,
            next_due_s=clocks.next_due_s,
            digest=subject.digest[:16],
            variant=subject.variant.id,
            context=context,
            edge_hash=subject.baseline.edge_hash,
            phase=subject.phase,
            rollout=subject.rollout,
            n=self.n,
            n_monitored=self.n_monitored,
            latency_queue=binning.pack_grid(queue),
            latency_run=binning.pack_grid(run),
            latency_total=binning.pack_grid(total),
            errors=dict(self.errors),
            rejected=dict(self.rejected),
            repeated=self.repeated,
            cells=binning.pack(self.binner.take()) if self.n_monitored else b"",
            outcomes=self.outcomes,
            correct_by_confidence=binning.pack(self.by_confidence) if self.by_confidence.any() else b"",
            usage=usage,
            shed=dict(self.shed),
        )


class Ring:
    """The last `RING` inferences: id → subject, context, predicted class, confidence. About 24 bytes each."""

    def __init__(self) -> None:
        self._ids = np.full(RING, -1, np.int64)
        self._class = np.full(RING, -1, np.int32)
        self._confidence = np.zeros(RING, np.float32)
        self._key = np.zeros(RING, np.int32)
        self._keys: list[tuple[Subject, str]] = []

    def add(self, subject: Subject, context: str, ids: Ids, with_class: Ids, outputs: dict[str, Array]) -> None:
        """`outputs` are those of `with_class`, row by row; the other `ids` have no class."""
        at = ids % RING
        self._ids[at], self._class[at], self._key[at] = ids, -1, self._number(subject, context)
        name = subject.probabilities
        if name is not None and with_class.size:
            at = with_class % RING
            p = outputs[name].reshape(with_class.size, -1)
            best = p.argmax(axis=1)
            self._class[at] = best
            self._confidence[at] = np.clip(np.nan_to_num(p[np.arange(best.size), best]), 0, 1)

    def find(self, identifier: int) -> tuple[Subject, str, int, float] | None:
        """None when the inference was too long ago, was shed, or never was."""
        at = identifier % RING
        if self._ids[at] != identifier:
            return None
        subject, context = self._keys[self._key[at]]
        return subject, context, int(self._class[at]), float(self._confidence[at])

    def _number(self, subject: Subject, context: str) -> int:
        for i, (s, c) in enumerate(self._keys):
            if s is subject and c == context:
                return i
        if len(self._keys) >= RING_KEYS:
            self._ids[:] = -1
            self._keys.clear()
        self._keys.append((subject, context))
        return len(self._keys) - 1


def sample(x: npt.NDArray[np.generic]) -> bytes:
    """Enough of an input to notice that a sensor repeats itself; the whole of a small one."""
    if x.nbytes <= SAMPLE_BYTES:
        return x.tobytes()
    flat = x.reshape(-1)
    return flat[:: -(-x.nbytes // SAMPLE_BYTES)].tobytes()


def _joined(tensor: TensorOut, rows: tuple[bytes, ...]) -> Array:
    """The rows of one output as the manifest declares it, [n, *shape]."""
    return np.frombuffer(b"".join(rows), tensor.dtype).reshape(len(rows), *tensor.shape)


def _grouped(batch: list[Row]) -> list[tuple[tuple[Subject, str], list[Row]]]:
    subjects, contexts = [row[0] for row in batch], [row[1] for row in batch]
    if subjects.count(subjects[0]) == len(batch) == contexts.count(contexts[0]):
        return [((subjects[0], contexts[0]), batch)]
    groups: dict[tuple[Subject, str], list[Row]] = {}
    for row in batch:
        groups.setdefault((row[0], row[1]), []).append(row)
    return list(groups.items())


def _bounded(tally: Counter[str], key: str) -> str:
    return key if key in tally or len(tally) < TALLY_KEYS else "other"
