"""Virtual devices as the hub hears them: births, reports, events and last wills, as bytes on their topics.

What an agent does and a fleet notices is here: windows of five minutes, or of one on trial; windows that wait while
there is no link, merged when they are many; numbers that rise without gaps; clocks that are wrong or missing; messages
that come twice; updates, probation, going back after a crash, and never a blocked release again. What an agent does for
itself alone (disks, slots, self-tests) is not. Time passes in steps of a minute.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from edgewright_contracts import birth, codec, event, report, topics
from edgewright_contracts.binning import GRID_CELLS, grid_index, pack, pack_grid
from edgewright_contracts.desired import IN_FLIGHT, Config, Desired

from ..ingest.messages import Message
from .fleet import Bools, Fleet, Floats, Labels, Numbers
from .inputs import EDGE_HASH, VARIANT, Inputs, Published
from .world import Drift, Release

STEP_S: Final = 60
WILL_S: Final = 120  # after a link broke, until the broker says so
TWICE: Final = 0.01  # of the messages
_LATENCY_NS: Final = 20e6  # median
_SPOOL: Final = "5" * 16


class Wire:
    """All devices. `tell` is the hub's publisher; `step` gives what they send in one minute."""

    def __init__(
        self, fleet: Fleet, inputs: Inputs, old: Published, new: Published, labels: Labels, rng: np.random.Generator
    ) -> None:
        world, size = fleet.world, fleet.world.devices
        self.names = [f"d{i:05}" for i in range(size)]
        self.counted = np.zeros(size, np.int64)  # inferences in the reports that were sent
        self._places = {name: i for i, name in enumerate(self.names)}
        self._fleet, self._inputs, self._labels, self._rng = fleet, inputs, labels, rng
        self._packages = {package.digest: package for package in (old, new)}
        self._old, self._new = old.digest, new.digest
        self._runs = [old.digest] * size
        self._desired: dict[int, Desired] = {}
        self._unread: set[int] = set()
        self._config = [Config()] * size
        self._rollout = [""] * size
        self._probation = np.zeros(size, np.int64)  # windows that it still has to last
        self._blocked = np.zeros(size, np.bool_)
        self.dead = np.zeros(size, np.bool_)
        self._since_s = np.zeros(size)  # when it began to run the release
        self._next_s = rng.integers(0, int(world.window_s) // STEP_S, size) * float(STEP_S)
        self._begun_s = np.zeros(size)
        self._seq = np.zeros(size, np.int64)
        self._connection = np.zeros(size, np.int64)
        self._waiting: list[list[report.Window]] = [[] for _ in range(size)]
        self._unsent: list[list[dict[str, object]]] = [[] for _ in range(size)]  # events
        self._skew_ms = np.clip(rng.normal(0, world.skew_s, size), -240, 240) * 1000
        self._clockless = rng.random(size) < world.clockless
        self._until_s = np.zeros(world.sites)  # a site is without link
        self._linked = np.zeros(size, np.bool_)
        self._lost_s = np.zeros(size)
        self._willed = np.ones(size, np.bool_)

    def tell(self, device: str, document: Desired) -> None:
        self._desired[self._places[device]] = document
        self._unread.add(self._places[device])

    def step(self, now_s: float, start_ms: int, release: Release, drift: Drift | None, drift_s: float) -> list[Message]:
        """What arrives in the minute before `now_s` seconds after `start_ms`; `drift_s`: since the drift began."""
        out: list[Message] = []
        now_ms = start_ms + int(1000 * now_s)
        world, rng = self._fleet.world, self._rng
        self._links(now_s, now_ms, out)
        for place in sorted(place for place in self._unread if self._linked[place] and not self.dead[place]):
            self._unread.discard(place)
            self._obey(place, self._desired[place], now_s)
        runs = np.array([one == self._new for one in self._runs])
        harmed, grown = self._fleet.harm(release, runs, now_s - self._since_s)
        rate, shift = self._fleet.mood(np.array([now_s / world.window_s]), release, harmed, grown, rng)
        due = np.flatnonzero((self._next_s <= now_s) & ~self.dead)
        self._seal(due, now_s, start_ms, rate[0], shift[0], self._fleet.wrongly(release, harmed, grown),
                   self._tilt(drift, drift_s))  # fmt: skip
        self._fail(release, runs, due, now_s)
        hears = self._linked & ~self.dead & (rng.random(len(self.names)) >= world.lost)
        for place in np.flatnonzero(hears).tolist():
            if self._waiting[place] or self._unsent[place]:
                self._send(place, now_ms, out)
        if out and TWICE:
            again = rng.random(len(out)) < TWICE
            out += [message._replace(repeated=True) for message, one in zip(out, again.tolist(), strict=True) if one]
        return out

    def drifts(self, drift: Drift | None) -> Numbers:
        """The devices whose inputs change."""
        share = 0.0 if drift is None else drift.share
        return np.flatnonzero(self._fleet.fragile < share)

    def _tilt(self, drift: Drift | None, since_s: float) -> Floats:
        tilt = np.zeros(len(self.names))
        if drift is not None and since_s > 0:
            tilt[self.drifts(drift)] = drift.size * (min(1.0, since_s / drift.over_s) if drift.over_s else 1.0)
        return tilt

    def _links(self, now_s: float, now_ms: int, out: list[Message]) -> None:
        """Sites lose and find their link; births and last wills."""
        world, rng = self._fleet.world, self._rng
        begins = rng.random(world.sites) < world.outages * STEP_S / 86_400
        self._until_s = np.where(begins, now_s + rng.exponential(world.outage_s, world.sites), self._until_s)
        linked = (self._until_s <= now_s)[self._fleet.site]
        self._lost_s = np.where(self._linked & ~linked, now_s, self._lost_s)
        for place in np.flatnonzero(linked & ~self._linked & ~self.dead).tolist():
            self._connection[place] += 1
            self._willed[place] = False
            self._message(place, "birth", birth.encode(self._birth(place, now_s)), now_ms, out)
        gone = ~linked & ~self._willed & (now_s - self._lost_s >= WILL_S)
        for place in np.flatnonzero(gone).tolist():
            self._willed[place] = True
            status = birth.Status(online=False, boot_id=self._boot(place), connection=int(self._connection[place]))
            self._message(place, "status", birth.encode(status), now_ms, out)
        self._linked = linked

    def _birth(self, place: int, now_s: float) -> birth.Birth:
        return birth.Birth(
            device=self.names[place], boot_id=self._boot(place), connection=int(self._connection[place]),
            agent="0.1.0", hardware=birth.Hardware(arch="aarch64"), runtimes={"onnxruntime": "1.20"},
            clock="unknown" if self._clockless[place] else "synced", uptime_ms=int(1000 * now_s),
            window_s=int(self._config[place].window_s),
            spool=birth.Spool(id=_SPOOL, next_seq=int(self._seq[place]) + 1),
            desired_rev=self._desired[place].rev if place in self._desired else 0,
        )  # fmt: skip

    def _obey(self, place: int, document: Desired, now_s: float) -> None:
        self._config[place] = document.config
        wanted = document.models[0] if document.models else None
        if wanted is None or wanted.digest not in self._packages:
            return
        if wanted.digest != self._runs[place] and not (wanted.digest == self._new and self._blocked[place]):
            self._runs[place] = wanted.digest
            self._labels.forget(np.arange(len(self.names)) == place)
            self._since_s[place] = now_s
            self._waiting[place] = self._fewer(place)
            self._next_s[place], self._begun_s[place] = now_s + STEP_S, now_s
            self._probation[place] = wanted.probation.windows if wanted.rollout else 0
            after = "probation" if wanted.rollout else "commit"
            self._event(place, now_s, "warm", after, wanted.digest, wanted.rollout)
        self._rollout[place] = wanted.rollout if wanted.digest == self._runs[place] else ""

    def _seal(
        self, due: Numbers, now_s: float, start_ms: int, rate: Floats, shift: Floats, wrongly: Floats, tilt: Floats
    ) -> None:
        """End the windows of the devices that are due."""
        if not due.size:
            return
        world, rng = self._fleet.world, self._rng
        lasted = now_s - self._begun_s[due]
        n = np.maximum(1, np.rint(world.inferences * lasted / world.window_s)).astype(np.int64)
        errors = rng.binomial(n, rate[due])
        right, wrong = self._labels.some(due, n, world, wrongly[due], rng)
        cells = self._inputs.draw(due, n, tilt[due], rng)
        owner = np.repeat(np.arange(due.size), n)
        latency = _LATENCY_NS * np.exp(shift[due][owner] + world.latency_sd * rng.standard_normal(owner.size))
        flat = owner * GRID_CELLS + grid_index(latency.astype(np.int64))
        grids = np.bincount(flat, minlength=due.size * GRID_CELLS).reshape(due.size, GRID_CELLS)
        for i, place in enumerate(due.tolist()):
            probation = self._probation[place] > 0
            trial = self._rollout[place] != ""
            length = self._config[place].rollout_window_s if trial else world.window_s
            begun_ms = int(1000 * self._begun_s[place])
            wall = None if self._clockless[place] else int(start_ms + begun_ms + self._skew_ms[place])
            self._waiting[place].append(
                report.Window(
                    boot_id=self._boot(place), mono_start_ms=begun_ms, mono_end_ms=int(1000 * now_s),
                    wall_start_ms=wall, clock="unknown" if wall is None else "synced", next_due_s=int(2 * length),
                    digest=self._runs[place][:16], variant=VARIANT, edge_hash=EDGE_HASH,
                    phase="probation" if probation else "normal", rollout=self._rollout[place],
                    n=int(n[i]), n_monitored=int(n[i]), latency_total=pack_grid(grids[i]), cells=pack(cells[i]),
                    errors={"run": int(errors[i])} if errors[i] else {},
                    outcomes={report.CORRECT: report.Hits(int(right[i] + wrong[i]), int(right[i]))}
                    if right[i] + wrong[i] else {},
                )
            )  # fmt: skip
            if probation:
                self._probation[place] -= 1
                if not self._probation[place]:
                    self._event(place, now_s, "probation", "commit", self._runs[place], self._rollout[place])
            self._begun_s[place] = now_s
            self._next_s[place] = now_s + length

    def _fail(self, release: Release, runs: Bools, due: Numbers, now_s: float) -> None:
        """Devices that crash: because of the release when a window of theirs ends, by themselves at any time."""
        world, rng = self._fleet.world, self._rng
        ended = np.zeros_like(runs)
        ended[due] = True
        harmed, by_itself = self._fleet.crashes(release, runs & ended, rng)
        if release.silent:
            self.dead |= harmed
            harmed = np.zeros_like(harmed)
        minute = rng.random(len(self.names)) < STEP_S / world.window_s
        for place in np.flatnonzero((harmed | (by_itself & minute)) & ~self.dead).tolist():
            digest, rollout = self._runs[place], self._rollout[place]
            if digest == self._new:
                self._waiting[place] = self._fewer(place)
                self._blocked[place] = True
                self._runs[place], self._rollout[place], self._probation[place] = self._old, "", 0
            self._event(place, now_s, "probation", "rollback", digest, rollout, reason="crash loop", failure="model")

    def _event(
        self, place: int, now_s: float, before: str, after: str, digest: str, rollout: str, *, reason: str = "",
        failure: event.FailureClass | None = None,
    ) -> None:  # fmt: skip
        self._unsent[place].append(
            {"boot_id": self._boot(place), "mono_ms": int(1000 * now_s), "wall_ms": None, "model": "virtual",
             "digest": digest, "variant": VARIANT, "rollout": rollout, "before": before, "after": after,
             "reason": reason, "failure": failure}
        )  # fmt: skip

    def _fewer(self, place: int) -> list[report.Window]:
        """Windows that wait, merged where their keys are equal, so that few enough are in flight."""
        windows = self._waiting[place]
        while len(windows) > IN_FLIGHT // 2:
            at = next((i for i, (a, b) in enumerate(pairwise(windows)) if a.key == b.key), None)
            if at is None:
                break
            windows[at : at + 2] = [report.merge(windows[at], windows[at + 1])]
        return windows

    def _send(self, place: int, now_ms: int, out: list[Message]) -> None:
        for window in self._fewer(place):
            self._seq[place] += 1
            self.counted[place] += window.n
            numbered = report.Report(spool_id=_SPOOL, seq=int(self._seq[place]), window=window)
            body = codec.encode(numbered, name="report", limit=codec.REPORT_BYTES, wire="msgpack")
            self._message(place, "report", body, now_ms, out)
        for fields in self._unsent[place]:
            self._seq[place] += 1
            one = event.Event(spool_id=_SPOOL, seq=int(self._seq[place]), **fields)  # type: ignore[arg-type]
            self._message(place, "event", event.encode_event(one), now_ms, out)
        self._waiting[place], self._unsent[place] = [], []

    def _message(self, place: int, kind: topics.Kind, body: bytes, now_ms: int, out: list[Message]) -> None:
        out.append(Message(topics.topic(self.names[place], kind), body, now_ms))

    @staticmethod
    def _boot(place: int) -> str:
        return f"{place:016x}"
