"""Counts: one window of one (subject, context) while it is open, and the report that it becomes.

Guarantee: every inference is in `n`. What could not be counted in full (no outputs, a label without its inference) is
named in `shed`, by how many.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts import binning
from edgewright_contracts.channels import Binner
from edgewright_contracts.errors import ContractError
from edgewright_contracts.report import CONFIDENCE_BINS, CORRECT, Clock, Hits, Shift, Usage, Window
from edgewright_runtime.runtime import Array

from .ring import NAMES
from .rows import WRONG_AGE, Subject, Table

OUTCOMES: Final = NAMES - 1  # names beside `correct`

_ROWS_OF_3: Final = np.arange(3)[:, np.newaxis] * binning.GRID_CELLS  # three grids in one row


class Clocks(msgspec.Struct, frozen=True):
    """The span of a window and what its device knew of time."""

    boot_id: str
    start_ms: int
    end_ms: int
    wall_start_ms: int | None
    clock: Clock
    next_due_s: int


class Counts:
    def __init__(self, subject: Subject) -> None:
        self.binner = Binner(subject.baseline.channels)
        self.n = self.n_monitored = self.repeated = 0
        self.latency = np.zeros(3 * binning.GRID_CELLS, np.int64)  # queue, run, total
        self.age = np.zeros(binning.GRID_CELLS, np.int64)
        self.errors: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.shed: Counter[str] = Counter()
        self.outcomes: dict[str, Hits] = {}
        self.by_confidence = np.zeros(2 * CONFIDENCE_BINS, np.int64)
        self.shadow, self.shift = Hits(), Shift()

    def add(self, heads: Table, kinds: list[str]) -> None:
        """Rows of `rows.Rows`; `kinds` names their errors by number."""
        self.n += len(heads)
        self.repeated += int(np.count_nonzero(heads["repeated"]))
        began, ran, ended = heads["began"], heads["ran"], heads["ended"]
        cells = binning.grid_index(np.stack((ran - began, ended - ran, ended - began))) + _ROWS_OF_3
        self.latency += np.bincount(cells.ravel(), minlength=3 * binning.GRID_CELLS)
        ages = heads["age"]
        if ages.max(initial=-1) >= 0:
            self.age += np.bincount(binning.grid_index(ages[ages >= 0]), minlength=binning.GRID_CELLS)
        if wrong := int(np.count_nonzero(ages == WRONG_AGE)):
            self.shed["input_age"] += wrong
        for error in heads["error"][heads["error"] > 0].tolist():
            self.errors[kinds[error]] += 1

    def monitor(self, outputs: dict[str, Array], n: int) -> None:
        """Count the channels of n rows."""
        try:
            self.binner.add(outputs)
            self.n_monitored += n
        except ContractError:  # channels that do not fit the outputs; a trial of the package finds it before
            self.shed["monitored"] += n

    def join(self, name: str, hit: bool, confidence: float) -> None:
        """Count what came of an inference of this subject and context."""
        if name == CORRECT:
            at = min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)
            self.by_confidence[at] += 1
            self.by_confidence[CONFIDENCE_BINS + at] += hit
        known = len(self.outcomes) - (CORRECT in self.outcomes)
        if name in self.outcomes or name == CORRECT or known < OUTCOMES:
            self.outcomes[name] = self.outcomes.get(name, Hits()) + Hits(1, int(hit))
        else:
            self.shed["outcomes"] += 1

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
            input_age=binning.pack_grid(self.age),
            cells=binning.pack(self.binner.take()) if self.n_monitored else b"",
            outcomes=self.outcomes,
            correct_by_confidence=binning.pack(self.by_confidence) if self.by_confidence.any() else b"",
            shadow=self.shadow,
            usage=usage,
            shed=dict(self.shed),
            shadow_confidence=self.shift if self.shift.n else None,
        )
