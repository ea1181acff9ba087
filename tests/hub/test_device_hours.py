"""Sums of each device's hour, from its windows; and what a database of an earlier release becomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command

from edgewright_contracts.binning import pack, pack_grid, unpack, unpack_grid
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.report import Hits
from edgewright_hub.ingest import device_hours
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import store, telemetry
from edgewright_hub.storage.histograms import cells_of, latency_bytes, latency_of
from edgewright_hub.storage.places import Places
from edgewright_hub.storage.telemetry import open_telemetry
from sim import wire

HOUR = 3600_000
T0 = 1_800_000_000_000


@pytest.fixture
def engine(stores: Places) -> Iterator[sa.Engine]:
    one = open_telemetry(stores.telemetry)
    yield one
    one.dispose()


def grid(*cells: int) -> np.ndarray:
    out = np.zeros(401, np.int64)
    np.add.at(out, list(cells), 1)
    return out


def take(engine: sa.Engine, seq: int, start_ms: int, *, device: str = "cam-1", **changes: Any) -> None:
    body = wire.report_bytes(seq, wall_start_ms=start_ms, **changes)
    commit(engine, [wire.message(device, "report", body, start_ms + 60_000)], lambda _: "lab")


def hours(engine: sa.Engine) -> list[Any]:
    while device_hours.tick(engine):
        pass
    h = telemetry.device_hours
    with engine.connect() as connection:
        return list(connection.execute(sa.select(h).order_by(*h.primary_key.columns)))


def test_windows_add_to_the_hour_that_they_begin_in_once_also_late_ones(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_hours, "BATCH", 2)
    more = {"errors": {"timeout": 1}, "outcomes": {"correct": Hits(4, 3)}, "shadow": Hits(3, 2), "repeated": 5}
    take(engine, 1, T0, latency_total=pack_grid(grid(7, 7, 300)), **more)
    take(engine, 2, T0 + HOUR - 1, latency_total=pack_grid(grid(7)))
    take(engine, 3, T0 + HOUR)
    take(engine, 1, T0, device="cam-2")
    first, second, other = hours(engine)
    assert (first.t0_ms, first.windows, first.n, first.errors, first.repeated) == (T0, 2, 20, 1, 5)
    assert (first.labels_n, first.labels_wrong, first.shadow_n, first.shadow_agree) == (4, 1, 3, 2)
    assert unpack_grid(first.latency_total).tolist() == grid(7, 7, 7, 300).tolist()
    assert (second.t0_ms, second.windows, other.device) == (T0 + HOUR, 1, "cam-2")
    take(engine, 4, T0 + 5, latency_total=pack_grid(grid(9)))
    first, *_ = hours(engine)
    assert (first.windows, first.n) == (3, 30)
    assert unpack_grid(first.latency_total).tolist() == grid(7, 7, 7, 9, 300).tolist()
    assert hours(engine)[0].windows == 3


def test_outcomes_and_labels_by_confidence_add_up_to_the_most_that_a_cell_holds(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(seq: int, n: int, **more: Any) -> None:
        truth = {"correct": Hits(n, n - 1), **{name: Hits(2, 1) for name in more}}
        sure = pack([0] * 9 + [n] + [0] * 9 + [n - 1])
        take(engine, seq, T0 + seq, outcomes=truth, correct_by_confidence=sure)

    monkeypatch.setattr(device_hours, "BATCH", 2)
    told(1, 200, pick_ok=True)
    take(engine, 2, T0 + 2)
    told(3, 100)
    (one,) = hours(engine)
    assert one.outcomes == {"correct": [300, 298], "pick_ok": [2, 1]}
    assert unpack(one.confidence).tolist() == [0] * 9 + [300] + [0] * 9 + [298]
    take(engine, 1, T0, device="cam-2")
    told(4, 50, pick_ok=True, drop_ok=True)
    one, empty = hours(engine)
    assert one.outcomes == {"correct": [350, 347], "pick_ok": [4, 2], "drop_ok": [2, 1]}
    assert unpack(one.confidence)[[9, 19]].tolist() == [350, 347]
    assert (empty.outcomes, empty.confidence) == ({}, b"")
    for seq in (5, 6):
        sure = pack([0] * 9 + [MAX_COUNT] + [0] * 9 + [MAX_COUNT])
        full = {"latency_total": pack_grid(MAX_COUNT * grid(7)), "correct_by_confidence": sure}
        take(engine, seq, T0, n=MAX_COUNT, mono_end_ms=20 * 24 * HOUR, **full)
    one = max(hours(engine), key=lambda one: one.n)
    assert one.n == 2 * MAX_COUNT
    assert unpack_grid(one.latency_total)[7] == MAX_COUNT
    assert unpack(one.confidence)[[9, 19]].tolist() == [MAX_COUNT] * 2


def test_contexts_and_phases_have_hours_of_their_own(engine: sa.Engine) -> None:
    some: tuple[dict[str, Any], ...] = ({}, {"context": "night"}, {"phase": "shadow"}, {"variant": "onnx-int8"})
    for seq, changes in enumerate(some, 1):
        take(engine, seq, T0, **changes)
    found = {(one.context, one.phase, one.variant): one.windows for one in hours(engine)}
    assert found == {
        ("", "normal", "onnx-fp32"): 1,
        ("night", "normal", "onnx-fp32"): 1,
        ("", "shadow", "onnx-fp32"): 1,
        ("", "normal", "onnx-int8"): 1,
    }


@pytest.mark.parametrize("cells", [(), (0,), (400,), (3, 3, 200)])
def test_latencies_come_back_from_their_bytes(cells: tuple[int, ...]) -> None:
    assert latency_of(latency_bytes(grid(*cells))).tolist() == grid(*cells).tolist()


def test_hours_of_before_they_held_outcomes_are_added_to(tmp_path: Path) -> None:
    engine = store.open_engine(tmp_path / "telemetry.db", schema="telemetry")
    with engine.begin() as connection:
        command.upgrade(store._config(connection, telemetry.metadata, "telemetry"), "telemetry_0004")
        key = {"device": "cam-1", "t0_ms": T0, "digest": wire.DIGEST, "variant": "onnx-fp32", "context": "",
               "phase": "normal", "latency_total": pack_grid(grid(5, 5))}  # fmt: skip
        row = {**dict.fromkeys(device_hours.SUMMED, 2), **key}
        connection.execute(sa.text(f"INSERT INTO device_hours ({', '.join(row)}) VALUES (:{', :'.join(row)})"), row)
    engine.dispose()
    engine = open_telemetry(tmp_path / "telemetry.db")
    (one,) = hours(engine)
    assert (one.n, one.outcomes, one.confidence) == (2, {}, b"")
    take(engine, 1, T0, outcomes={"correct": Hits(4, 3)}, correct_by_confidence=pack([0] * 9 + [4] + [0] * 9 + [3]))
    (one,) = hours(engine)
    assert (one.n, one.outcomes, one.labels_n) == (12, {"correct": [4, 3]}, 6)
    assert unpack(one.confidence)[[9, 19]].tolist() == [4, 3]
    engine.dispose()


def test_rows_of_an_earlier_release_are_kept_and_read(tmp_path: Path) -> None:
    """Its rollups held varints, and its windows knew nothing of shadow and confidence."""
    engine = store.open_engine(tmp_path / "telemetry.db", schema="telemetry")
    with engine.begin() as connection:
        command.upgrade(store._config(connection, telemetry.metadata, "telemetry"), "telemetry_0002")
        old = {column["name"]: column["type"] for column in sa.inspect(connection).get_columns("rollups")}
        row: dict[str, Any] = {name: "" if isinstance(kind, sa.String) else 1 for name, kind in old.items()}
        row |= {"tier_s": 3600, "t0_ms": T0, "cells": pack([1, 300]), "latency_total": pack_grid(grid(5, 5))}
        names = ", ".join(row)
        connection.execute(sa.text(f"INSERT INTO rollups ({names}) VALUES (:{', :'.join(row)})"), row)
        columns = {column["name"]: column["type"] for column in sa.inspect(connection).get_columns("windows")}
        row = {name: b"" if isinstance(kind, sa.LargeBinary) else "" if isinstance(kind, sa.String) else 1
               for name, kind in columns.items()}  # fmt: skip
        names = ", ".join(row)
        connection.execute(sa.text(f"INSERT INTO windows ({names}) VALUES (:{', :'.join(row)})"), row)
    engine.dispose()
    engine = open_telemetry(tmp_path / "telemetry.db")
    with engine.connect() as connection:
        (one,) = connection.execute(sa.select(telemetry.rollups)).all()
        (window,) = connection.execute(sa.select(telemetry.windows)).all()
    cells = cells_of(one.cells)
    assert cells is not None
    assert cells.tolist() == [1, 300]
    assert latency_of(one.latency_total)[5] == 2
    assert (window.outcomes, window.shadow_n, window.confidence, window.latency_run) == ({}, 0, b"", b"")
    engine.dispose()
