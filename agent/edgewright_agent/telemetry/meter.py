"""The meter: counts what the models do, off the inference's path.

Order: an inference leaves one row (`rows`); the telemetry thread `drain`s them in batches, bins, and joins labels
(`ring`); `take` hands out the windows counted so far (`counts`). A row belongs to the window that is open when it is
drained.

Guarantee: `n`, errors and rejections are exact. When the telemetry thread cannot keep up, rows lose their channels and
latencies, never their count, and the window says how many (`shed`). Cost in the telemetry thread: about 0.6 µs a row of
22 channels.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from edgewright_contracts.report import Hits, Shift, Usage, Window

from .counts import Clocks, Counts
from .outcomes import Outcome
from .ring import RING, Ring
from .rows import COUNTED, SPARED, Rows, Subject, Table


class Beside(NamedTuple):
    """What a shadow run found since it told last, of one context; `shed`: samples that it did not get to."""

    subject: Subject
    context: str
    agreed: Hits = Hits()
    surer: Shift = Shift()
    shed: int = 0


class Meter:
    """`rows`, `reject` and `outcome` may be called from any thread; `drain` and `take` from the telemetry's only."""

    def __init__(self, wake: threading.Event) -> None:
        self.monitor_every = 1  # channels are counted of every n-th inference of a package in a context
        self.asked_every = 1  # the same, as the hub asks for it; the rest is shed
        self.scene_ns = 0  # and of each context at most once in so long
        self._wake = wake
        self._rows: list[Rows] = []
        self._rejected: Counter[tuple[Subject, str, str]] = Counter()
        self._late: deque[Outcome] = deque(maxlen=RING)
        self._lost_outcomes = 0
        self._shed: Counter[tuple[Subject | None, str]] = Counter()
        self._beside: dict[tuple[Subject, str], Beside] = {}
        self._rare = threading.Lock()
        self._settled = threading.Condition()
        self._drains = 0
        self._counts: dict[tuple[Subject, str], Counts] = {}
        self._ring = Ring()

    def rows(self, subject: Subject, owner: object) -> Rows:
        """Where `owner` leaves the rows of `subject`: they are counted as long as it lives, and to the last."""
        rows = Rows(subject, self._wake, owner)
        with self._rare:
            self._rows.append(rows)
        return rows

    def reject(self, subject: Subject, context: str, reason: str) -> None:
        with self._rare:
            self._rejected[subject, context, reason] += 1

    def outcome(self, outcome: Outcome) -> None:
        with self._rare:
            if len(self._late) == self._late.maxlen:
                self._lost_outcomes += 1
            self._late.append(outcome)

    def shed(self, what: str, n: int = 1, subject: Subject | None = None) -> None:
        """Count what was given up or coarsened; of no `subject`, in the window of the most inferences."""
        with self._rare:
            self._shed[subject, what] += n

    def beside(self, told: Beside) -> None:
        key = told.subject, told.context
        with self._rare:
            had = self._beside.get(key, Beside(*key))
            self._beside[key] = Beside(*key, had.agreed + told.agreed, had.surer + told.surer, had.shed + told.shed)

    def drain(self, until_ns: int | None = None) -> None:
        """Count everything that waits; with `until_ns`, only inferences that ended before that monotonic time."""
        with self._rare:
            waiting = list(self._rows)
            late = list(self._late)  # before the rows: their inferences were recorded before them
            self._late.clear()
            early: list[Outcome] = []  # of inferences that this drain leaves for the next
            rejected, self._rejected = self._rejected, Counter()
            if self._lost_outcomes:
                self._shed[None, "outcomes"] += self._lost_outcomes
                self._lost_outcomes = 0
            mine = {key: n for key, n in self._shed.items() if key[0] is not None}
            for key in mine:
                del self._shed[key]
            beside, self._beside = self._beside, {}
        for (subject, context, reason), times in rejected.items():
            self._of(subject, context).rejected[reason] += times
        for (whose, what), times in mine.items():
            assert whose is not None
            self._of(whose, "").shed[what] += times
        for told in beside.values():
            counts = self._of(told.subject, told.context)
            counts.shadow, counts.shift = counts.shadow + told.agreed, counts.shift + told.surer
            if told.shed:
                counts.shed["shadow"] += told.shed
        gone = {id(rows) for rows in waiting if rows.owner() is None}  # and so nothing will be added to them
        for rows in waiting:
            self._drain(rows, until_ns)
        if gone:
            with self._rare:
                self._rows = [rows for rows in self._rows if id(rows) not in gone]
        for one in late:
            found = self._ring.find(one.id)
            if found is not None:
                counts, hit = self._of(found.subject, found.context), found.hit(one)
                if hit is not None and self._ring.first(one.id, one.name):
                    counts.join(one.name, hit, found.confidence)
                else:
                    counts.shed["outcomes"] += 1
            elif until_ns is not None:
                early.append(one)
            else:
                self.shed("outcomes")
        if early:
            with self._rare:
                self._lost_outcomes += max(0, len(early) + len(self._late) - RING)
                self._late = deque([*early, *self._late], maxlen=RING)
        if until_ns is None:
            with self._settled:
                self._drains += 1
                self._settled.notify_all()

    @property
    def empty(self) -> bool:
        """Whether nothing was counted since the last `take`."""
        return not self._counts

    def most(self) -> int:
        """Inferences in the fullest window so far."""
        return max((counts.n for counts in self._counts.values()), default=0)

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

        `usage` is the process's, so it goes to one window only: that of the most inferences. So does what was shed of
        no subject.
        """
        for subject in subjects:
            if not any(s is subject for s, _ in self._counts):
                self._of(subject, "")
        taken, self._counts = self._counts, {}
        busiest = max(taken, key=lambda k: taken[k].n, default=None)
        if busiest is not None:
            with self._rare:
                for whose, what in [key for key in self._shed if key[0] is None]:
                    taken[busiest].shed[what] += self._shed.pop((whose, what))
        return [
            (subject, counts.window(subject, context, clocks, usage if (subject, context) == busiest else Usage()))
            for (subject, context), counts in taken.items()
        ]

    def _drain(self, rows: Rows, until_ns: int | None) -> None:
        while True:
            heads, outputs = rows.batch(until_ns)
            if not heads.size:
                break
            contexts = heads["context"]
            if not contexts.any():
                self._count(rows, "", heads, outputs)
                continue
            for number in np.unique(contexts).tolist():
                here = contexts == number
                self._count(rows, rows.contexts[number], heads[here], outputs if outputs is None else outputs[here])
        overflow, misshapen = rows.overflown()
        for (context, kind), times in overflow.items():
            counts = self._of(rows.subject, context)
            counts.n += times
            counts.shed["rows"] += times
            if kind:
                counts.errors[kind] += times
        if misshapen:
            self._of(rows.subject, "").shed["monitored"] += misshapen

    def _count(self, rows: Rows, context: str, heads: Table, outputs: Table | None) -> None:
        subject = rows.subject
        counts = self._of(subject, context)
        counts.add(heads, rows.kinds)
        names = outputs.dtype.names if outputs is not None else None
        found = {name: outputs[name] for name in names} if outputs is not None and names else {}
        monitored = heads["monitored"] == COUNTED
        whole = bool(monitored.all())
        if found and whole:
            counts.monitor(found, len(heads))
        elif found and monitored.any():
            counts.monitor({name: y[monitored] for name, y in found.items()}, int(np.count_nonzero(monitored)))
        if not whole and (spared := int(np.count_nonzero(heads["monitored"] == SPARED))):
            counts.shed["channels"] += spared
        if subject.phase == "shadow":
            return  # no label is about what was never answered
        self._ring.add(subject, context, heads["id"], found.get(subject.probabilities or ""))

    def _of(self, subject: Subject, context: str) -> Counts:
        key = (subject, context)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = Counts(subject)
        return counts
