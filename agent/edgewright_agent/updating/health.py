"""Whether a package does well on this device: the self-test in a child process, and the windows of its probation.

Pure but for `selftest`. Rules of a window in probation:
- errors, rejected inputs and low confidence, against the package before it on the same device: see `quality`;
- budgets of the manifest (p95 latency, RSS): broken when over in 3 of 3 windows;
- a window in which nothing was inferred says nothing.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgewright_contracts import binning
from edgewright_contracts.baseline import Baseline
from edgewright_contracts.errors import Unavailable
from edgewright_contracts.event import FailureClass
from edgewright_contracts.manifest import Budgets
from edgewright_contracts.report import Window

from . import quality
from .quality import Seen
from .selftest_child import Verdict
from .slots import Damaged
from .update import Event, Record

SELFTEST_S: Final = 120.0
BREACHES: Final = 3
LOG_TAIL: Final = 8000
FROM_OUTSIDE: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # no model sends these to itself


class CutShort(Unavailable):
    """The self-test was ended from outside: by a service manager, a shell, or the end of the agent."""


class NoVerdict(Unavailable):
    """The self-test could not judge the model: the device, its Python or its flash failed before."""


class Health(StrEnum):
    SILENT = "silent"
    HEALTHY = "healthy"
    STRAINED = "strained"  # over a budget, not yet 3 times
    BROKEN = "broken"


class Judgement(NamedTuple):
    health: Health
    reason: str
    breaches: int
    seen: Seen  # of the whole probation


class Conclusion(NamedTuple):
    event: Event
    reason: str
    failure: FailureClass | None


def judge(
    windows: list[Window], record: Record, budgets: Budgets, rss_mb: float, baseline: Baseline | None
) -> Judgement:
    """The windows that were sealed together for the package in probation (one per context), whose baseline this is."""
    more = quality.seen(windows, baseline)
    if more.n + more.rejected == 0:
        return Judgement(Health.SILENT, "", record.breaches, record.seen)
    now = record.seen.plus(more)
    if worse := quality.worse(now, record.before, baseline):
        return Judgement(Health.BROKEN, worse, record.breaches, now)
    over = over_budget(windows, budgets, rss_mb)
    if not over:
        return Judgement(Health.HEALTHY, "", 0, now)
    breaches = record.breaches + 1
    return Judgement(Health.BROKEN if breaches >= BREACHES else Health.STRAINED, over, breaches, now)


def conclude(record: Record, took_s: float, online: bool) -> Conclusion | None:
    """How a probation ends that lasts `took_s` by now; None: not yet."""
    assert record.wanted is not None
    rule = record.wanted.probation
    late = took_s > rule.max_s
    if record.healthy >= rule.windows and (online or late):
        how = f"{record.healthy} healthy windows"
        return Conclusion(Event.DONE, how if online else f"offline: {how}, no contact with the hub", None)
    if late:
        reason = f"no verdict in {rule.max_s:g} s: {record.healthy} of {rule.windows} healthy windows"
        return Conclusion(Event.DELAYED, reason, "operator")
    return None


def over_budget(windows: list[Window], budgets: Budgets, rss_mb: float) -> str:
    """What is over its budget, "" for nothing."""
    if budgets.p95_ms is not None:
        grid = sum((binning.unpack_grid(w.latency_run) for w in windows), binning.unpack_grid(b""))
        p95 = binning.grid_quantile_ns(grid, 0.95)
        if p95 is not None and p95 / 1e6 > budgets.p95_ms:
            return f"p95 latency {p95 / 1e6:.3g} ms, budget {budgets.p95_ms:g} ms"
    if budgets.rss_mb is not None and rss_mb > budgets.rss_mb:
        return f"RSS {rss_mb:.0f} MB, budget {budgets.rss_mb:g} MB"
    return ""


def selftest(
    folder: Path,
    variant: str,
    runtime: str,
    *,
    stopping: threading.Event,
    interrupt: Callable[[], None] = lambda: None,
    timeout_s: float = SELFTEST_S,
) -> tuple[Verdict, str]:
    """Run the self-test of a slot in a child process: (verdict, log). A child that crashes or hangs did not pass.

    Raises CutShort when `stopping` is set meanwhile or the child was told to end, NoVerdict when it ended by itself
    without a word about the model, Damaged when the files are not those that were signed, and what `interrupt` raises,
    which is called twice a second; the child is gone then. It has a session of its own, so that what ends the agent's
    process group leaves the verdict to the agent, and -P, so that it imports nothing from the working directory.
    """
    command = [sys.executable, "-P", "-m", "edgewright_agent.updating.selftest_child", str(folder), variant, runtime]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, err = _communicate(child, stopping, interrupt, timeout_s)
    except subprocess.TimeoutExpired as error:
        return Verdict(False, f"the self-test hung for {timeout_s:g} s"), _tail(error.stderr)
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    log = _tail(err)
    if -child.returncode in FROM_OUTSIDE or (child.returncode < 0 and stopping.is_set()):
        raise CutShort(f"the self-test was ended by signal {-child.returncode}; it will be run again")
    if child.returncode < 0:
        return Verdict(False, f"the self-test was killed by signal {-child.returncode}"), log
    try:
        verdict = msgspec.json.decode(out, type=Verdict)
    except msgspec.DecodeError:
        last = log.strip().rpartition("\n")[2]
        raise NoVerdict(f"the self-test ended with code {child.returncode} and no verdict: {last}") from None
    if verdict.damaged:
        raise Damaged(str(folder), "what was signed", verdict.reason)
    return verdict, log


def _communicate(
    child: subprocess.Popen[bytes], stopping: threading.Event, interrupt: Callable[[], None], timeout_s: float
) -> tuple[bytes, bytes]:
    waited = 0.0
    while True:
        try:
            return child.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            waited += 0.5
            if stopping.is_set():
                raise CutShort("the agent stops; the self-test will be run again") from None
            interrupt()
            if waited >= timeout_s:
                raise


def _tail(data: bytes | None) -> str:
    return (data or b"")[-LOG_TAIL:].decode(errors="replace")
