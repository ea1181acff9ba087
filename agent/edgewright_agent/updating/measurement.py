"""Measurement: load time, peak memory and latency of a package on this device, against its own budgets.

It runs in the self-test's process, beside a model that answers and at a lower priority, so what is slow once proves
nothing: everything noisy is measured three times, as probation asks for three windows, and the best one counts. Of
loading and of a run the shorter of wall and CPU time is judged, so that waiting for another process, or for a slow
disk, is not held against the model.

- p95 latency and memory: over the budget by FAR is the model's failure; by less is told, and left to probation, where
  windows of real work judge it. Memory is what loading and running the file adds to this process, as the compiler
  measures it: what Python and the runtime's library take is there anyway.
- load time: over the budget three times of three is the model's failure, for no window could ever judge it.

Cost: at most 3 s and 300 runs, but for two warm-up runs and at least 5 runs in each round of a slow model.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from edgewright_contracts.manifest import Budgets
from edgewright_runtime.runtime import Array, Session

T = TypeVar("T")

FAR: Final = 2.0
ROUNDS: Final = 3
RUNS: Final = 100  # of a round
LEAST_RUNS: Final = 5
ROUND_S: Final = 1.0
WARM_UP: Final = 2
_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")


class Measured(NamedTuple):
    load_s: float  # best of up to ROUNDS, of wall time
    loading_s: float  # likewise, of the shorter of wall and CPU time
    p95_ms: float  # of one sample, best of ROUNDS, of wall time
    busy_ms: float  # likewise, of the shorter of wall and CPU time
    rss_mb: float  # that loading and running it added to the process, at the peak


class Missed(NamedTuple):
    """Both "" when nothing is over its budget."""

    failure: str
    strain: str  # left to probation


def measured(
    opened: Callable[[], Session], tried: Callable[[Session], None], row: Mapping[str, Array], budgets: Budgets
) -> Measured:
    """`opened` loads the model anew; `tried` runs its self-test, whose memory does not count; `row` is one sample."""
    restart_peak()
    before = resident_mb("VmHWM")
    span, session = _timed(opened)
    loads = [span]
    for _ in range(WARM_UP):
        session.run(row)
    rounds = [_round(session, row) for _ in range(ROUNDS)]
    added = max(0.0, resident_mb("VmHWM") - before)
    tried(session)
    del session
    for _ in range(ROUNDS - 1):
        if budgets.load_s is not None and min(busy for _, busy in loads) > budgets.load_s * 1e9:
            loads.append(_timed(opened)[0])
    return Measured(
        min(wall for wall, _ in loads) / 1e9,
        min(busy for _, busy in loads) / 1e9,
        min(wall for wall, _ in rounds),
        min(busy for _, busy in rounds),
        added,
    )


def missed(budgets: Budgets, found: Measured) -> Missed:
    failures: list[str] = []
    strains: list[str] = []
    if budgets.load_s is not None and found.loading_s > budgets.load_s:
        failures.append(f"loading takes {found.loading_s:.3g} s, budget {budgets.load_s:g} s")
    if budgets.p95_ms is not None and found.busy_ms > budgets.p95_ms:
        far = found.busy_ms > FAR * budgets.p95_ms
        (failures if far else strains).append(f"p95 latency {found.busy_ms:.3g} ms, budget {budgets.p95_ms:g} ms")
    if budgets.rss_mb is not None and found.rss_mb > budgets.rss_mb:
        far = found.rss_mb > FAR * budgets.rss_mb
        (failures if far else strains).append(f"memory {found.rss_mb:.3g} MB, budget {budgets.rss_mb:g} MB")
    return Missed("; ".join(failures), "; ".join(strains))


def restart_peak() -> None:
    """Let the peak begin at what is resident now. Not ru_maxrss: that is inherited from whoever started the process.

    A kernel without clear_refs goes on counting from the start of this process.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's: what was freed before is not this model's
    with contextlib.suppress(OSError):
        _RESET.write_text("5")


def resident_mb(name: str) -> float:
    """`name` is a field of /proc/self/status: VmRSS, or VmHWM for the peak."""
    line = next(one for one in _STATUS.read_text().splitlines() if one.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6


def _round(session: Session, row: Mapping[str, Array]) -> tuple[float, float]:
    """p95 of wall time, and of the shorter of wall and CPU time, ms."""
    walls: list[int] = []
    busy: list[int] = []
    end = time.perf_counter_ns() + int(ROUND_S * 1e9)
    while len(walls) < RUNS and (len(walls) < LEAST_RUNS or time.perf_counter_ns() < end):
        (wall, worked), _ = _timed(lambda: session.run(row))
        walls.append(wall)
        busy.append(worked)
    return _p95_ms(walls), _p95_ms(busy)


def _timed(work: Callable[[], T]) -> tuple[tuple[int, int], T]:
    """((wall time, the shorter of wall and CPU time), ns; what `work` made)."""
    worked, start = time.process_time_ns(), time.perf_counter_ns()
    made = work()
    wall = time.perf_counter_ns() - start
    return (wall, min(wall, time.process_time_ns() - worked)), made


def _p95_ms(spans: list[int]) -> float:
    return sorted(spans)[int(0.95 * (len(spans) - 1))] / 1e6
