"""A hub that is killed at every transition of a rollout, before its commit and after it, beside one that is not."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import Refused
from edgewright_contracts.package import Package
from edgewright_hub.rollouts.specification import Experiment
from edgewright_hub.rollouts.state import TABLE
from edgewright_hub.storage import control
from sim.house import House

FOUR = [f"pi-{i}" for i in range(4)]


@dataclass
class Fleet:
    """A house whose hub dies at each thing that it does, and what is written after each."""

    house: House
    dies: bool
    trace: list[Any] = field(default_factory=list)
    wrong: float = 0.0  # share of wrong labels with the new release

    def do(self, act: Callable[[], Any]) -> None:
        if self.dies:  # with all decided and nothing written
            sa.event.listen(self.house.control, "commit", _die)
            with contextlib.suppress(sa.exc.OperationalError):
                act()
            sa.event.remove(self.house.control, "commit", _die)
            self.house.restart()
        act()
        if self.dies:  # with all written and nothing else done
            self.house.restart()
        with self.house.control.connect() as connection:
            progress = connection.execute(sa.select(control.rollouts.c.progress)).all()[-1][0]
            documents = connection.execute(sa.select(control.desired.c.device, control.desired.c.document)).all()
        self.trace.append((progress, sorted((d, document["rev"], document) for d, document in documents)))

    def order(self, method: str, *arguments: Any, who: str = "ann") -> None:
        house = self.house
        name = house.conductor.rollouts()[0]["id"]
        self.do(lambda: getattr(house.conductor, method)(name, *arguments, who=who, now_ms=house.now))

    def live(self, until: str) -> None:
        """Devices do as they are told until the rollout is in this state, or at this stage."""
        house = self.house
        for _ in range(40):
            house.now += 5000
            rows = [
                house.row(d, v, labels_n=20, labels_wrong=int(20 * (self.wrong if v == "2.0.0" else 0.05)))
                for d in FOUR
                if (v := house.version(d))
            ]
            house.report(*rows)
            self.do(lambda: house.conductor.tick(house.now))
            if until in (self.state, f"stage {house.conductor.rollouts()[0]['stage']}"):
                return
        raise AssertionError(f"{until} was not reached: {house.conductor.rollouts()[0]['reason']}")

    @property
    def state(self) -> str:
        return str(self.trace[-1][0]["state"])


def _die(*_: Any) -> None:
    raise sa.exc.OperationalError("killed", {}, Exception())


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    house = House(tmp_path_factory.mktemp("grown"), packages)
    house.publish_package("1.0.0")
    house.publish_package("2.0.0")
    house.enrol(*FOUR)
    house.start("1.0.0", stages=("100%",))
    house.live(FOUR, 20, until="done")
    house.live(FOUR, 20)
    return house


def _consent_and_revert(fleet: Fleet) -> None:
    fleet.house.start("2.0.0", stages=(1, "100%"), approvals=1)
    fleet.order("approve", fleet.house.packages["2.0.0"].digest, who="bob")
    fleet.live("stage 1")
    fleet.order("command", "pause")
    fleet.order("command", "resume")
    fleet.live("done")
    fleet.order("command", "revert")
    fleet.live("reverted")


def _harm(fleet: Fleet) -> None:
    fleet.wrong = 0.6
    fleet.house.start("2.0.0", stages=(2, "100%"))
    fleet.live("rolling-back")
    fleet.live("rolled-back")


def _harm_while_paused(fleet: Fleet) -> None:
    fleet.wrong = 0.6
    fleet.house.start("2.0.0", stages=(2, "100%"))
    fleet.live("running")
    fleet.order("command", "pause")
    fleet.live("rolled-back")


def _experiment(answer: str, *, paused: bool) -> Callable[[Fleet], None]:
    def play(fleet: Fleet) -> None:
        fleet.house.start("2.0.0", stages=("50%", "100%"), experiment=Experiment(share="50%"))
        fleet.live("running")
        fleet.live("running")
        if paused:
            fleet.order("command", "pause")
        fleet.order("conclude", answer)
        fleet.live("rolled-back" if answer == "take back" else "stage 1")

    return play


def _abort(state: str) -> Callable[[Fleet], None]:
    def play(fleet: Fleet) -> None:
        fleet.house.start("2.0.0", stages=(2, "100%"), approvals=int(state == "unapproved"))
        if state != "unapproved":
            fleet.live("running")
        if state == "paused":
            fleet.order("command", "pause")
        fleet.order("command", "abort")

    return play


Passed = tuple[tuple[str, str], ...]  # states before and after
SCENES: dict[str, tuple[Callable[[Fleet], None], Passed]] = {
    "consent and revert": (_consent_and_revert, (
        ("unapproved", "running"), ("running", "paused"), ("paused", "running"), ("running", "done"),
        ("done", "reverting"), ("reverting", "reverted"))),
    "harm": (_harm, (("running", "rolling-back"), ("rolling-back", "rolled-back"))),
    "harm while paused": (_harm_while_paused, (("paused", "rolling-back"),)),
    "promoted experiment": (_experiment("promote", paused=False), (("running", "running"),)),
    "experiment taken back": (_experiment("take back", paused=False), (("running", "rolling-back"),)),
    "paused experiment, promoted": (_experiment("promote", paused=True), (("paused", "running"),)),
    "paused experiment, taken back": (_experiment("take back", paused=True), (("paused", "rolling-back"),)),
    "abort": (_abort("running"), (("running", "aborted"),)),
    "abort while paused": (_abort("paused"), (("paused", "aborted"),)),
    "abort before consent": (_abort("unapproved"), (("unapproved", "aborted"),)),
}  # fmt: skip


@pytest.mark.parametrize("scene", SCENES)
def test_no_transition_is_repeated_or_skipped_whenever_the_hub_dies(tmp_path: Path, grown: House, scene: str) -> None:
    play, expected = SCENES[scene]
    calm, killed = (Fleet(grown.copy(tmp_path / str(dies)), dies) for dies in (False, True))
    for fleet in (calm, killed):
        play(fleet)
    assert killed.trace == calm.trace, "the same is decided again, and what was written is not done again"
    first = "unapproved" if "consent" in scene else "running"
    assert {*expected} <= {*itertools.pairwise([first, *(progress["state"] for progress, _ in calm.trace)])}


def test_these_scenes_pass_through_every_transition_that_a_hub_writes() -> None:
    """A rollout is created and started, or submitted, in one transaction, so that no draft is ever stored."""
    passed = {one for _, expected in SCENES.values() for one in expected}
    assert passed == {(before, after) for (before, _), after in TABLE.items() if before != "draft"}


def test_a_later_rollout_is_not_undone_with_an_earlier_one_and_a_model_rests_after_a_revert(
    tmp_path: Path, grown: House
) -> None:
    house = grown.copy(tmp_path)
    first = house.conductor.rollouts()[0]["id"]
    second = house.start("2.0.0", stages=("100%",), cooldown_s=600, bandwidth_bytes_s=1e6)
    assert house.conductor.rollout(second)["approvals"] == {"needed": 0, "author": "tests", "by": []}
    with house.control.connect() as connection:
        kept = connection.execute(sa.select(control.rollouts.c.spec)).scalars().all()[-1]
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
