"""The shadow run: a candidate sees a sample of the live inputs beside the model that answers, off the inference's path.

Order: an inference that is drawn leaves copies of its input and of what is compared (`Shadow.look`, called as the tap
of the active package); one thread of low priority gives them to the candidate, counts it like any inference in windows
of phase `shadow`, and tells the meter how many answers agreed and how much surer they were. Nobody gets its answers.

Guarantee: an inference never waits for it and never fails because of it. It takes at most its share of one core; what
does not fit into that or into the queue is shed and counted. A candidate that throws, says NaN or hangs ends it.

Cost for an inference: one comparison with None without a shadow run; with one 0.3 µs, and 4 µs for a small input that
is drawn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from math import prod
from typing import Final, NamedTuple

import numpy as np

from edgewright_contracts.manifest import Manifest
from edgewright_contracts.report import Hits, Shift
from edgewright_runtime.runtime import Array

from ..telemetry.meter import Beside, Meter
from .agreement import compared
from .model import Active, Rejected, Tap, kind

WAITING: Final = 16  # drawn inputs at a time, and not more bytes than HELD_BYTES
HELD_BYTES: Final = 8 << 20
PERMILLE: Final = 500  # of one core, where the operator names no limit
NICE: Final = 10
HUNG_S: Final = 60.0  # in one run
PAUSE_S: Final = 0.5  # between two looks at whether it may go on
JOIN_S: Final = 2.0

log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """One sample in copies, with a batch of one in front, and what the active model said to it."""

    batch: dict[str, Array]
    said: tuple[Array, ...]  # what is compared
    context: int
    at_ns: int


class Allowance(NamedTuple):
    """What a shadow run may use now; `permille` of one core, None: PERMILLE."""

    go: bool = True
    permille: int | None = None


class Shadow:
    """`look`, `broken` and `stop` may be called from any thread. `uniform` gives numbers in [0, 1); `attach` makes a
    tap look on at what answers, or with None nobody."""

    def __init__(
        self,
        active: Active,
        candidate: Active,
        *,
        attach: Callable[[Tap | None], object],
        share: float,
        meter: Meter,
        allowance: Callable[[], Allowance],
        now_ns: Callable[[], int],
        uniform: Callable[[], float],
    ) -> None:
        self._candidate, self._attach, self._share = candidate, attach, share
        self._meter, self._allowance, self._now, self._uniform = meter, allowance, now_ns, uniform
        candidate.rows = meter.rows(candidate.subject, candidate)
        self._compared = compared(active.subject.manifest, candidate.subject.manifest)
        self._names = self._compared.active if self._compared else ()
        names = candidate.subject.manifest.outputs
        self._floats = [t.name for t in names if t.role != "monitor" and t.dtype.startswith("float")]
        self._queue: deque[Drawn] = deque()
        self._limit = max(1, min(WAITING, HELD_BYTES // max(1, _bytes(candidate.subject.manifest))))
        self._shed: dict[int, int] = {}
        self._rare = threading.Lock()
        self._wake, self._stopping = threading.Event(), False
        self._broken = ""
        self._began: int | None = None  # the run under way
        self._rest_until = 0
        self._cores = min(candidate.subject.variant.options.threads, os.cpu_count() or 1)  # that a run may keep busy
        self._contexts = ("", *active.subject.manifest.contexts)
        self._thread = threading.Thread(target=self._run, name="edgewright-shadow", daemon=True)

    def start(self) -> None:
        self._attach(self.look)
        self._thread.start()

    def look(self, batch: Mapping[str, Array], found: Mapping[str, Array], context: int) -> None:
        """The tap, on the inference's own thread."""
        if self._stopping or self._uniform() >= self._share:
            return
        if len(self._queue) >= self._limit:
            self._sheds(context)
            return
        try:
            said = tuple(found[name].copy() for name in self._names)
            self._queue.append(Drawn({name: x.copy() for name, x in batch.items()}, said, context, self._now()))
        except MemoryError:
            self._sheds(context)
            return
        self._wake.set()

    def broken(self) -> str:
        """What the candidate did that no model may do, "" while it does well."""
        began = self._began
        if began is not None and (self._now() - began) / 1e9 > HUNG_S:
            return f"one inference has not ended after {HUNG_S:g} s"
        return self._broken

    def stop(self) -> None:
        """It looks on no more. Safe to repeat; a candidate that hangs is left to its thread."""
        self._attach(None)
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)
        self._queue.clear()

    def _sheds(self, context: int) -> None:
        with self._rare:
            self._shed[context] = self._shed.get(context, 0) + 1

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._stopping and not self._broken:
            self._wake.wait(PAUSE_S)
            self._wake.clear()
            self.turn()
        self._attach(None)

    def turn(self) -> None:
        """All that waits, as far as it may be run now; the thread's work."""
        while self._queue and not self._stopping and not self._broken:
            drawn = self._queue.popleft()
            allowed = self._allowance()
            if not allowed.go or self._now() < self._rest_until:
                self._sheds(drawn.context)
                continue
            began = self._now()
            try:
                self._one(drawn)
            except Exception:  # ours, then: what the candidate throws is told apart
                log.exception("a sample of the shadow run is lost")
                self._sheds(drawn.context)
            ended = self._now()
            share = min(PERMILLE if allowed.permille is None else max(1, allowed.permille), 1000) / 1000
            self._rest_until = ended + round((ended - began) * (self._cores / share - 1))
        with self._rare:
            shed, self._shed = self._shed, {}
        for context, n in shed.items():
            self._meter.beside(Beside(self._candidate.subject, self._name(context), shed=n))

    def _one(self, drawn: Drawn) -> None:
        candidate = self._candidate
        context = candidate.contexts.get(self._name(drawn.context), 0)
        try:
            for _, check in candidate.checks:  # its range of valid values may be another
                check({name: x[0] for name, x in drawn.batch.items()})
        except Rejected as error:
            self._meter.reject(candidate.subject, self._name(drawn.context), error.reason)
            return
        ran = self._began = self._now()
        try:
            found = candidate.run(drawn.batch)
        except MemoryError:  # two models at once are one too many for now, which is not the candidate's fault
            self._sheds(drawn.context)
            return
        except Exception as error:  # whatever else a runtime throws, it is this candidate's
            candidate.rows.fail(0, drawn.at_ns, ran, self._now(), context, kind(error))
            self._broken = f"{candidate.session.runtime} failed: {error}"
            return
        finally:
            self._began = None
        candidate.rows.add(
            0, drawn.at_ns, ran, self._now(), context, False, b"".join(found[n].tobytes() for n in candidate.monitored)
        )
        wrong = [name for name in self._floats if np.isnan(found[name]).any()]
        if wrong:
            self._broken = f"output {wrong[0]!r} is not a number"
        elif self._compared is not None:
            agreed, change = self._compared.verdict(drawn.said, [found[name] for name in self._compared.candidate])
            surer = Shift() if change is None else Shift(1, max(0, change), max(0, -change))
            where = self._name(drawn.context) if context else ""
            self._meter.beside(Beside(candidate.subject, where, Hits(1, int(agreed)), surer))

    def _name(self, context: int) -> str:
        name = self._contexts[context]
        return name if name in self._candidate.contexts else ""


def _bytes(manifest: Manifest) -> int:
    """Of one sample of all inputs."""
    return sum(np.dtype(t.dtype).itemsize * prod(t.shape) for t in manifest.inputs)
