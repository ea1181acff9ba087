"""What is removed and when, what stays for those who have not read it, and what no query has to walk through."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from edgewright_contracts.package import Package
from edgewright_hub import retention
from edgewright_hub.ingest import device_hours
from edgewright_hub.ingest.writer import commit
from edgewright_hub.registry.registry import Registry
from edgewright_hub.retention import DAY_MS, HOUR_MS
from edgewright_hub.storage import telemetry
from edgewright_hub.web import pages
from edgewright_hub.web.api import Hub
from edgewright_hub.web.app import page_app
from sim import wire
from sim.house import House
from sim.postgresql import ASKED


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    house = House(tmp_path, packages)
    house.publish_package("1.0.0")
    house.publish_package("2.0.0")
    house.enrol("pi-0", "pi-1")
    return house


def shorten(house: House) -> None:
    while device_hours.tick(house.telemetry):
        pass
    while retention.shorten(house.control, house.telemetry, house.now):
        pass


def ages_h(house: House) -> list[float]:
    with house.telemetry.connect() as connection:
        starts = connection.execute(sa.select(telemetry.windows.c.start_ms).order_by(telemetry.windows.c.id)).scalars()
        return [(house.now - start) / HOUR_MS for start in starts]


def test_windows_stay_a_day_and_the_rest_of_them_goes_in_small_steps(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    for hours in (30, 29, 28, 27, 26, 25, 24.1, 23.9, 1, 0):
        house.window("pi-0", "1.0.0", start_ms=house.now - int(hours * HOUR_MS))
    shorten(house)
    assert len(ages_h(house)) == 10, "nobody has read them"
    house.tick()
    assert retention.shorten(house.control, house.telemetry, house.now)
    assert len(ages_h(house)) == 7
    shorten(house)
    assert ages_h(house) == [23.9, 1, 0]


def test_what_drift_has_not_read_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.window("pi-0", "1.0.0", start_ms=house.now - 2 * DAY_MS)
    house.tick()
    house.window("pi-0", "1.0.0", start_ms=house.now - 2 * DAY_MS)
    monkeypatch.setattr(house.conductor.drift, "tick", lambda _: False)
    house.tick()
    shorten(house)
    assert len(ages_h(house)) == 1
    monkeypatch.undo()
    house.now += 10 * 60_000  # drift stores what it read after some minutes
    house.tick()
    shorten(house)
    assert ages_h(house) == []


def test_a_rollout_under_way_keeps_the_day_before_it_but_not_for_ever(house: House) -> None:
    for hours in (25, 23):
        house.window("pi-0", "1.0.0", start_ms=house.now - hours * HOUR_MS)
    house.start("1.0.0", stages=("100%",))
    house.now += 10 * DAY_MS
    house.tick()
    shorten(house)
    assert ages_h(house) == [240 + 23]
    house.now += 5 * DAY_MS
    shorten(house)
    assert ages_h(house) == []


def test_a_rollout_goes_on_the_same_while_retention_runs(tmp_path: Path, packages: dict[str, Package]) -> None:
    def run(place: Path, *, shortened: bool) -> list[Any]:
        house = House(place, packages)
        for version in packages:
            house.publish_package(version)
        devices = [f"pi-{i}" for i in range(4)]
        house.enrol(*devices)
        house.start("1.0.0", stages=("100%",))
        house.live(devices, 30, until="done")
        house.now += 3 * DAY_MS  # all of that is old now
        house.live(devices, 20)
        house.start("2.0.0")
        trace = []
        for _ in range(40):
            if shortened:
                shorten(house)
            seen = house.live(devices, 1)
            trace.append((seen["state"], seen["stage"], seen["figures"], seen["devices_by_status"]))
        assert (min(ages_h(house)) > 0) or not shortened
        return trace

    assert run(tmp_path / "a", shortened=True) == run(tmp_path / "b", shortened=False)


def test_events_stay_thirty_days(house: House) -> None:
    for days in (40, 31, 29):
        house.event("pi-0", "1.0.0", "fetch", "stage", arrived_ms=house.now - days * DAY_MS)
    house.tick()
    shorten(house)
    with house.telemetry.connect() as connection:
        kept = connection.execute(sa.select(telemetry.events.c.arrived_ms)).scalars().all()
    assert kept == [house.now - 29 * DAY_MS]


def test_rollups_stay_by_their_tier(telemetry_engine: sa.Engine, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for i, days in enumerate((400, 364, 31, 29, 3, 1)):
        at = house.now - days * DAY_MS
        body = wire.report_bytes(i + 1, wall_start_ms=at, mono_end_ms=60_000)
        commit(telemetry_engine, [wire.message("cam-1", "report", body, at + 60_000)], lambda _: "lab")
    while retention.shorten(house.control, telemetry_engine, house.now):
        pass
    r = telemetry.rollups.c
    with telemetry_engine.connect() as connection:
        rows = connection.execute(sa.select(r.tier_s, sa.func.count()).group_by(r.tier_s))
        assert {row[0]: row[1] for row in rows} == {60: 1, 300: 3, 3600: 5}


def _hub(house: House) -> Hub:
    class Quiet(Registry):
        def warning(self, **_: Any) -> None:
            return None

    return Hub(
        control=house.control, telemetry=house.telemetry,
        registry=Quiet(house.place / "repo", house.place / "keys", house.control),
        authority=None, conductor=house.conductor, broker=("127.0.0.1", 1883), repo="", ails=list, open_to_read=True,
    )  # type: ignore[arg-type]  # fmt: skip


def test_totals_do_not_shrink_and_say_what_ran_last(house: House) -> None:
    for i, days in enumerate((9, 5, 0)):
        at = house.now - days * DAY_MS
        body = wire.report_bytes(i + 1, wall_start_ms=at, digest=f"{i:016x}", rollout=f"r{i}")
        commit(house.telemetry, [wire.message("pi-0", "report", body, at + 60_000)], lambda _: "lab")
        commit(house.telemetry, [wire.message("pi-0", "report", body, at + 60_000)], lambda _: "lab")  # again
    house.tick()
    shorten(house)
    assert len(ages_h(house)) == 1
    first, second = TestClient(page_app(_hub(house)), base_url="http://127.0.0.1").get("/api/v1/devices").json()
    assert (first["windows"], first["inferences"]) == (3, 30)
    assert first["running"] == {
        "device": "pi-0", "digest": f"{2:016x}", "variant": "onnx-fp32", "phase": "normal", "rollout": "r2"
    }  # fmt: skip
    assert (second["windows"], second["inferences"], second["running"]) == (0, 0, None)


@pytest.mark.skipif(os.environ.get(ASKED) == "postgresql", reason="asks how SQLite finds rows")
def test_no_page_answer_or_tick_walks_through_all_windows_or_events(house: House) -> None:
    """SQLite says how it would find the rows of each query; SCAN of a big table, other than in id order, is not it."""
    house.start("1.0.0", stages=("100%",))
    house.live(["pi-0", "pi-1"], 20, until="done")
    house.start("2.0.0")
    asked: list[tuple[str, Any]] = []
    listen = (house.telemetry, "before_cursor_execute", lambda _c, _u, sql, values, *_: asked.append((sql, values)))
    sa.event.listen(*listen)
    hub = _hub(house)
    for page in (pages.render, pages.render_fleet, pages.render_registry):
        page(hub, house.now)
    pages.render_device(hub, "pi-0", house.now)
    pages._mark(hub)
    TestClient(page_app(hub), base_url="http://127.0.0.1").get("/api/v1/devices")
    house.live(["pi-0", "pi-1"], 3)
    house.enrol("pi-2")
    house.live(["pi-0", "pi-1"], 1)
    shorten(house)
    sa.event.remove(*listen)
    reads = [(sql, values) for sql, values in asked if sql.lstrip().startswith(("SELECT", "DELETE"))]
    assert len(reads) > 10
    with house.telemetry.connect() as connection:
        for sql, values in reads:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).all()
            scans = [step for *_, step in plan if re.match(r"SCAN (windows|events|rollups)", step)]
            assert not scans or re.search(r"ORDER BY events.id DESC\s+LIMIT", sql), f"{scans} for {sql}"
