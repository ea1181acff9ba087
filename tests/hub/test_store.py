from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import RequestError
from edgewright_hub.storage import control, telemetry
from edgewright_hub.storage.store import Schema, check

BOTH = pytest.mark.parametrize(
    ("opened", "module", "schema"),
    [(telemetry.open_telemetry, telemetry, "telemetry"), (control.open_control, control, "control")],
)
Opened = Callable[[Path], sa.Engine]


@BOTH
def test_the_migrations_make_exactly_the_tables_of_the_code(
    tmp_path: Path, opened: Opened, module: ModuleType, schema: Schema
) -> None:
    engine = opened(tmp_path / "x.db")
    check(engine, module.metadata, schema)
    engine.dispose()


@BOTH
def test_opening_again_keeps_the_rows_and_another_user_cannot_read_them(
    tmp_path: Path, opened: Opened, module: ModuleType, schema: Schema
) -> None:
    opened(tmp_path / "x.db").dispose()
    engine = opened(tmp_path / "x.db")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        full = connection.exec_driver_sql("PRAGMA synchronous").scalar()
    assert full == 2
    assert (tmp_path / "x.db").stat().st_mode & 0o077 == 0
    engine.dispose()


@BOTH
def test_a_database_of_a_newer_release_is_refused_with_the_way_out(
    tmp_path: Path, opened: Opened, module: ModuleType, schema: Schema
) -> None:
    engine = opened(tmp_path / "x.db")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'tomorrow'"))
    engine.dispose()
    with pytest.raises(RequestError, match="newer release"):
        opened(tmp_path / "x.db")


def test_ids_of_windows_never_come_back_after_retention(telemetry_engine: sa.Engine) -> None:
    letter = {"arrived_ms": 0, "topic": "", "reason": "", "body": b""}
    with telemetry_engine.begin() as connection:
        connection.execute(telemetry.dead_letters.insert(), [letter, letter])
        connection.execute(telemetry.dead_letters.delete())
        connection.execute(telemetry.dead_letters.insert(), [letter])
        assert connection.execute(sa.select(telemetry.dead_letters.c.id)).scalar_one() == 3
