"""A rollout that stands still says so when it needs a person, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_contracts.package import Package
from edgewright_hub.rollouts import rollout
from edgewright_hub.rollouts.figures import Figure
from edgewright_hub.rollouts.gates import Evidence, GatePolicy, Judgement
from edgewright_hub.rollouts.headway import DAY_S
from edgewright_hub.rollouts.hearing import News
from edgewright_hub.rollouts.processes import Counts
from edgewright_hub.rollouts.progress import packed, unpacked
from edgewright_hub.rollouts.rollout import Observation
from edgewright_hub.rollouts.specification import Experiment, RolloutSpec
from edgewright_hub.rollouts.state import RolloutState
from edgewright_hub.storage import control
from sim.house import House
from sim.rollouts import NEW, Script, everyone, names, obedient, seen_of, started, step

DAY_MS = int(1000 * DAY_S)
LONG = DAY_MS + 121_000  # a day and two windows
SPEC = RolloutSpec(model="digits", digest=NEW, stages=(2, "100%"))


def _committed(spec: RolloutSpec = SPEC, size: int = 4) -> RolloutState:
    """Both devices of the first stage run the release, since millisecond 1."""
    state, _ = step(started(spec, size), spec, everyone(started(spec, size)), Script([]), 0)
    return step(state, spec, obedient(state), Script([]), 1)[0]


def _hours(state: RolloutState, spec: RolloutSpec, seen: Any, hours: int, gate: Any = None) -> RolloutState:
    """A step in each; `seen`: an observation, or what is observed in a state."""
    begin_ms = state.headway.at_ms
    for hour in range(1, hours + 1):
        now = seen if isinstance(seen, Observation) else seen(state)
        state, _ = step(state, spec, now, gate or Script([]), begin_ms + 3_600_000 * hour)
    return state


def test_a_stage_that_comes_no_nearer_to_its_end_for_a_day_stands_still() -> None:
    state = _committed()
    silent = seen_of(state, names(state, "waiting"))
    state, _ = step(state, SPEC, silent, Script([]), LONG - 2000)
    assert state.headway.stalled == ""
    state, _ = step(state, SPEC, silent, Script([]), LONG)
    assert state.headway.stalled == "stage 1 (2) has not come nearer to its end for 24 h"
    assert unpacked(packed(state)) == state
    again, _ = step(state, SPEC, silent, Script([]), LONG + 5000)
    assert again == state, "nothing is written while nothing happens"
    spoke, _ = step(state, SPEC, everyone(state, windows={names(state, "committed")[0]: 1}), Script([]), LONG + 5000)
    assert spoke.headway.stalled == ""


def test_soak_windows_are_headway_and_later_ones_are_not() -> None:
    spec = msgspec.structs.replace(SPEC, gate=GatePolicy(soak_windows=40))
    state = _committed(spec)
    one, other = names(state, "committed")
    state = _hours(state, spec, everyone(state, windows={one: 1}), 45)
    assert state.headway.stalled == ""
    state = _hours(state, spec, everyone(state, windows={one: 1}), 25)
    assert state.headway.stalled, f"{other} reports nothing, and nobody else can help"


class Evidently:
    """A gate that holds for a metric whose evidence it is told."""

    def __init__(self, log_ok: list[float], *, own: float | None = None) -> None:
        self.log_ok, self.own = log_ok, own

    def judge(self, evidence: Evidence) -> Judgement:
        now = self.log_ok.pop(0)
        figure = Figure(
            metric="error", basis="control", treated=0.0, control=0.0, n=1, log_bad=0.0, log_ok=now, log_own=self.own,
            blocks=not evidence.last, need_ok=3.0,
        )  # fmt: skip
        return Judgement(verdict="hold", reason="so", figures=(figure,), ledger=evidence.ledger)


@pytest.mark.parametrize(
    ("log_ok", "own", "stalls"),
    [
        ([0.02 * i for i in range(72)], None, False),  # slowly, but it comes
        ([0.0, -1.0, *(-1.0 + 0.1 * (i % 8) for i in range(70))], None, True),  # up and down, never further than it was
        ([4.0 + i for i in range(72)], 1.0, True),  # better than the control, but the whole fleet is worse
    ],
)
def test_evidence_is_headway_while_less_is_lacking_than_ever(
    log_ok: list[float], own: float | None, stalls: bool
) -> None:
    state = _hours(_committed(), SPEC, everyone, 60, Evidently(log_ok, own=own))
    assert bool(state.headway.stalled) is stalls


def test_evidence_that_took_long_may_fall_back_for_as_long() -> None:
    rises = [0.05 * min(i, 40) for i in range(90)]
    state, gate = _committed(), Evidently(rises)
    state = _hours(state, SPEC, everyone, 78, gate)
    assert state.headway.stalled == ""
    at_ms = state.headway.at_ms
    for hour in (40, 42):
        state, _ = step(state, SPEC, everyone(state), gate, at_ms + 3_600_000 * hour)
        assert bool(state.headway.stalled) is (hour == 42)
    assert state.headway.stalled == "stage 1 (2) has not come nearer to its end for 41 h"


def test_a_stage_in_which_nobody_is_left_stands_still_after_a_window() -> None:
    state = _committed()
    ran = names(state, "committed")
    lost = everyone(state, *(News(d, "fail") for d in ran))
    state, _ = step(state, SPEC, lost, Script([]), 1000)  # others fail too, so it is not held against the release
    state, _ = step(state, SPEC, everyone(state), Script([]), 60_000)
    assert state.headway.stalled == ""
    state, _ = step(state, SPEC, everyone(state), Script([]), 61_000)
    assert state.headway.stalled == "nobody is left to judge or to wait for in stage 1 (2)"
    alone = msgspec.structs.replace(SPEC, stages=("100%",))
    state = started(alone, 2)
    unable = np.ones(2, np.bool_)
    for now in (1, 60_001):
        state, _ = step(state, alone, everyone(state, unable=unable), Script([]), now)
    assert state.headway.stalled == "nobody is left to judge or to wait for in stage 1 (100%)"
    state, wishes = step(state, alone, everyone(state), Script([]), 120_000)
    assert (len(wishes), state.headway.stalled) == (2, ""), "they have been brought up to date"


def test_who_waits_for_hours_or_bandwidth_needs_nobody_and_who_is_silent_or_held_needs_somebody() -> None:
    spec = msgspec.structs.replace(SPEC, windows=("Sun 02:00-04:00",))
    first = started(spec, 4)
    first, _ = step(first, spec, everyone(first, open=np.zeros(4, np.bool_)), Script([]), 0)
    closed, held, silent = (
        {"open": np.zeros(4, np.bool_)},
        {"held": np.ones(4, np.bool_)},
        {"present": np.zeros(4, np.bool_)},
    )
    for kind, stalls in ((closed, False), (held, True), (silent, True)):
        seen = Observation(**{"present": np.ones(4, np.bool_), **kind})
        assert bool(_hours(first, spec, seen, 50).headway.stalled) is stalls, kind
    slow = msgspec.structs.replace(SPEC, bandwidth_bytes_s=1.0, release_bytes=200_000)  # one in two days and a third
    state, _ = step(started(slow, 4), slow, everyone(started(slow, 4)), Script([]), 0)
    assert len(names(state, "asked")) == 1
    assert _hours(state, slow, obedient, 50).headway.stalled == ""


def test_an_experiment_gets_on_while_it_compares_and_a_pause_is_no_standstill() -> None:
    spec = msgspec.structs.replace(SPEC, stages=(2, "100%"), experiment=Experiment(share=2))
    state = _committed(spec)
    runs = Counts(np.ones((3, 4)) * state.members.has("committed"), np.zeros((3, 4)))
    compares = Observation(np.ones(4, np.bool_), treated=runs, control=Counts(1.0 - runs.trials, runs.events))
    assert _hours(state, spec, compares, 60).headway.stalled == ""
    quiet = _hours(state, spec, everyone, 60)
    assert quiet.headway.stalled
    paused, _ = rollout.command(quiet, spec, "pause", "so", LONG)
    assert _hours(paused, spec, everyone, 60).headway.stalled == ""
    resumed, _ = rollout.command(paused, spec, "resume", "so", 10 * DAY_MS)
    assert step(resumed, spec, everyone(resumed), Script([]), 10 * DAY_MS)[0].headway.stalled == ""


def test_what_an_older_release_stored_is_not_taken_for_a_standstill() -> None:
    document = packed(_committed())
    del document["headway"]
    state, _ = step(unpacked(document), SPEC, everyone(_committed()), Script([]), 10 * DAY_MS)
    assert (state.headway.stalled, state.headway.at_ms) == ("", 10 * DAY_MS)


def _alerts(house: House) -> list[tuple[str, str, bool]]:
    """Key, severity, and whether it is closed."""
    with house.control.connect() as connection:
        rows = connection.execute(sa.select(control.alerts).order_by(control.alerts.c.id)).all()
    return [(row.key, row.severity, row.open_key is None) for row in rows]


def test_a_rollout_that_nobody_is_left_for_is_one_ticket_until_somebody_comes_or_it_ends(
    tmp_path: Path, packages: dict[str, Package]
) -> None:
    house = House(tmp_path, packages)
    house.publish_package("2.0.0")
    house.enrol("pi-0", "pi-1")
    house.tick()
    name = house.start("2.0.0", stages=("100%",))
    key = f"rollout:{name}:still"

    def enrolled(state: str) -> None:
        with house.control.begin() as connection:
            connection.execute(control.devices.update().values(state=state))

    enrolled("retired")
    house.live([], 10)
    assert _alerts(house) == [(key, "ticket", False)]
    enrolled("enrolled")
    house.live([], 1)
    assert _alerts(house) == [(key, "ticket", True)]
    enrolled("retired")
    house.live([], 10)
    assert _alerts(house) == [(key, "ticket", True), (key, "ticket", False)]
    house.conductor.command(name, "abort", who="ann", now_ms=house.now)
    assert _alerts(house) == [(key, "ticket", True), (key, "ticket", True)]
    a = control.audit.c
    with house.control.connect() as connection:
        said = sa.select(a.detail).where(a.what == "alert close").order_by(a.id)
        assert list(connection.execute(said).scalars()) == [f"{key}: it gets on", f"{key}: it is aborted"]
        text = connection.execute(sa.select(control.alerts.c.text)).scalars().first()
    assert text == (
        f"rollout {name} stands still: nobody is left to judge or to wait for in stage 1 (100%). Its reason: nobody is "
        "left for stage 1 (100%), and nobody has the release: abort it, and begin anew"
    )


@pytest.mark.parametrize("end", ["approve", "abort", "revoke"])
def test_a_rollout_that_waits_for_approval_for_a_day_is_one_ticket_until_it_is_over(
    tmp_path: Path, packages: dict[str, Package], end: str
) -> None:
    house = House(tmp_path, packages)
    house.publish_package("2.0.0")
    house.enrol("pi-0", "pi-1")
    name, digest = house.start("2.0.0", stages=("100%",), approvals=2), packages["2.0.0"].digest
    key = f"rollout:{name}:still"

    def after(ms: int) -> str | None:
        house.now += ms
        house.tick()
        with house.control.connect() as connection:
            return connection.execute(sa.select(control.alerts.c.text)).scalar()

    assert after(DAY_MS - 1) is None
    waits = f"rollout {name} stands still: for more than a day it has waited for {{}} to approve it. "
    said = f"{waits}`edgewright rollout approve {name} --digest {digest}`, or abort it"
    assert after(1) == said.format("2 persons")
    house.conductor.approve(name, digest, who="ben", now_ms=house.now)
    assert _alerts(house) == [(key, "ticket", False)]
    assert after(DAY_MS) == said.format("1 person")
    house.restart()
    after(DAY_MS)
    assert _alerts(house) == [(key, "ticket", False)], "one ticket, however long it waits"
    if end == "approve":
        house.conductor.approve(name, digest, who="cleo", now_ms=house.now)
    elif end == "abort":
        house.conductor.command(name, "abort", who="ann", now_ms=house.now)
    else:
        house.conductor.revoke("digits", "2.0.0", reason="it sees ghosts", who="ann", now_ms=house.now)
        house.tick()
    assert _alerts(house) == [(key, "ticket", True)]


def test_a_day_of_waiting_for_approval_begins_anew_where_the_clock_was_put_back() -> None:
    spec = msgspec.structs.replace(SPEC, approvals=1)
    state, _ = rollout.command(RolloutState(id="r"), spec, "start", "", 10 * DAY_MS)
    state, _ = step(state, spec, everyone(state), Script([]), DAY_MS)
    assert (state.since_ms, state.headway.stalled) == (DAY_MS, "")
    state, _ = step(state, spec, everyone(state), Script([]), 2 * DAY_MS)
    assert state.headway.stalled
