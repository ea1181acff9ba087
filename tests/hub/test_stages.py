"""Packages: what operators say of them, what a revocation moves, how two differ, and what is never collected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import RequestError
from edgewright_contracts.package import Package
from edgewright_hub.registry import garbage, lineage, stages
from edgewright_hub.registry.stages import STAGES
from edgewright_hub.storage import control, telemetry
from sim.house import House
from sim.packages import make_package

VERSIONS = [f"{number}.0.0" for number in range(1, 9)]
FOUR = ["pi-0", "pi-1", "pi-2", "pi-3"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    root = tmp_path_factory.mktemp("packages")
    return {v: make_package(root / v, version=v, seed=i) for i, v in enumerate(VERSIONS)}


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    one = House(tmp_path, packages)
    for version in ("1.0.0", "2.0.0"):
        one.publish_package(version)
        one.now += 1
    one.enrol(*FOUR)
    return one


def decide(house: House, version: str, verb: Any, reason: str = "a test") -> str:
    with house.control.begin() as connection:
        row = stages.decide(connection, "digits", version, verb, reason=reason, who="op", now_ms=house.now)
        return stages.standing(row)


def put(house: House, version: str, **values: Any) -> None:
    mine = control.packages.c.version == version
    with house.control.begin() as connection:
        connection.execute(control.packages.update().where(mine).values(**values))


@pytest.mark.parametrize("stage", ["candidate", "approved", "deprecated", "revoked"])
@pytest.mark.parametrize("verb", ["approve", "reopen", "deprecate", "revoke"])
def test_stages_change_as_the_table_says_and_no_other_way(house: House, stage: Any, verb: Any) -> None:
    put(house, "2.0.0", stage=stage)
    if (stage, verb) in STAGES:
        assert decide(house, "2.0.0", verb) == STAGES[stage, verb]
    else:
        with pytest.raises(RequestError, match=f"digits 2.0.0 is {stage} and cannot {verb}; possible now: "):
            decide(house, "2.0.0", verb)


def test_a_decision_needs_a_reason_and_a_package(house: House) -> None:
    with pytest.raises(RequestError, match="expected a reason"):
        decide(house, "2.0.0", "deprecate", reason=" ")
    with pytest.raises(RequestError, match=r"digits 9.0.0 is not in the registry \(published: 1.0.0, 2.0.0\)"):
        decide(house, "9.0.0", "deprecate")


def test_what_its_owner_withdrew_counts_as_withdrawn_whatever_the_stage(house: House) -> None:
    put(house, "2.0.0", state="withdrawn")
    assert decide(house, "2.0.0", "deprecate") == "withdrawn"


def test_devices_that_run_what_is_revoked_go_back_to_what_they_had(house: House) -> None:
    house.start("1.0.0", stages=("100%",))
    assert house.live(FOUR, 30, until="done")["outcome"] == "promoted"
    house.start("2.0.0", stages=("100%",), devices=("pi-0", "pi-1"))
    house.live(FOUR, 60, until="done")
    assert [house.version(d) for d in FOUR] == ["2.0.0", "2.0.0", "1.0.0", "1.0.0"]
    back = house.conductor.revoke("digits", "2.0.0", reason="it sees ghosts", who="op", now_ms=house.now)
    assert back == ["pi-0", "pi-1"]
    assert {house.version(d) for d in FOUR} == {"1.0.0"}
    back = house.conductor.revoke("digits", "1.0.0", reason="so does it", who="op", now_ms=house.now)
    assert back == FOUR
    assert {house.digest(d) for d in FOUR} == {None}, "there is nothing left that they may run"
    house.tick()
    assert {house.digest(d) for d in FOUR} == {None}


def test_a_rollback_never_leads_to_what_was_revoked_meanwhile(house: House) -> None:
    house.start("1.0.0", stages=("100%",))
    house.live(FOUR, 30, until="done")
    started = house.start("2.0.0", stages=(2, "100%"))
    house.live(FOUR, 1)
    assert "2.0.0" in {house.version(d) for d in FOUR}
    house.conductor.revoke("digits", "1.0.0", reason="a test", who="op", now_ms=house.now)
    house.conductor.revoke("digits", "2.0.0", reason="a test", who="op", now_ms=house.now)
    house.live(FOUR, 5)
    assert house.conductor.rollout(started)["outcome"] == "withdrawn"
    assert {house.digest(d) for d in FOUR} == {None}


def test_a_lineage_says_what_is_new_who_decided_and_what_came_of_it(house: House) -> None:
    decide(house, "2.0.0", "deprecate", reason="slow")
    started = house.start("1.0.0", stages=("100%",))
    with house.control.connect() as connection:
        two, one = lineage.lineage(connection, "digits")
    assert (two["version"], two["parent"], two["standing"]) == ("2.0.0", "1.0.0", "deprecated")
    assert [(d["who"], d["what"], d["detail"]) for d in two["decisions"]] == [("op", "package deprecate", "slow")]
    assert (one["parent"], [r["id"] for r in one["rollouts"]], two["rollouts"]) == (None, [started], [])


def test_a_difference_names_files_budgets_channels_and_lines_of_the_card(house: House, tmp_path: Path) -> None:
    old, new = (house.packages[v].manifest for v in ("1.0.0", "2.0.0"))
    found = lineage.diff(old, new, house.registry.blobs)
    assert {one["file"] for one in found["files"]} == {f for f in new.files if new.files[f] != old.files.get(f)}
    assert lineage.diff(old, old, house.registry.blobs) | {"bytes": 0} == {
        "files": [], "bytes": 0, "variants": {}, "budgets": {}, "fields": {}, "provenance": {}, "channels": {},
        "card": [],
    }  # fmt: skip
    changed = msgspec.structs.replace(
        new, labels=("a",), budgets=msgspec.structs.replace(new.budgets, p95_ms=7.0), variants=new.variants[:1]
    )
    found = lineage.diff(new, changed, house.registry.blobs)
    assert tuple(found["fields"]["labels"][1]) == ("a",)
    assert found["budgets"]["p95_ms"][1] == 7.0
    assert set(found["variants"]) == {v.id for v in new.variants[1:]}


class Signed:
    """An owner's list that names some packages."""

    def __init__(self, packages: list[Package]) -> None:
        names = {f"packages/digits/{p.manifest.version}/manifest.json": p.digest for p in packages}
        self.signed = self
        self.version = 1
        self.targets = {path: type("Target", (), {"hashes": {"sha256": digest}})() for path, digest in names.items()}


def test_nothing_that_a_rollback_may_need_is_collected(
    tmp_path: Path, packages: dict[str, Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, packages)
    for version in VERSIONS:
        house.publish_package(version)
    registry = house.registry
    registry.metadata.mkdir()
    for package in packages.values():
        (registry.blobs / package.digest).write_bytes(b"manifest")
    monkeypatch.setattr(registry, "targets", lambda: Signed([packages["1.0.0"]]))
    house.enrol(*FOUR)
    # 2: what devices are told to run, and 3: what they had before, by a rollout under way
    house.start("3.0.0", stages=("100%",))
    assert house.live(FOUR, 30, until="done")["outcome"] == "promoted"
    house.start("2.0.0", stages=(1, "100%"))
    house.live(FOUR, 1)
    slots = [
        {"model": "digits", "digest": packages[v].digest, "version": v, "variant": "onnx-fp32", "state": state}
        for v, state in (("4.0.0", "previous"), ("5.0.0", "staged"))
    ]
    d = telemetry.devices
    with house.telemetry.begin() as connection:
        connection.execute(d.update().where(d.c.device == "pi-0").values(birth={"slots": slots}, birth_ms=1))
        mine = d.update().where(d.c.device == "pi-1")
        connection.execute(mine.values(digest=packages["6.0.0"].digest[:16], variant="onnx-fp32"))
    now_s = house.now / 1000
    for place in registry.blobs.iterdir():
        os.utime(place, (now_s - 2 * 86_400, now_s - 2 * 86_400))
    for file in packages["7.0.0"].manifest.files.values():  # just came
        os.utime(registry.blobs / file.sha256, (now_s, now_s))
    (registry.blobs / "half.part").write_bytes(b"")

    def collected(dry_run: bool) -> garbage.Collected:
        with house.control.connect() as ours, house.telemetry.connect() as theirs:
            rollouts = house.conductor.needed(ours, since_ms=house.now - garbage.RECENT_MS)
            needed = garbage.reasons(ours, theirs, registry, rollouts)
            return garbage.collect(ours, registry, needed, now_s=now_s, dry_run=dry_run)

    def files(version: str) -> set[str]:
        return {file.sha256 for file in packages[version].manifest.files.values()}

    planned = collected(dry_run=True)
    assert planned.removed, "something is old and named by nothing"
    assert all((registry.folder / one).exists() for one in planned.removed)
    done = collected(dry_run=False)
    assert (done.removed, done.bytes) == (planned.removed, planned.bytes)
    here = {place.name for place in registry.blobs.iterdir()}
    for version, why in {
        "1.0.0": "its owner signs digits now",
        "2.0.0": "is told to run it",
        "3.0.0": "is told to run it",
        "4.0.0": "pi-0 has it in its previous slot",
        "5.0.0": "pi-0 has it in its staged slot",
        "6.0.0": "pi-1 ran it in its newest window",
    }.items():
        assert why in done.kept[f"digits {version}"], version
        assert {packages[version].digest, *files(version)} <= here, version
    assert files("7.0.0") <= here, "a publisher may be about to name them"
    assert "half.part" in here
    kept = set().union(*(files(v) for v in VERSIONS[:7]))
    gone = {packages["8.0.0"].digest, packages["7.0.0"].digest, *(files("8.0.0") - kept)}
    assert {Path(one).name for one in done.removed} == gone
    # Nobody is told to run 3.0.0 any more, and the rollout ended long ago: newcomers still get it.
    with house.control.begin() as connection:
        connection.execute(control.desired.delete())
        connection.execute(
            control.rollouts.update().where(control.rollouts.c.state == "running").values(state="aborted")
        )
    house.now += 2 * garbage.RECENT_MS
    with house.control.connect() as ours:
        needed = house.conductor.needed(ours, since_ms=house.now - garbage.RECENT_MS)
    assert list(needed) == [packages["3.0.0"].digest]
    with house.control.connect() as ours:
        assert ours.execute(sa.select(sa.func.count()).select_from(control.packages)).scalar() == 8, "the record stays"
