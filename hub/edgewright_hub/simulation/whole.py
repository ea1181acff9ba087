"""One scenario through the whole hub: bytes in, its ingest, rollouts and drift on SQLite, and a score at the end.

Virtual time; everything else is what `hub serve` runs, in its order: messages are committed, then the conductor ticks,
then drift, and what the hub wishes goes back to the devices; drift is looked at every half hour. The first half of the
time is calm; then the rollout begins, or the drift. The same seed gives the same run. Cost: about a millisecond for a
report.

What counts as right: a harmless release reaches everyone and a harmful one is taken back before it does; nobody is
paged for a drift that is none; a drift is found; every inference that was reported is counted once. A rollout that has
not ended with the simulation is no answer yet, unless it gave everyone a harmful release.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.desired import Config, Desired, DesiredModel, decode_desired
from edgewright_contracts.errors import RequestError
from edgewright_contracts.topics import Kind

from ..ingest import device_hours
from ..ingest.writer import commit
from ..registry.registry import Registry
from ..retention import shorten
from ..rollouts.conductor import Conductor
from ..rollouts.specification import RolloutSpec
from ..storage import control, telemetry
from ..storage.control import open_control
from ..storage.telemetry import open_telemetry
from .fleet import Fleet
from .inputs import MODEL, Inputs, row
from .trial import STAGES
from .wire import STEP_S, Wire
from .world import GOOD, SCENARIOS, Scenario, World

FLEET: Final = "virtual"
START_MS: Final = 1_760_000_000_000
HOUR_S: Final = 3600
DRIFT_S: Final = 1800  # between two looks at drift: more windows at once cost less each
IDLE_S: Final = 300  # between two ticks of the conductor while there is no rollout


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    reason: str
    exposed: int
    full: bool
    hours: float  # until it ended, or the end of the simulation


Decision = Literal["right", "wrong", "undecided"]  # undecided: its rollout is still under way


class Score(msgspec.Struct, frozen=True, kw_only=True):
    scenario: str
    seed: int
    devices: int
    days: float
    decision: Decision
    rollout: Rollout | None
    false_alarms: int  # devices and cohorts that paged without drift
    skewed: int  # that were said to differ from training from the beginning, as some virtual devices do
    drifted: int  # devices whose inputs changed
    found: int  # of them, how many alarmed, or are listed by their cohort's alarm
    device_delay_h: float | None  # median of those
    cohort_delay_h: float | None  # None: the cohort did not alarm
    reports: int
    inferences: int
    miscounted: int  # inferences
    cpu_s: float


def simulate(
    place: Path, scenario: str, *, devices: int, days: float, seed: int, progress: Callable[[float], None],
    world: World = World(outages=0.5),  # noqa: B008 (frozen)
) -> Score:  # fmt: skip
    """Run it in `place`, an empty folder; `progress` hears the share that is done. Raises RequestError."""
    if scenario not in SCENARIOS:
        raise RequestError(f"no scenario is called {scenario!r}; known: {', '.join(SCENARIOS)}")
    world = msgspec.structs.replace(world, devices=devices)
    return House(place, world, SCENARIOS[scenario], seed).live(scenario, days, seed, progress)


def decided(rollout: Rollout, *, harmless: bool) -> Decision:
    if not harmless and rollout.full:
        return "wrong"
    if rollout.state == "running":
        return "undecided"
    return "right" if not harmless or rollout.state == "done" else "wrong"


class House:
    """A hub and its devices."""

    def __init__(self, place: Path, world: World, scenario: Scenario, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._world, self._scenario = world, scenario
        self._control, self._telemetry = open_control(place / "hub.db"), open_telemetry(place / "telemetry.db")
        for engine in (self._control, self._telemetry):
            sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
            engine.dispose()  # nothing here outlives the process, so nothing waits for the disk
        registry = Registry(place / "repo", place / "keys", self._control)
        registry.blobs.mkdir(parents=True)
        fleet = Fleet.drawn(world, rng)
        inputs = Inputs(world.devices, rng)
        self._old, self._new = (inputs.publish(version, registry.blobs, rng) for version in ("1.0.0", "1.1.0"))
        self.wire = Wire(fleet, inputs, self._old, self._new, fleet.labels(rng), rng)
        self._conductor = Conductor(self._control, self._telemetry, registry, self._publish)
        self._alarms: dict[tuple[str, str], float] = {}  # scope and subject → hours after the start
        self._false, self._skewed = set[tuple[str, str]](), set[str]()
        self._enrol()

    def _publish(self, device: str, kind: Kind, body: bytes, _retain: bool) -> None:
        if kind == "desired":
            self.wire.tell(device, decode_desired(body))

    def _enrol(self) -> None:
        """Every device runs the old package."""
        told = Desired(rev=1, config=Config(), models=(DesiredModel(name=MODEL, digest=self._old.digest),))
        document = msgspec.to_builtins(told)
        with self._control.begin() as connection:
            for package in (self._old, self._new):
                connection.execute(control.packages.insert().values(**row(package, START_MS)))
            every = [{"id": name, "fleet": FLEET, "enrolled_ms": START_MS, "serial": "0", "state": "enrolled"}
                     for name in self.wire.names]  # fmt: skip
            connection.execute(control.devices.insert(), every)
            wanted = [{"device": name, "rev": 1, "document": document} for name in self.wire.names]
            connection.execute(control.desired.insert(), wanted)

    def live(self, name: str, days: float, seed: int, progress: Callable[[float], None]) -> Score:
        began, steps = time.process_time(), int(days * 86_400 / STEP_S)
        release, drift = self._scenario.release, self._scenario.drift
        half = steps // 2 * STEP_S
        rollout_id, ended_s, reports = "", 0.0, 0
        for step in range(1, steps + 1):
            now_s = float(step * STEP_S)
            now_ms = START_MS + int(1000 * now_s)
            messages = self.wire.step(now_s, START_MS, release or GOOD, drift, now_s - half)
            reports += len(messages)
            commit(self._telemetry, messages, lambda _device: FLEET)
            if release is not None and now_s == half:
                spec = RolloutSpec(model=MODEL, version=self._new.version, stages=STAGES)
                rollout_id = self._conductor.create_rollout(spec, who="simulation", now_ms=now_ms)
            busy = bool(rollout_id) and not ended_s
            while (busy or now_s % IDLE_S == 0) and self._conductor.tick(now_ms):
                pass
            if now_s % DRIFT_S == 0:
                while self._conductor.drift.tick(now_ms):
                    pass
            if busy and self._state(rollout_id) != "running":
                ended_s = now_s - half
            if now_s % HOUR_S == 0:
                self._look(now_s, half)
                while device_hours.tick(self._telemetry) or shorten(self._control, self._telemetry, now_ms):
                    pass
                progress(step / steps)
        rollout = self._rollout(rollout_id, (ended_s or steps * STEP_S - half) / HOUR_S) if rollout_id else None
        return self._score(name, days, seed, half, reports, rollout, time.process_time() - began)

    def _state(self, rollout_id: str) -> str:
        with self._control.connect() as connection:
            r = control.rollouts.c
            return str(connection.execute(sa.select(r.state).where(r.id == rollout_id)).scalar_one())

    def _rollout(self, rollout_id: str, hours: float) -> Rollout:
        told = self._conductor.rollout(rollout_id)
        return Rollout(
            state=told["state"], reason=told["reason"], exposed=told["devices_exposed"],
            full=told["stage"] == len(STAGES) - 1, hours=round(hours, 2),
        )  # fmt: skip

    def _look(self, now_s: float, half: int) -> None:
        """Note alarms of drift that were not there an hour ago."""
        drifted = {self.wire.names[i] for i in self.wire.drifts(self._scenario.drift).tolist()}
        for told in self._conductor.drift.verdicts():
            key = (told["scope"], told["subject"])
            if told["verdict"] == "skewed":
                self._skewed.add(told["subject"])
                continue
            if told["verdict"] != "alarm":
                continue
            harmless = told["scope"] == "device" and told["subject"] not in drifted
            if drifted and not harmless and now_s >= half:
                self._alarms.setdefault(key, now_s / HOUR_S)
            elif told["pages"]:
                self._false.add(key)

    def _score(
        self, name: str, days: float, seed: int, half: int, reports: int, rollout: Rollout | None, cpu_s: float
    ) -> Score:
        drifted = [self.wire.names[i] for i in self.wire.drifts(self._scenario.drift).tolist()]
        delays = [self._alarms["device", d] - half / HOUR_S for d in drifted if ("device", d) in self._alarms]
        cohort = self._alarms.get(("cohort", FLEET))
        counted = self._counted()
        miscounted = int(np.abs(counted - self.wire.counted).sum())
        found = bool(delays) or cohort is not None
        right = miscounted == 0 and not self._false and (found or not drifted)
        decision: Decision = "right" if right else "wrong"
        if right and rollout is not None and self._scenario.release is not None:
            decision = decided(rollout, harmless=self._scenario.release.harmless)
        return Score(
            scenario=name, seed=seed, devices=self._world.devices, days=days, decision=decision, rollout=rollout,
            false_alarms=len(self._false), drifted=len(drifted), found=len(delays), skewed=len(self._skewed),
            device_delay_h=round(float(np.median(delays)), 2) if delays else None,
            cohort_delay_h=None if cohort is None or not drifted else round(cohort - half / HOUR_S, 2),
            reports=reports, inferences=int(counted.sum()), miscounted=miscounted, cpu_s=round(cpu_s, 1),
        )  # fmt: skip

    def _counted(self) -> np.ndarray:
        d = telemetry.devices.c
        with self._telemetry.connect() as connection:
            known = {r.device: r.inferences for r in connection.execute(sa.select(d.device, d.inferences))}
        return np.array([known.get(name, 0) for name in self.wire.names], np.int64)
