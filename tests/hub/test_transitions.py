"""A hub that is killed at every transition of a rollout, before its commit and after it, beside one that is not.

Transitions are those of the table, as the engine takes them. At each of them the hub is a process that SIGKILL ends; at
everything else that it does (a stage is given the release, a count is added) its death is an exception and a restart,
on SQLite.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from edgewright_contracts.desired import Desired
from edgewright_contracts.errors import Refused
from edgewright_contracts.package import Package
from edgewright_hub.rollouts import completion, retreat, rollout
from edgewright_hub.rollouts.desired_documents import retained
from edgewright_hub.rollouts.specification import Experiment, RolloutSpec
from edgewright_hub.rollouts.state import TABLE, Event, RolloutState, State
from edgewright_hub.storage import control
from edgewright_hub.storage.places import places
from sim import postgresql
from sim.deaths import Moment, die
from sim.house import QUICK, House

FOUR = [f"pi-{i}" for i in range(4)]
Passed = tuple[tuple[State, Event], ...]


@dataclass
class Fleet:
    """A house, and devices that know what they were sent. `kills` (the numbers of acts) are where its hub is killed."""

    house: House
    processes: Any = None
    kills: frozenset[int] = frozenset()
    dies: bool = False  # at everything else that it does
    trace: list[Any] = field(default_factory=list)  # what is written after each act
    holds: dict[str, list[Desired]] = field(default_factory=dict)  # all documents that devices took, the newest last
    wrong: float = 0.0  # share of wrong labels with the new release

    def __post_init__(self) -> None:
        self.house.publish = self._tell  # type: ignore[method-assign]
        self.house.restart()
        self._listen()

    def do(self, method: str, *arguments: Any, **named: Any) -> None:
        """The hub does this. One that dies with nothing written is started again, and does it once more."""
        named |= {"now_ms": self.house.now}
        kill = len(self.trace) in self.kills
        if not (kill or self.dies):
            getattr(self.house.conductor, method)(*arguments, **named)
        else:
            end = self._killed if kill else self._died
            end("decided", method, arguments, named)
            assert self._written() == (self.trace[-1] if self.trace else self.first), "all of it or nothing"
            end("committed", method, arguments, named)
            self._listen()
        self.trace.append(self._written())
        documents = dict(self.trace[-1][1])
        assert {device: taken[-1] for device, taken in self.holds.items()} == documents, "nobody is forgotten"

    def order(self, method: str, *arguments: Any, who: str = "ann") -> None:
        self.do(method, self.house.conductor.rollouts()[0]["id"], *arguments, who=who)

    def start(self, **more: Any) -> None:
        self.first = self._written()
        spec = RolloutSpec(model="digits", version="2.0.0", gate=QUICK, window_s=5.0, **more)
        self.do("create_rollout", spec, who="tests")

    def live(self, until: str) -> None:
        """Devices do as they are told until the rollout is in this state, or at this stage."""
        house = self.house
        for _ in range(40):
            house.now += 5000
            house.report(
                *(
                    house.row(d, v, labels_n=20, labels_wrong=int(20 * (self.wrong if v == "2.0.0" else 0.05)))
                    for d in FOUR
                    if (v := self._runs(d))
                )
            )
            self.do("tick")
            newest = house.conductor.rollouts()[0]
            if until in (newest["state"], f"stage {newest['stage']}"):
                return
        raise AssertionError(f"{until} was not reached: {newest['reason']}")

    def _runs(self, device: str) -> str:
        newest = self.holds[device][-1].models[0].digest
        return next(version for version, package in self.house.packages.items() if package.digest == newest)

    def _tell(self, device: str, kind: str, body: bytes, retain: bool) -> None:
        House.publish(self.house, device, kind, body, retain)
        self._take(*self.house.sent[-1])

    def _take(self, device: str, document: Desired) -> None:
        taken = self.holds.setdefault(device, [])
        if not taken or document.rev > taken[-1].rev:
            taken.append(document)

    def _listen(self) -> None:
        """A hub that starts tells every device what it is to run."""
        self.house.restart()
        for device, body in retained(self.house.control):
            self._tell(device, "desired", body, True)

    def _killed(self, moment: Moment, method: str, arguments: Any, named: Any) -> None:
        house = self.house
        child = self.processes.Process(
            target=die, args=(house.place, places(house.place), moment, method, arguments, named)
        )
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL

    def _died(self, moment: Moment, method: str, arguments: Any, named: Any) -> None:
        """The same without a process."""
        if moment == "decided":
            sa.event.listen(self.house.control, "commit", _die)
        else:
            self.house.publish = _die  # type: ignore[method-assign]
        with contextlib.suppress(Died):
            getattr(self.house.conductor, method)(*arguments, **named)
        if moment == "decided":
            sa.event.remove(self.house.control, "commit", _die)
        self.house.publish = self._tell  # type: ignore[method-assign]
        self.house.restart()

    def _written(self) -> Any:
        r, d, a = control.rollouts.c, control.desired.c, control.audit.c
        alerts = control.alerts.c
        with self.house.control.connect() as connection:

            def rows(*columns: Any, by: Any) -> list[tuple[Any, ...]]:
                return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(by))]

            documents = [
                (device, msgspec.convert(one, Desired)) for device, one in rows(d.device, d.document, by=d.device)
            ]
            newest = rows(r.id, r.state, r.progress, by=(r.created_ms))[-1]
            audit = rows(a.at_ms, a.who, a.what, a.detail, by=a.id)
            return newest, documents, audit, rows(alerts.key, alerts.text, alerts.closed_ms, by=alerts.id)


class Died(Exception):
    """The hub did."""


def _die(*_: Any) -> None:
    raise Died


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    """Four devices that have run 1.0.0 for a while."""
    return House(tmp_path_factory.mktemp("grown"), packages).settle(FOUR)


@pytest.fixture(scope="module")
def grown_there(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    place = tmp_path_factory.mktemp("grown-there")
    postgresql.chosen(place, asked=True)
    return House(place, packages).settle(FOUR)


def _consent_and_revert(fleet: Fleet) -> None:
    fleet.start(stages=(1, "100%"), approvals=1)
    fleet.live("unapproved")  # what the devices did until the consent is read anew with it
    fleet.order("approve", fleet.house.packages["2.0.0"].digest, who="bob")
    fleet.live("stage 1")
    fleet.order("command", "pause")
    fleet.order("command", "resume")
    fleet.live("done")
    fleet.order("command", "revert")
    fleet.live("reverted")


def _harm(fleet: Fleet) -> None:
    fleet.wrong = 0.6
    fleet.start(stages=(2, "100%"))
    fleet.live("rolling-back")
    fleet.live("rolled-back")


def _harm_while_paused(fleet: Fleet) -> None:
    fleet.wrong = 0.6
    fleet.start(stages=(2, "100%"))
    fleet.live("running")
    fleet.order("command", "pause")
    fleet.live("rolled-back")


def _experiment(answer: str, *, paused: bool) -> Callable[[Fleet], None]:
    def play(fleet: Fleet) -> None:
        fleet.start(stages=("50%", "100%"), experiment=Experiment(share="50%"))
        fleet.live("running")
        fleet.live("running")
        if paused:
            fleet.order("command", "pause")
        fleet.order("conclude", answer)
        fleet.live("rolled-back" if answer == "take back" else "stage 1")

    return play


def _abort(state: str) -> Callable[[Fleet], None]:
    def play(fleet: Fleet) -> None:
        fleet.start(stages=(2, "100%"), approvals=int(state == "unapproved"))
        if state != "unapproved":
            fleet.live("running")
        if state == "paused":
            fleet.order("command", "pause")
        fleet.order("command", "abort")

    return play


BEGINS: Passed = (("draft", "start"),)
SCENES: dict[str, tuple[Callable[[Fleet], None], Passed]] = {
    "consent and revert": (_consent_and_revert, (
        ("draft", "submit"), ("unapproved", "approve"), ("running", "pause"), ("paused", "resume"),
        ("running", "finish"), ("done", "revert"), ("reverting", "undone"))),
    "harm": (_harm, (*BEGINS, ("running", "harm"), ("rolling-back", "undone"))),
    "harm while paused": (_harm_while_paused, (
        *BEGINS, ("running", "pause"), ("paused", "harm"), ("rolling-back", "undone"))),
    "promoted experiment": (_experiment("promote", paused=False), (*BEGINS, ("running", "conclude"))),
    "experiment taken back": (_experiment("take back", paused=False), (
        *BEGINS, ("running", "take back"), ("rolling-back", "undone"))),
    "paused experiment, promoted": (_experiment("promote", paused=True), (
        *BEGINS, ("running", "pause"), ("paused", "conclude"))),
    "paused experiment, taken back": (_experiment("take back", paused=True), (
        *BEGINS, ("running", "pause"), ("paused", "take back"), ("rolling-back", "undone"))),
    "abort": (_abort("running"), (*BEGINS, ("running", "abort"))),
    "abort while paused": (_abort("paused"), (*BEGINS, ("running", "pause"), ("paused", "abort"))),
    "abort before consent": (_abort("unapproved"), (("draft", "submit"), ("unapproved", "abort"))),
}  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, grown: House) -> Callable[[str], tuple[Fleet, list[Any]]]:
    """A scene with a hub that never dies, and its transitions: the number of the act, and what the table names."""

    @functools.cache
    def played(scene: str) -> tuple[Fleet, list[Any]]:
        fleet, passed = Fleet(grown.copy(tmp_path_factory.mktemp("calm"))), list[Any]()

        def move(state: RolloutState, event: Event, *rest: Any) -> RolloutState:
            after = taken(state, event, *rest)
            passed.append((len(fleet.trace), (state.state, event)))
            return after

        taken = rollout.move
        with pytest.MonkeyPatch.context() as patch:
            for module in (rollout, completion, retreat):
                patch.setattr(module, "move", move)
            SCENES[scene][0](fleet)
        return fleet, passed

    return played


@pytest.mark.process
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("scene", SCENES)
def test_no_transition_is_repeated_or_skipped_whenever_the_hub_dies(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    processes: Any,
    calm: Callable[[str], tuple[Fleet, list[Any]]],
    scene: str,
    database: str,
) -> None:
    play, expected = SCENES[scene]
    undisturbed, passed = calm(scene)
    assert tuple(one for _, one in passed) == expected
    house = request.getfixturevalue("grown" if database == "sqlite" else "grown_there").copy(tmp_path)
    killed = Fleet(house, processes, frozenset(act for act, _ in passed), dies=database == "sqlite")
    play(killed)
    assert killed.trace == undisturbed.trace, "the same is decided again, and what was written is not done again"
    assert killed.holds == undisturbed.holds, "no device is told anything twice, and none is forgotten"


def test_these_scenes_take_every_transition_of_the_table() -> None:
    """But one: a rollout is created and started, or submitted, in one transaction, so no draft is there to abort."""
    assert {one for _, expected in SCENES.values() for one in expected} == set(TABLE) - {("draft", "abort")}


def test_a_later_rollout_is_not_undone_with_an_earlier_one_and_a_model_rests_after_a_revert(
    tmp_path: Path, grown: House
) -> None:
    house = grown.copy(tmp_path)
    first = house.conductor.rollouts()[0]["id"]
    second = house.start("2.0.0", stages=("100%",), cooldown_s=600, bandwidth_bytes_s=1e6)
    assert house.conductor.rollout(second)["approvals"] == {"needed": 0, "author": "tests", "by": []}
    with house.control.connect() as connection:
        kept = connection.execute(
            sa.select(control.rollouts.c.spec).where(control.rollouts.c.id == second)
        ).scalar_one()
    assert kept["release_bytes"] > 10_000, "the hub knows what its package weighs"
    house.live(FOUR, 20, until="done")
    with pytest.raises(Refused, match="all have gone on since"):
        house.conductor.command(first, "revert", who="ann", now_ms=house.now)
    house.conductor.command(second, "revert", who="ann", now_ms=house.now)
    assert {house.version(d) for d in FOUR} == {"1.0.0"}
    house.live(FOUR, 3, until="reverted")
    with pytest.raises(Refused, match=r"pi-0, pi-1, pi-2 \(4 in all\) rest for another 10 min: .*\(reverted\)"):
        house.start("2.0.0")
    house.now += 600_000
    house.live(FOUR, 1)
    assert house.start("2.0.0"), "a revert blocks no digest"
