"""Latency of single samples on one thread: every session and a fixed reference kernel take turns, one call each.

Whatever else the machine does thus hits all alike, and a figure divided by the kernel's of the same run compares across
runs, and roughly across machines. The kernel is numpy only and never changes: sixteen layers of 64 × 64 float32 on 64
rows, each clipped at zero, 8.4 million floating point operations.

What a session spends is the runtime's and the thread's that calls it. The caller has set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import RequestError
from edgewright_runtime.runtime import Array, Session

from .evidence import Time

Clock = Callable[[], int]  # ns, monotonic
SECONDS: Final = 60.0  # after this long no more rounds begin: a slow model is measured by fewer calls
LEAST: Final = 20  # rounds that are counted in any case
SINGLES: Final = 64  # rows that the calls go round
KERNEL_FLOP: Final = 2 * 16 * 64**3


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds of one sample, over `calls` that were counted. `reference_us` is the kernel's median of the run."""

    p50_us: float
    p95_us: float
    p99_us: float
    calls: int
    reference_us: float

    @property
    def per_reference(self) -> float:
        """p50 as a multiple of the kernel."""
        return self.p50_us / self.reference_us


def interleaved(
    sessions: Mapping[str, Session],
    rows: Mapping[str, Array],
    *,
    calls: int = 400,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Latency]:
    """Latencies by session name; the first eighth of the rounds warms up and is not counted.

    Raises RequestError when there are no rows; what a runtime throws passes through.
    """
    n = len(next(iter(rows.values())))
    if n == 0:
        raise RequestError("latency is measured on real rows: expected at least one, got none")
    singles = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(min(n, SINGLES))]
    kernel = Kernel()
    warm = calls // 8
    taken: dict[str, list[int]] = {name: [] for name in sessions}
    reference: list[int] = []
    began = clock()
    for call in range(calls):
        if call >= warm + LEAST and clock() - began > SECONDS * 1e9:
            break
        single = singles[call % len(singles)]
        for name, session in sessions.items():
            start = clock()
            session.run(single)
            taken[name].append(clock() - start)
        start = clock()
        kernel.run()
        reference.append(clock() - start)
    unit = float(np.median(reference[warm:])) / 1000
    return {name: _summary(ns[warm:], unit) for name, ns in taken.items()}


def time_of(latency: Latency) -> Time:
    """What evidence keeps of it, rounded to what a clock can tell."""
    return Time(
        p50=round(latency.p50_us, 2),
        p95=round(latency.p95_us, 2),
        p99=round(latency.p99_us, 2),
        calls=latency.calls,
        per_reference=round(latency.per_reference, 4),
    )


def _summary(ns: list[int], reference_us: float) -> Latency:
    p50, p95, p99 = (float(q) for q in np.quantile(np.array(ns) / 1000, (0.5, 0.95, 0.99)))
    return Latency(p50, p95, p99, len(ns), reference_us)


class Kernel:
    """The reference: its operands are fixed, its products too small for a BLAS to split over threads."""

    def __init__(self) -> None:
        rng = np.random.default_rng(8)
        self._layers = [(rng.standard_normal((64, 64)) / 8).astype(np.float32) for _ in range(16)]
        self._x = rng.standard_normal((64, 64)).astype(np.float32)

    def run(self) -> npt.NDArray[np.float32]:
        x = self._x
        for layer in self._layers:
            x = np.maximum(x @ layer, 0)
        return x
