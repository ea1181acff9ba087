"""The hub on PostgreSQL: rollouts, drift and retention decide there as they do on SQLite, and an outage loses nothing.

All other tests of the hub run there too: EDGEWRIGHT_TEST_DATABASE=postgresql pytest tests/hub.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.package import Package
from edgewright_hub import doctor, retention
from edgewright_hub.ingest import device_hours
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import control, telemetry
from edgewright_hub.storage.control import open_control
from edgewright_hub.storage.places import NAME, places
from edgewright_hub.storage.store import check, held, server_url
from edgewright_hub.storage.telemetry import open_telemetry
from sim import wire
from sim.house import House
from sim.postgresql import Server, chosen

PIS = [f"pi-{i}" for i in range(4)]


def _lived(place: Path, packages: dict[str, Package], *, asked: bool) -> list[Any]:
    """What a house sees from its first release to the end of a bad second one."""
    chosen(place, asked=asked)
    house = House(place, packages)
    for version in packages:
        house.publish_package(version)
    house.enrol(*PIS)
    house.start("1.0.0", stages=("100%",))
    trace: list[Any] = [house.live(PIS, 20, until="done")]
    house.live(PIS, 6)
    house.start("2.0.0")
    for _ in range(12):
        seen = house.live(PIS, 1, wrong=lambda version: 0.6 if version == "2.0.0" else 0.05)
        trace.append({name: seen[name] for name in ("state", "stage", "outcome", "reason", "devices_by_status")})
    with house.control.connect() as connection:
        d = control.drift
        trace.append([tuple(r) for r in connection.execute(sa.select(d).order_by(*d.primary_key.columns))])
    house.now += 3 * retention.DAY_MS
    house.tick()
    while device_hours.tick(house.telemetry):
        pass
    while retention.shorten(house.control, house.telemetry, house.now):
        pass
    for table in (telemetry.windows, telemetry.device_hours, telemetry.events):
        with house.telemetry.connect() as connection:
            trace.append(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar())
    house.control.dispose()
    house.telemetry.dispose()
    return trace


def test_a_fleet_lives_the_same_on_both(tmp_path: Path, packages: dict[str, Package]) -> None:
    one, other = (_lived(tmp_path / str(asked), packages, asked=asked) for asked in (False, True))
    assert one == other
    assert any(isinstance(step, dict) and step.get("outcome") == "rolled back" for step in one) or one[-5]["stage"] == 0


@pytest.mark.parametrize("schema", ["telemetry", "control"])
def test_the_migrations_make_exactly_the_tables_of_the_code(database_url: str, schema: Any) -> None:
    opened, module = {"telemetry": (open_telemetry, telemetry), "control": (open_control, control)}[schema]
    engine = opened(database_url)
    check(engine, module.metadata, schema)
    engine.dispose()


def test_the_url_is_kept_for_the_next_start_and_for_its_owner_only(tmp_path: Path) -> None:
    stored = chosen(tmp_path, asked=True)
    assert places(tmp_path) == stored
    assert (tmp_path / NAME).stat().st_mode & 0o077 == 0
    found = {one.check: one for one in doctor._databases(tmp_path, datetime.now(UTC))}
    assert found["hub.db"].well
    assert found["telemetry.db"].well
    assert "telemetry_0" in found["telemetry.db"].said


@pytest.mark.parametrize("url", ["mysql://host/name", "hub.db", "postgresql+asyncpg://host/name"])
def test_another_kind_of_server_is_refused_with_what_is_expected(url: str) -> None:
    with pytest.raises(RequestError, match=r"postgresql://USER@HOST/NAME"):
        server_url(url)


def test_a_second_hub_on_one_database_is_refused_while_the_first_runs(database_url: str) -> None:
    one, other = open_control(database_url), open_control(database_url)
    with held(one), pytest.raises(Unavailable, match="another hub keeps"), held(other):
        pass
    with held(other):
        pass
    one.dispose()
    other.dispose()


def test_a_server_that_restarts_loses_nothing_and_the_batch_may_be_given_again() -> None:
    one = Server()
    try:
        engine = open_telemetry(one.url())
        first = wire.message("cam-1", "report", wire.report_bytes(1), 1_800_000_000_000)
        second = wire.message("cam-1", "report", wire.report_bytes(2), 1_800_000_000_000)
        commit(engine, [first], lambda _: "lab")
        one.stop()
        with pytest.raises(sa.exc.OperationalError):
            commit(engine, [first, second], lambda _: "lab")
        one.start()
        commit(engine, [first, second], lambda _: "lab")
        with engine.connect() as connection:
            assert connection.execute(sa.select(sa.func.sum(telemetry.windows.c.n))).scalar_one() == 20
        engine.dispose()
    finally:
        one.close()
