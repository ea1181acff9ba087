"""The conductor with real databases: what is desired, what is refused, and that no tick is repeated or skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from edgewright_contracts.codec import MAX_COUNT, decode
from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_contracts.package import Package
from edgewright_hub.rollouts import rollout, rounds
from edgewright_hub.rollouts.gates import GatePolicy
from edgewright_hub.rollouts.records import gate_of
from edgewright_hub.rollouts.specification import RolloutSpec
from edgewright_hub.storage import control, telemetry
from sim.house import House
from sim.packages import make_package


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    root = tmp_path_factory.mktemp("packages")
    return {v: make_package(root / v, version=v, seed=i) for i, v in enumerate(("1.0.0", "2.0.0", "3.0.0"))}


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    return House(tmp_path, packages)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    return _with_first(House(tmp_path_factory.mktemp("grown"), packages))


@pytest.fixture
def lived_in(tmp_path: Path, grown: House) -> House:
    """Eight devices that have run 1.0.0 for a while."""
    return grown.copy(tmp_path)


EIGHT = [f"pi-{i}" for i in range(8)]


def _with_first(house: House) -> House:
    house.publish_package("1.0.0")
    house.publish_package("2.0.0")
    house.enrol(*EIGHT)
    house.start("1.0.0", stages=("100%",))
    assert house.live(EIGHT, 20, until="done")["outcome"] == "promoted"
    house.live(EIGHT, 20)
    return house


def test_a_first_version_and_a_good_second_one_reach_every_device(lived_in: House) -> None:
    house = lived_in
    house.start("2.0.0")
    seen = house.live(EIGHT, 120, until="done")
    assert (seen["state"], seen["outcome"], seen["devices_exposed"]) == ("done", "promoted", 8)
    assert {house.version(d) for d in EIGHT} == {"2.0.0"}
    assert all(house.wanted(d).models[0].rollout == "" for d in EIGHT), "short windows end with the rollout"
    revisions = [doc.rev for device, doc in house.sent if device == "pi-0"]
    assert revisions == sorted(set(revisions))


def test_wrong_labels_send_a_release_back_before_it_reaches_everyone(lived_in: House) -> None:
    house = lived_in
    house.start("2.0.0")
    seen = house.live(EIGHT, 120, wrong=lambda v: 0.4 if v == "2.0.0" else 0.05, until="rolled-back")
    assert (seen["state"], seen["outcome"]) == ("rolled-back", "rolled back")
    assert seen["devices_exposed"] <= 2
    assert seen["reason"].startswith("wrong labels")
    with house.control.connect() as connection:
        alert = connection.execute(sa.select(control.alerts).where(control.alerts.c.kind == "rollout")).one()
    assert (alert.severity, alert.subject) == ("page", seen["id"])
    assert alert.text.startswith("digits 2.0.0 is sent back from ")
    assert {house.version(d) for d in EIGHT} == {"1.0.0"}
    with pytest.raises(Refused, match=r"2\.0\.0 is blocked: rollout r2-.* sent it back"):
        house.start("2.0.0")


def test_a_failed_self_test_on_the_first_device_ends_the_rollout(lived_in: House) -> None:
    house = lived_in
    name = house.start("2.0.0")
    house.live(EIGHT, 1)
    first = next(d for d in EIGHT if house.version(d) == "2.0.0")
    document = house.wanted(first)
    assert document is not None
    assert (document.models[0].rollout, document.config.rollout_window_s) == (name, 5.0)
    with house.telemetry.begin() as connection:
        connection.execute(
            telemetry.windows.delete().where(telemetry.windows.c.digest == house.packages["2.0.0"].digest[:16])
        )
    house.event(
        first, "2.0.0", "selftest", "blocked", failure="model", reason="self-test: 3 of 32 outputs differ", rollout=name
    )
    house.tick()
    seen = house.conductor.rollout(name)
    assert (seen["state"], seen["outcome"], seen["devices_exposed"]) == ("rolled-back", "refused by self-test", 1)
    assert seen["reason"].endswith(": self-test: 3 of 32 outputs differ")
    assert house.version(first) == "1.0.0"


def test_a_hub_that_dies_after_any_tick_goes_on_as_if_it_had_not(tmp_path: Path, grown: House) -> None:
    def run(place: Path, *, dies: bool) -> list[Any]:
        house = grown.copy(place)
        house.start("2.0.0")
        trace = []
        for _ in range(30):
            if dies:
                house.restart()
            house.live(EIGHT, 1)
            house.tick()  # nothing new: nothing may happen
            with house.control.connect() as connection:
                state = connection.execute(sa.select(control.rollouts.c.progress)).all()[-1]
            trace.append((state, {d: house.wanted(d) for d in EIGHT}))
        return trace

    assert run(tmp_path / "a", dies=True) == run(tmp_path / "b", dies=False)


def test_a_tick_that_cannot_commit_is_repeated_whole(lived_in: House) -> None:
    house = lived_in
    house.start("2.0.0")
    house.now += 5000
    before = [house.wanted(d) for d in EIGHT]
    sent = len(house.sent)

    def refuse(*_: Any) -> None:
        raise sa.exc.OperationalError("disk full", {}, Exception())

    sa.event.listen(house.control, "commit", refuse)
    with pytest.raises(sa.exc.OperationalError):
        house.tick()
    sa.event.remove(house.control, "commit", refuse)
    assert [house.wanted(d) for d in EIGHT] == before
    assert len(house.sent) == sent
    house.tick()
    assert sum(house.version(d) == "2.0.0" for d in EIGHT) == 1


def test_a_device_that_is_enrolled_later_gets_what_its_fleet_runs(lived_in: House) -> None:
    house = lived_in
    house.enrol("late")
    house.tick()
    assert house.version("late") == "1.0.0"
    house.start("2.0.0")
    house.enrol("later")
    house.live([*EIGHT, "late"], 1)
    seen = house.conductor.rollouts()[0]
    assert seen["devices_total"] == 10, "and takes part in a rollout that is under way"
    assert house.version("later") in ("1.0.0", "2.0.0")


def test_a_restored_hub_outbids_the_revisions_that_devices_hold(house: House) -> None:
    house.publish_package("1.0.0")
    house.enrol("a")
    house.start("1.0.0", stages=("100%",))
    house.tick()
    with house.telemetry.begin() as connection:  # the device was told more before the backup was restored
        connection.execute(telemetry.devices.update().values(desired_rev=9))
    house.tick()
    held = house.wanted("a")
    assert held is not None
    assert held.rev == 10
    assert house.sent[-1] == ("a", held)
    house.tick()
    assert house.wanted("a") == held


def test_other_models_of_a_device_stay_as_they_are(house: House) -> None:
    house.publish_package("1.0.0")
    house.enrol("pi-0")
    with house.control.begin() as connection:
        document = {"v": 1, "rev": 7, "models": [{"name": "cars", "digest": "c" * 64}]}
        connection.execute(control.desired.insert().values(device="pi-0", rev=7, document=document))
    house.start("1.0.0", stages=("100%",))
    house.tick()
    wanted = house.wanted("pi-0")
    assert wanted is not None
    assert [(m.name, m.digest) for m in wanted.models] == [
        ("cars", "c" * 64),
        ("digits", house.packages["1.0.0"].digest),
    ]
    assert wanted.rev == 8


def test_pause_resume_and_abort(lived_in: House) -> None:
    house = lived_in
    name = house.start("2.0.0")
    house.live(EIGHT, 1)
    house.conductor.command(name, "pause", who="ann", now_ms=house.now)
    assert house.live(EIGHT, 40)["devices_exposed"] == 1
    house.conductor.command(name, "resume", who="ann", now_ms=house.now)
    house.conductor.command(name, "abort", who="ann", now_ms=house.now)
    assert {house.version(d) for d in EIGHT} == {"1.0.0"}
    assert house.conductor.rollout(name)["outcome"] == "aborted"
    with pytest.raises(RequestError, match="is aborted and cannot pause"):
        house.conductor.command(name, "pause", who="ann", now_ms=house.now)
    with pytest.raises(RequestError, match="no rollout is called 'r9'"):
        house.conductor.command("r9", "pause", who="ann", now_ms=house.now)
    with house.control.connect() as connection:
        said = connection.execute(sa.select(control.audit.c.who, control.audit.c.what)).all()
    assert [tuple(row) for row in said][-3:] == [("ann", f"rollout {v}") for v in ("pause", "resume", "abort")]


def test_what_is_wrong_is_refused_before_anything_moves(lived_in: House) -> None:
    house = lived_in
    house.publish_package("3.0.0", state="withdrawn")
    sent = len(house.sent)
    for wrong, spec, reason in (
        (RequestError, {"version": "9.9.9"}, r"digits 9\.9\.9 is not in the registry \(published: 1\.0\.0, 2\.0\.0, 3"),
        (RequestError, {"version": "", "digest": "e" * 64}, "digits e{16} is not in the registry"),
        (RequestError, {"version": "1.0.0", "model": "cars"}, r"cars 1\.0\.0 is not in the registry \(published: none"),
        (Refused, {"version": "3.0.0"}, r"3\.0\.0 is withdrawn"),
        (Refused, {"version": "1.0.0"}, "all 8 devices already have digits 1.0.0"),
        (
            RequestError,
            {"version": "2.0.0", "fleet": "moon"},
            "no enrolled device is in a fleet 'moon'. Known fleets: lab",
        ),
        (RequestError, {"version": "2.0.0", "devices": ("pi-0", "pi-77")}, "^no enrolled device is called pi-77;"),
        (
            RequestError,
            {"version": "2.0.0", "fleet": "lab", "devices": ("pi-77",)},
            "^no enrolled device in fleet 'lab' is called pi-77;",
        ),
    ):
        with pytest.raises(wrong, match=reason):
            house.start(**spec)
    house.start("2.0.0", devices=("pi-0", "pi-1"))
    with pytest.raises(Refused, match=r"rollout r2-.* \(digits 2\.0\.0\) is running on 1 of the same devices"):
        house.start("2.0.0", devices=("pi-1", "pi-2"))
    assert len(house.sent) == sent


def test_without_a_device_a_rollout_is_refused(house: House) -> None:
    house.publish_package("1.0.0")
    with pytest.raises(Refused, match="no device is enrolled yet"):
        house.start("1.0.0")


# One device, one rollout or one row that is broken stops nobody else.


def _holds(house: House, device: str, rev: int) -> None:
    with house.telemetry.begin() as connection:
        mine = telemetry.devices.update().where(telemetry.devices.c.device == device)
        connection.execute(mine.values(desired_rev=rev))


def test_a_device_that_claims_an_absurd_revision_is_left_alone(
    lived_in: House, caplog: pytest.LogCaptureFixture
) -> None:
    house = lived_in
    _holds(house, "pi-7", MAX_COUNT)
    before = house.wanted("pi-7")
    for _ in range(3):
        house.tick()
    assert house.wanted("pi-7") == before
    assert caplog.text.count(f"pi-7 says that it holds revision {MAX_COUNT}") == 1
    house.start("2.0.0")
    assert house.live(EIGHT, 120, until="done")["outcome"] == "promoted"


def test_a_document_that_cannot_be_read_counts_as_empty_and_heals(
    lived_in: House, caplog: pytest.LogCaptureFixture
) -> None:
    house = lived_in
    mine = control.desired.update().where(control.desired.c.device == "pi-7")
    with house.control.begin() as connection:  # as an earlier release stored it
        connection.execute(mine.values(rev=MAX_COUNT + 1, document={"v": 1, "rev": MAX_COUNT + 1, "models": []}))
    house.restart()
    house.tick()
    assert "the document of pi-7 in hub.db cannot be read" in caplog.text
    assert house.version("pi-7") == "1.0.0", "it gets what its fleet runs"
    house.start("2.0.0")
    assert house.live(EIGHT, 120, until="done")["outcome"] == "promoted"


def test_a_device_has_no_more_models_than_it_can_be_told_of(lived_in: House) -> None:
    house = lived_in
    spec = {"model": "cars", "version": "1.0.0"}
    models = [
        {"name": "digits", "digest": house.digest("pi-0")},
        *({"name": f"m{i}", "digest": None} for i in range(31)),
    ]
    with house.control.begin() as connection:
        mine = control.desired.update().where(control.desired.c.device == "pi-0")
        connection.execute(mine.values(rev=99, document={"v": 1, "rev": 99, "models": models}))
        package = {"name": "cars", "version": "1.0.0", "digest": "c" * 64, "state": "allowed", "published_ms": 1}
        manifest = msgspec.to_builtins(house.packages["1.0.0"].manifest)
        connection.execute(control.packages.insert().values(**package, manifest=manifest))
    with pytest.raises(Refused, match=r"pi-0 \(1 in all\) can have no model besides the 32 they have"):
        house.start(**spec)
    house.start(**spec, devices=("pi-1",), stages=("100%",))
    house.start("2.0.0")
    house.tick()
    assert house.conductor.rollouts()[0]["devices_exposed"] == 1


def test_what_was_promoted_goes_to_new_devices_as_far_as_their_documents_hold_it(house: House) -> None:
    house.enrol("pi-0")
    spec = {"fleet": "lab", "devices": [], "digest": "c" * 64}
    row = {"state": "done", "progress": {}, "created_ms": 1, "updated_ms": 1}
    with house.control.begin() as connection:
        for i in range(40):
            one = {"id": f"r{i}", "name": f"m{i:02}", "spec": {**spec, "model": f"m{i:02}"}, **row}
            connection.execute(control.rollouts.insert().values(**one))
    for _ in range(2):
        house.tick()
    wanted = house.wanted("pi-0")
    assert wanted is not None
    assert ([m.name for m in wanted.models], wanted.rev) == ([f"m{i:02}" for i in range(32)], 1)


def test_a_rollout_that_cannot_be_judged_says_so_and_the_others_go_on(
    lived_in: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house = lived_in
    sick = house.start("2.0.0", devices=("pi-0",))
    house.publish_package("3.0.0")
    well = house.start("3.0.0", devices=("pi-1",), fleet="lab")
    step = rollout.step

    def breaks(state: Any, *rest: Any) -> Any:
        if state.id == sick:
            raise ZeroDivisionError("float division by zero")
        return step(state, *rest)

    monkeypatch.setattr(rollout, "step", breaks)
    for _ in range(3):
        house.tick()
    assert house.conductor.rollout(sick)["reason"].startswith("this rollout cannot be judged (ZeroDivisionError")
    assert caplog.text.count(f"rollout {sick} cannot be judged") == 1
    assert house.conductor.rollout(well)["devices_exposed"] == 1
    house.conductor.command(sick, "abort", who="ann", now_ms=house.now)
    assert house.conductor.rollout(sick)["state"] == "aborted"


@pytest.mark.parametrize(
    "gate",
    [
        {"alpha": 0}, {"alpha": 2}, {"beta": 0}, {"failed_share": -1}, {"reported_share": 2}, {"soak_windows": -1},
        {"error_limit": 0}, {"error": {"r0": 0, "r1": 1.5}}, {"error": {"r0": 1.1, "r1": 1}},
        {"slow": {"r0": 1.1, "r1": 1.5, "delta": 0}},
        {"alhpa": 0.01}, {"error": {"r0": 1.1, "r1": 1.5, "dleta": 0.1}},
    ],
    ids=str,
)  # fmt: skip
def test_a_gate_that_cannot_judge_or_has_a_misspelt_field_is_not_accepted(gate: dict[str, Any]) -> None:
    body = msgspec.json.encode({"model": "digits", "version": "2.0.0", "gate": gate})
    with pytest.raises(ContractError, match=r"rollout\.gate"):
        decode(RolloutSpec, body, name="rollout", limit=9999, wire="json")


def test_a_gate_out_of_bounds_is_not_stored_and_a_stored_one_can_still_be_aborted(lived_in: House) -> None:
    house = lived_in
    with pytest.raises(ContractError, match="alpha"):
        house.start("2.0.0", gate=GatePolicy(alpha=0))
    name = house.start("2.0.0")
    where = control.rollouts.c.id == name
    with house.control.begin() as connection:  # as an earlier release took it
        spec = connection.execute(sa.select(control.rollouts.c.spec).where(where)).scalar_one()
        gate = {**spec["gate"], "alpha": 0.0}
        connection.execute(control.rollouts.update().where(where).values(spec={**spec, "gate": gate}))
    house.tick()
    with house.control.connect() as connection:
        assert gate_of(connection.execute(sa.select(control.rollouts).where(where)).one()).policy == GatePolicy()
    house.conductor.command(name, "abort", who="ann", now_ms=house.now)
    assert house.conductor.rollout(name)["state"] == "aborted"


def test_a_tick_of_the_rollouts_does_not_wait_for_drift(lived_in: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(lived_in.conductor.drift, "tick", breaks)
    lived_in.start("2.0.0")
    lived_in.conductor.tick(lived_in.now)
    assert lived_in.conductor.rollouts()[0]["devices_exposed"] == 1


def test_a_large_fleet_is_stepped_ten_times_in_a_window_and_nothing_waits_that_must_not(
    lived_in: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = lived_in
    monkeypatch.setattr(rounds, "OFTEN", 0)
    monkeypatch.setattr(rounds, "PACE_MS", 1000.0)

    def stepped(after_ms: int) -> bool:
        """Whether the tick so much later does."""
        house.now += after_ms
        house.report(house.row("pi-0", "1.0.0"))
        before = _position(house)
        house.tick()
        return _position(house) > before

    house.start("2.0.0", stages=("100%",), window_s=5.0)
    assert stepped(1), "a new one is begun at once"
    assert [stepped(ms) for ms in (100, 399, 1, 499, 1)] == [False, False, True, False, True]
    house.conductor.revoke("digits", "2.0.0", reason="wrong", who="ann", now_ms=house.now)
    assert {house.version(d) for d in EIGHT} == {"2.0.0"}, "its rollout takes it back"
    assert stepped(1)
    assert {house.version(d) for d in EIGHT} == {"1.0.0"}


def _position(house: House) -> int:
    c = control.cursors.c
    with house.control.connect() as connection:
        return int(connection.execute(sa.select(c.position).where(c.name == "rollout.windows")).scalar_one())
