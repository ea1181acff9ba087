"""Drift of devices and cohorts from the windows in telemetry.db: who is reported, as what, what operators decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.binning import pack
from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.package import Package
from edgewright_hub.drift import days
from edgewright_hub.drift.budget import Budget
from edgewright_hub.drift.fleet_drift import CURSOR, describe
from edgewright_hub.fleet.enrolment import retire
from edgewright_hub.ingest.ingest import Known
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import control, telemetry
from sim import wire
from sim.house import HOUR, House, draw_cells

EIGHT = [f"pi-{i}" for i in range(8)]
MINUTES_5 = 300_000


def _new(place: Path, packages: dict[str, Package]) -> House:
    house = House(place, packages)
    house.publish_package("1.0.0")
    house.publish_package("2.0.0")
    house.enrol(*EIGHT)
    return house


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    return _new(tmp_path, packages)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    house = _new(tmp_path_factory.mktemp("grown"), packages)
    _live(house, EIGHT, 14)
    return house


@pytest.fixture
def learned(tmp_path: Path, grown: House) -> House:
    """The normal of eight devices is known."""
    return grown.copy(tmp_path)


Draw = Callable[[str, np.random.Generator], np.ndarray]


def _live(
    house: House,
    devices: Iterable[str],
    windows: int,
    *,
    moved: Iterable[str] = (),
    cells: Draw | None = None,
    n: int = 250,
    step: int = MINUTES_5,
    behind: Iterable[str] = (),
    version: str = "1.0.0",
    **more: Any,
) -> None:
    """Devices report windows drawn from the reference of a version; of those in `moved` the input is
    shifted; the clocks of those that are `behind` stood still for 26 hours."""
    package, shifted, slow = house.packages[version], set(moved), set(behind)
    for _ in range(windows):
        house.now += step
        rows = [
            house.row(
                device, version, n=n, n_monitored=n, mono_start_ms=0, mono_end_ms=step,
                start_ms=house.now - step - (device in slow) * 26 * HOUR,
                cells=cells(device, house.rng) if cells else draw_cells(package, n, house.rng, shift=device in shifted),
                **more,
            )
            for device in devices
        ]  # fmt: skip
        house.report(*rows)
        house.conductor.drift.tick(house.now)


def _verdicts(house: House, **where: str) -> list[dict[str, Any]]:
    return [v for v in house.conductor.drift.verdicts() if all(v[name] == value for name, value in where.items())]


def _alarms(house: House) -> set[tuple[str, str]]:
    return {(v["subject"], v["part"]) for v in _verdicts(house, verdict="alarm")}


def test_drift_is_reported_for_the_devices_that_moved_and_for_no_other(learned: House) -> None:
    house, moved = learned, EIGHT[:4]
    assert {v["verdict"] for v in _verdicts(house)} == {"ok"}
    began = house.now
    house.restart()
    _live(house, EIGHT, 4, moved=moved)
    assert _alarms(house) == {(device, "input") for device in [*moved, "lab"]}
    one = _verdicts(house, subject="pi-0", verdict="alarm")[0]
    assert began - MINUTES_5 <= one["since_ms"] <= house.now
    base = decode_baseline(house.packages["1.0.0"].read("variants/onnx-fp32/baseline.msgpack"))
    assert {c["name"] for c in one["channels"]} <= {c.name for c in base.channels if c.group == "input"}
    assert one["channels"][0]["js_beyond_chance"] >= 0.05
    assert (one["baseline"], one["kinds"], one["severity"]) == ("own", ["input shift, unfelt"], 1)
    cohort = _verdicts(house, scope="cohort", verdict="alarm")
    assert [(v["subject"], v["part"], v["devices"]) for v in cohort] == [("lab", "input", moved)]
    beneath = [v for v in _verdicts(house, scope="device", part="input") if v["subject"] in moved]
    for name in ("n", "blocks"):
        assert cohort[0][name] == sum(v[name] for v in beneath) > 0
    assert {v["n"] for v in _verdicts(house, scope="cohort", verdict="ok")} == {0}, "whole blocks, and nothing open"
    assert {v["blocks"] for v in _verdicts(house, scope="cohort", verdict="ok")} == {8 * 18}
    assert house.conductor.drift.acknowledge("pi-0", who="ann", now_ms=house.now) == 1
    assert ("pi-0", "input") not in _alarms(house)


def test_a_fleet_that_does_not_move_is_left_in_peace(house: House) -> None:
    _live(house, EIGHT[:4], 60)
    assert {v["blocks"] for v in _verdicts(house, scope="device")} == {60}
    assert {v["verdict"] for v in _verdicts(house)} == {"ok"}


def test_a_device_that_always_differed_from_training_is_skewed_and_not_drifting(house: House) -> None:
    _live(house, EIGHT, 14, moved=["pi-0"])
    assert _alarms(house) == set()
    skewed = _verdicts(house, verdict="skewed")
    assert [(v["subject"], v["part"], v["kinds"]) for v in skewed] == [("pi-0", "input", ["training-serving skew"])]
    assert skewed[0]["channels"]
    assert _alerts(house) == {"pi-0": "ticket"}
    house.conductor.drift.acknowledge("pi-0", who="ann", now_ms=house.now)
    _live(house, EIGHT, 6, moved=["pi-0"])
    assert {v["verdict"] for v in _verdicts(house)} == {"ok"}, "it agrees with itself, and somebody knows it differs"


def test_a_fleet_that_always_differed_is_skewed_as_a_whole(house: House) -> None:
    _live(house, EIGHT, 14, moved=EIGHT)
    cohort = _verdicts(house, scope="cohort", verdict="skewed")
    assert [(v["part"], v["kinds"], len(v["devices"])) for v in cohort] == [("input", ["training-serving skew"], 8)]


def test_a_device_that_moved_before_its_baseline_was_complete_has_moved(house: House) -> None:
    _live(house, EIGHT, 7)
    _live(house, EIGHT, 4, moved=["pi-0"])
    assert ("pi-0", "input") in _alarms(house)
    assert _verdicts(house, subject="pi-0", part="input")[0]["baseline"] == "cohort"


def test_an_alarm_ends_after_three_quiet_days(learned: House) -> None:
    house = learned
    _live(house, ["pi-0"], 7, step=4 * HOUR)
    _live(house, ["pi-0"], 4, moved=["pi-0"], step=4 * HOUR)
    assert ("pi-0", "input") in _alarms(house)
    _live(house, ["pi-0"], 14, step=4 * HOUR)
    assert ("pi-0", "input") in _alarms(house)
    _live(house, ["pi-0"], 22, step=4 * HOUR)
    assert ("pi-0", "input") not in _alarms(house)


def test_a_device_in_alarm_does_not_teach_its_own_baseline(learned: House) -> None:
    house = learned
    _live(house, ["pi-0"], 40, moved=["pi-0"])
    assert ("pi-0", "input") in _alarms(house)
    house.conductor.drift.acknowledge("pi-0", who="ann", now_ms=house.now)
    _live(house, ["pi-0"], 4, moved=["pi-0"])
    assert ("pi-0", "input") in _alarms(house), "what goes on moving is reported again"


def test_windows_of_other_channels_are_counted_apart(house: House) -> None:
    cells = draw_cells(house.packages["1.0.0"], 500, np.random.default_rng(8), shift=True)
    house.window("pi-0", "1.0.0", n=500, n_monitored=500, cells=cells, edge_hash="f" * 16)
    house.window("pi-0", "1.0.0", n=500, n_monitored=500, cells=cells[:-1])
    house.conductor.drift.tick(house.now)
    mine = _verdicts(house, subject="pi-0")
    assert {(v["foreign_windows"], v["blocks"], v["verdict"]) for v in mine} == {(2, 0, "learning")}


def test_contexts_that_the_package_does_not_declare_make_no_streams(house: House) -> None:
    cells = draw_cells(house.packages["1.0.0"], 100, np.random.default_rng(8))
    more = {"n": 100, "n_monitored": 100, "cells": cells}
    house.report(*(house.row("pi-0", "1.0.0", context=f"x{i}", **more) for i in range(50)))
    house.window("pi-0", "1.0.0", context="night", **more)
    house.conductor.drift.tick(house.now)
    mine = _verdicts(house, subject="pi-0")
    assert {v["context"] for v in mine} == {"", "night"}
    assert {v["foreign_windows"] for v in mine if v["context"] == ""} == {50}
    assert {(v["foreign_windows"], v["n"]) for v in mine if v["context"] == "night"} == {(0, 100)}


def test_a_manifest_that_cannot_be_read_stops_drift_of_no_other_package(
    learned: House, caplog: pytest.LogCaptureFixture
) -> None:
    house = learned
    with house.control.begin() as connection:
        row = {"name": "cars", "version": "1", "digest": "c" * 64, "state": "allowed", "published_ms": 1}
        connection.execute(control.packages.insert().values(**row, manifest={}))
    house.restart()
    _live(house, ["pi-0"], 4, moved=["pi-0"])
    assert ("pi-0", "input") in _alarms(house)
    assert caplog.text.count("no drift for cars") == 1


def test_acknowledging_a_fleet_acknowledges_its_devices_and_no_others(learned: House) -> None:
    house = learned
    house.enrol("far", fleet="field")
    _live(house, ["far"], 14)
    house.restart()
    _live(house, ["pi-0", "pi-1", "pi-2", "far"], 9, moved=["pi-0", "pi-1", "far"])
    mine, others = {("lab", "input"), ("pi-0", "input"), ("pi-1", "input")}, {("field", "input"), ("far", "input")}
    assert _alarms(house) == mine | others
    assert house.conductor.drift.acknowledge("lab", who="ann", now_ms=house.now) == 3
    assert {v["model"] for v in _verdicts(house)} == {"digits"}
    assert _alarms(house) == others
    _live(house, ["pi-2"], 1)
    assert _alarms(house) == others, "and does not come back with the next window"


def test_a_stream_ends_when_its_device_goes_on_to_another_digest(house: House) -> None:
    first, second = (house.packages[v].digest[:16] for v in ("1.0.0", "2.0.0"))
    rng = np.random.default_rng(9)
    for version, ended in (("1.0.0", None), ("2.0.0", first), ("1.0.0", second)):
        house.now += MINUTES_5
        house.window("pi-0", version, n=300, n_monitored=300, cells=draw_cells(house.packages[version], 300, rng))
        house.conductor.drift.tick(house.now)
        assert {v["digest"] for v in _verdicts(house, subject="pi-0", verdict="ended")} == ({ended} if ended else set())


@pytest.mark.parametrize("labels", [{"placed": "import"}, {"outcomes": {"correct": [20, 19]}}])
def test_labels_of_a_version_that_a_device_ran_before_end_no_alarm(learned: House, labels: dict[str, Any]) -> None:
    house = learned
    _live(house, EIGHT, 4, moved=["pi-0"])
    alarms, alerts = _alarms(house), _alerts(house)
    assert ("pi-0", "input") in alarms
    house.window("pi-0", "2.0.0", n=0, labels_n=20, labels_wrong=1, **labels)
    house.conductor.drift.tick(house.now)
    assert (_alarms(house), _alerts(house)) == (alarms, alerts)
    assert {v["digest"] for v in _verdicts(house)} == {house.packages["1.0.0"].digest[:16]}
    with house.control.connect() as connection:
        read = connection.execute(
            sa.select(control.cursors.c.position).where(control.cursors.c.name == CURSOR)
        ).scalar()
    assert read == _last_window(house), "it counts as read, so that it can be removed"


def test_what_comes_late_of_a_version_that_a_device_ran_before_is_counted_there_and_ends_no_alarm(
    learned: House,
) -> None:
    house = learned
    first, second = (house.packages[v].digest[:16] for v in ("1.0.0", "2.0.0"))
    _live(house, EIGHT, 4, moved=["pi-0"])
    alarms, alerts, budget = _alarms(house), _alerts(house), house.conductor.drift.budget()
    assert ("pi-0", "input") in alarms
    cells = draw_cells(house.packages["2.0.0"], 250, house.rng)
    # numbered before, and come now; then counted in the same span as what runs: an answer that was under way
    for more in ({"seq": 0}, {"mono_end_ms": MINUTES_5, "start_ms": house.now - MINUTES_5}):
        house.window("pi-0", "2.0.0", n=250, n_monitored=250, cells=cells, **more)
        house.conductor.drift.tick(house.now)
        assert (_alarms(house), _alerts(house), house.conductor.drift.budget()) == (alarms, alerts, budget)
    late = _verdicts(house, subject="pi-0", digest=second)
    assert {(v["verdict"], v["blocks"]) for v in late} == {("ended", 2)}
    house.now += MINUTES_5
    house.window("pi-0", "2.0.0", n=250, n_monitored=250, cells=cells)
    house.conductor.drift.tick(house.now)
    assert {v["verdict"] for v in _verdicts(house, subject="pi-0", digest=first)} == {"ended"}
    assert {v["verdict"] for v in _verdicts(house, subject="pi-0", digest=second)} <= {"ok", "learning"}


def _last_window(house: House) -> int:
    with house.telemetry.connect() as connection:
        return int(connection.execute(sa.select(sa.func.max(telemetry.windows.c.id))).scalar_one())


def test_a_release_that_was_sent_back_leaves_the_evidence_of_a_page_as_it_was(learned: House) -> None:
    house = learned
    before = house.conductor.drift.budget()
    _live(house, EIGHT[:2], 2, version="2.0.0")
    with_both = house.conductor.drift.budget()
    assert (before["streams"], with_both["streams"]) == (32, 32), "those that wait for their device are not tested"
    assert with_both["log_e_cohort"] - before["log_e_cohort"] == pytest.approx(np.log(2))
    _live(house, EIGHT, 1)
    assert house.conductor.drift.budget() == before


@pytest.mark.parametrize("restarted", [False, True])
def test_a_digest_that_nobody_runs_leaves_memory_and_is_remembered(learned: House, restarted: bool) -> None:
    house = learned
    first, second = (house.packages[v].digest[:16] for v in ("1.0.0", "2.0.0"))
    _live(house, EIGHT, 2, version="2.0.0")
    assert _in_memory(house) == {first, second}, "they may come back at any moment"
    _live(house, EIGHT, 4, version="2.0.0", step=8 * HOUR)
    assert _in_memory(house) == {second}
    assert {(v["digest"], v["verdict"]) for v in _verdicts(house)} >= {(first, "ended")}
    if restarted:
        house.restart()
        house.conductor.drift.tick(house.now)
        assert _in_memory(house) == {second}
    _live(house, ["pi-0"], 1)
    mine = _verdicts(house, subject="pi-0", digest=first)
    assert {(v["blocks"], v["verdict"], v["baseline"]) for v in mine} == {(15, "ok", "own")}
    assert {v["verdict"] for v in _verdicts(house, subject="pi-1", digest=first)} == {"ended"}
    assert {v["blocks"] for v in _kept(house) if v["digest"] == first and v["subject"] == "pi-1"} == {14}


def test_what_ended_is_removed_while_the_hub_runs(learned: House) -> None:
    house = learned
    _live(house, EIGHT, 2, version="2.0.0")
    _live(house, EIGHT[:1], 32, version="2.0.0", step=24 * HOUR)
    second = house.packages["2.0.0"].digest[:16]
    assert {v["digest"] for v in _verdicts(house)} == {second}
    with house.control.connect() as connection:
        spreads = connection.execute(sa.select(control.drift_dispersion.c.digest)).scalars().all()
    assert set(spreads) == {second}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_retired_device_takes_its_alarms_and_its_share_of_the_budget_with_it(learned: House, restarted: bool) -> None:
    house = learned
    house.enrol("far", fleet="field")
    _live(house, ["far"], 14)
    _live(house, ["pi-0", "far"], 5, moved=["far"])
    assert {"far", "field"} <= set(_alerts(house))
    before = house.conductor.drift.budget()
    retire(house.control, "far", who="ann", now_ms=house.now)
    if restarted:
        house.restart()
    house.now += 61_000
    house.conductor.drift.tick(house.now)
    assert (_alarms(house), _alerts(house)) == (set(), {})
    assert {v["verdict"] for v in [*_verdicts(house, subject="far"), *_verdicts(house, subject="field")]} == {"ended"}
    after = house.conductor.drift.budget()
    assert before["streams"] - after["streams"] == 4
    assert before["log_e_cohort"] - after["log_e_cohort"] == pytest.approx(np.log(2))
    _live(house, ["far"], 1, moved=["far"])
    assert {v["verdict"] for v in _verdicts(house, subject="far")} == {"ended"}, "what it had still sent is read last"
    with house.control.begin() as connection:
        connection.execute(control.devices.update().values(state="enrolled"))
    _live(house, ["far"], 1, moved=["far"])
    assert ("far", "input") in _alarms(house), "enrolled again it goes on where it was"


def test_an_alarm_of_a_cohort_that_is_removed_ends(learned: House) -> None:
    house = learned
    with house.control.begin() as connection:
        row = {"name": "door", "selector": "id=pi-0", "at_ms": 1, "who": "ann"}
        connection.execute(control.cohorts.insert().values(**row))
    house.now += HOUR
    _live(house, EIGHT, 4, moved=["pi-0"])
    assert "door" in _alerts(house)
    with house.control.begin() as connection:
        connection.execute(control.cohorts.delete())
    house.now += 61_000
    house.conductor.drift.tick(house.now)
    assert "door" not in _alerts(house)
    assert {v["verdict"] for v in _verdicts(house, subject="door")} == {"ended"}


def _in_memory(house: House) -> set[str]:
    return {key.digest for key in house.conductor.drift._watch.groups}


def test_drift_that_cannot_be_stored_is_counted_once_later(house: House) -> None:
    rng = np.random.default_rng(10)
    house.window("pi-0", "1.0.0", n=300, n_monitored=300, cells=draw_cells(house.packages["1.0.0"], 300, rng))

    def refuse(*_: Any) -> None:
        raise sa.exc.OperationalError("disk full", {}, Exception())

    sa.event.listen(house.control, "commit", refuse)
    with pytest.raises(sa.exc.OperationalError):
        house.conductor.drift.tick(house.now)
    sa.event.remove(house.control, "commit", refuse)
    house.conductor.drift.tick(house.now)
    assert {v["blocks"] for v in _verdicts(house, subject="pi-0")} == {1}


def test_after_a_tick_that_failed_people_read_what_was_stored(learned: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house = learned
    _verdicts(house)
    _live(house, EIGHT, 1, step=60_000)
    _live(house, EIGHT, 1, step=60_000)
    drift, stored = house.conductor.drift, {v["blocks"] for v in _kept(house)}

    def fail(_: object) -> None:
        raise MemoryError

    house.window("pi-0", "1.0.0")
    with monkeypatch.context() as patched:
        patched.setattr(drift._watch, "decide", fail)
        with pytest.raises(MemoryError):
            drift.tick(house.now)
    assert {v["blocks"] for v in _verdicts(house, scope="device")} == stored
    drift.tick(house.now)
    assert {v["blocks"] for v in _verdicts(house, scope="device")} == {16}


def test_a_reference_that_is_gone_stops_drift_of_that_package_only(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(11)
    lost = house.packages["2.0.0"].manifest.files["variants/onnx-fp32/baseline.msgpack"].sha256
    (house.registry.blobs / lost).unlink()
    for device, version in (("pi-0", "2.0.0"), ("pi-1", "1.0.0")):
        house.window(device, version, n=300, n_monitored=300, cells=draw_cells(house.packages[version], 300, rng))
    house.conductor.drift.tick(house.now)
    assert {v["subject"] for v in _verdicts(house, scope="device")} == {"pi-1"}
    assert "no drift for digits onnx-fp32" in caplog.text


def test_what_is_accepted_is_the_new_normal_and_can_be_taken_back(learned: House) -> None:
    house = learned
    drift = house.conductor.drift
    _live(house, EIGHT, 10, moved=["pi-0"])
    assert ("pi-0", "input") in _alarms(house)
    with pytest.raises(RequestError, match="expected a reason"):
        drift.accept("pi-0", who="ann", reason=" ", now_ms=house.now)
    assert ("pi-0", "input") in _alarms(house), "nothing was changed"
    assert drift.accept("pi-0", who="ann", reason="new lens", now_ms=house.now)["accepted"] == 1
    _live(house, EIGHT, 10, moved=["pi-0"])
    assert _alarms(house) == set()
    assert [v["accepted"] for v in _verdicts(house, subject="pi-0", part="input")] == [True]
    house.restart()
    _live(house, EIGHT, 6)
    assert ("pi-0", "input") in _alarms(house), "what was normal before is a drift now"
    house.conductor.drift.undo("pi-0", who="ann", reason="old lens again", now_ms=house.now)
    _live(house, EIGHT, 6)
    assert _alarms(house) == set()
    with pytest.raises(RequestError, match="nothing was accepted for 'pi-0'"):
        house.conductor.drift.undo("pi-0", who="ann", reason="again", now_ms=house.now)
    with house.control.connect() as connection:
        said = [row.what for row in connection.execute(sa.select(control.audit).where(control.audit.c.who == "ann"))]
    assert said == ["drift accept", "drift undo"]


def test_a_fleets_new_normal_is_that_of_its_devices_in_alarm(learned: House) -> None:
    house = learned
    _live(house, EIGHT, 10, moved=EIGHT[:3])
    assert house.conductor.drift.accept("lab", who="ann", reason="lamps", now_ms=house.now)["accepted"] == 3
    _live(house, EIGHT, 8, moved=EIGHT[:3])
    assert _alarms(house) == set()


def test_acceptances_of_the_same_streams_are_undone_the_newest_first(learned: House) -> None:
    house = learned
    drift, now = house.conductor.drift, {"who": "ann", "reason": "lamps"}
    _live(house, EIGHT[:2], 10, moved=EIGHT[:2])
    drift.accept("lab", now_ms=house.now, **now)
    _live(house, EIGHT[:1], 14, moved=EIGHT[:1])
    _live(house, EIGHT[:1], 6)
    assert ("pi-0", "input") in _alarms(house)
    drift.accept("pi-0", now_ms=house.now, **now)
    with pytest.raises(Refused, match="accepted for 'pi-0' came later"):
        drift.undo("lab", now_ms=house.now, **now)
    drift.undo("pi-0", now_ms=house.now, **now)
    _live(house, EIGHT[:1], 4, moved=EIGHT[:1])
    assert _alarms(house) == set(), "the lamps are the normal again"
    drift.undo("lab", now_ms=house.now, **now)
    _live(house, EIGHT[:1], 6)
    assert _alarms(house) == set(), "and now the time before them"


def test_what_is_taken_back_of_a_release_that_nobody_runs_any_more_has_still_ended(learned: House) -> None:
    house = learned
    _live(house, EIGHT[:1], 10, moved=EIGHT[:1])
    house.conductor.drift.accept("pi-0", who="ann", reason="new lens", now_ms=house.now)
    _live(house, EIGHT, 4, version="2.0.0", step=8 * HOUR)
    before = house.conductor.drift.budget()
    house.conductor.drift.undo("pi-0", who="ann", reason="old lens again", now_ms=house.now)
    assert house.conductor.drift.budget() == before
    mine = _verdicts(house, subject="pi-0", part="input", digest=house.packages["1.0.0"].digest[:16])
    assert [(v["verdict"], v["accepted"]) for v in mine] == [("ended", False)]


def test_the_budget_is_kept_and_sets_what_a_page_needs(learned: House) -> None:
    house = learned
    drift = house.conductor.drift
    strict, before = drift.set_budget(0.01, who="ann", reason="nights", now_ms=house.now), Budget().false_pages_a_month
    house.restart()
    assert house.conductor.drift.budget() == strict
    loose = house.conductor.drift.set_budget(10.0, who="ann", reason="days", now_ms=house.now)
    assert strict["log_e_device"] - loose["log_e_device"] == pytest.approx(np.log(1000))
    assert (strict["streams"], before) == (8 * 4, 1.0)
    with pytest.raises(RequestError, match=r"0\.001 to 10000"):
        house.conductor.drift.set_budget(0, who="ann", reason="never", now_ms=house.now)


def test_repeated_input_is_named_although_no_channel_moves(learned: House) -> None:
    house = learned
    _live(house, ["pi-0"], 4, repeated=200)
    assert _alarms(house) >= {("pi-0", "feed")}
    assert _verdicts(house, subject="pi-0", part="feed")[0]["kinds"] == ["stale or repeated input"]


def _alerts(house: House) -> dict[str, str]:
    a = control.alerts.c
    with house.control.connect() as connection:
        rows = connection.execute(sa.select(a.subject, a.severity).where(a.open_key.is_not(None)))
        return {row.subject: row.severity for row in rows}


def test_a_cohort_pages_once_and_its_devices_are_listed(learned: House) -> None:
    house = learned
    _live(house, EIGHT, 7, step=4 * HOUR)
    _live(house, EIGHT, 4, moved=EIGHT[:2])
    assert _alerts(house) == {"lab": "page", "pi-0": "ticket", "pi-1": "ticket"}
    with house.control.connect() as connection:
        text = connection.execute(sa.select(control.alerts.c.text).where(control.alerts.c.subject == "lab")).scalar()
    assert str(text).startswith("2 devices of lab, digits: input shift, unfelt; moved: input (input.")
    house.conductor.drift.acknowledge("lab", who="ann", now_ms=house.now)
    assert _alerts(house) == {}


def test_an_alarm_of_the_first_day_wakes_nobody_and_ends_with_it(learned: House) -> None:
    """It may be the evening: lamps come on everywhere at once."""
    house = learned
    _live(house, EIGHT, 8, moved=EIGHT)
    assert set(_alerts(house).values()) == {"ticket"}
    house.restart()
    _live(house, EIGHT, 7, moved=EIGHT, step=4 * HOUR)
    assert _alerts(house) == {}, "a whole day is known"
    for _ in range(2):
        _live(house, EIGHT, 4)
        _live(house, EIGHT, 4, moved=EIGHT)
    assert _alerts(house) == {}, "the next evening is none"


def test_a_named_cohort_that_drifts_is_told_and_accepted_by_its_name(learned: House) -> None:
    house = learned
    with house.control.begin() as connection:
        row = {"name": "door", "selector": "id=pi-0;id=pi-1", "at_ms": 1, "who": "ann"}
        connection.execute(control.cohorts.insert().values(**row))
    house.now += HOUR
    _live(house, EIGHT, 7, step=4 * HOUR)
    _live(house, EIGHT, 5, moved=EIGHT[:2])
    door = _verdicts(house, subject="door", part="input")
    assert [(v["scope"], v["verdict"], v["devices"]) for v in door] == [("cohort", "alarm", EIGHT[:2])]
    assert house.conductor.drift.accept("door", who="ann", reason="new lamps", now_ms=house.now)["accepted"] == 2
    _live(house, EIGHT, 6, moved=EIGHT[:2])
    assert _alarms(house) == set()


def test_what_was_read_since_it_was_last_stored_is_read_again_after_a_crash(learned: House) -> None:
    house = learned
    _verdicts(house)
    _live(house, EIGHT, 3, step=60_000)
    blocks = {v["blocks"] for v in _kept(house)}
    assert blocks == {15}, "the first tick after the start writes; then there is nothing to tell"
    house.restart()
    house.conductor.drift.tick(house.now)
    assert {v["blocks"] for v in _verdicts(house, scope="device")} == {17}


def _kept(house: House) -> list[dict[str, Any]]:
    with house.control.connect() as connection:
        return [describe(row._mapping) for row in connection.execute(sa.select(control.drift)) if row.scope == "device"]


def test_the_last_day_of_a_cohort_is_told_from_the_rollups(learned: House) -> None:
    house = learned
    cells = draw_cells(house.packages["1.0.0"], 50_000, house.rng, shift=True)
    window = wire.report_bytes(
        1, n=50_000, n_monitored=50_000, cells=pack(cells), digest=house.packages["1.0.0"].digest[:16],
        edge_hash=house.edges["1.0.0"], wall_start_ms=house.now - 60_000,
    )  # fmt: skip
    commit(house.telemetry, [wire.message("pi-0", "report", window, house.now)], Known(lambda _: "lab"))
    told = {
        one["part"]: one
        for one in days.by_cohort(house.control, house.telemetry, house.registry.blobs, now_ms=house.now)
    }
    furthest = {part: one["channels"][0]["js_beyond_chance"] for part, one in told.items()}
    assert furthest["input"] > 0.1 > 0.05 > max(furthest["embedding"], furthest["output"])
    assert told["input"]["channels"][0]["psi"] > told["input"]["channels"][0]["psi_chance"]


def test_a_silent_device_leaves_the_mean_of_its_cohort_and_keeps_its_alarm(learned: House) -> None:
    house = learned
    _live(house, EIGHT, 4, moved=["pi-0"])
    assert ("lab", "input") in _alarms(house)
    _live(house, EIGHT[1:], 7, step=4 * HOUR)
    assert _alarms(house) == {("pi-0", "input")}


def test_devices_whose_clocks_are_a_day_behind_are_not_silent(learned: House) -> None:
    house, moved = learned, EIGHT[:4]
    house.now += 26 * HOUR
    _live(house, EIGHT, 4, moved=moved, behind=EIGHT[:7])
    cohort = _verdicts(house, scope="cohort", verdict="alarm")
    assert [(v["subject"], v["part"], v["devices"]) for v in cohort] == [("lab", "input", moved)]
