"""What one device says, however absurd, costs nobody else anything: its reports go through the real ingest, and after
them every tick of the hub and every answer to people comes as it did before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_contracts.binning import pack, pack_grid
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.package import Package
from edgewright_contracts.report import Hits
from edgewright_hub.accuracy import doubt, reader
from edgewright_hub.accuracy.packages import Packages
from edgewright_hub.drift import days
from edgewright_hub.exports import points
from edgewright_hub.ingest import device_hours, refusals
from edgewright_hub.ingest.ingest import Known
from edgewright_hub.ingest.writer import commit
from edgewright_hub.registry.edges import Edges
from edgewright_hub.storage import telemetry
from sim import wire
from sim.house import HOUR, House, draw_cells

EVIL, GOOD = "evil", ("pi-0", "pi-1")
DAY = 24 * HOUR
WIDTH = 111
NOTHING: dict[str, Any] = {"n": 0, "n_monitored": 0, "cells": b""}
ABSURD: dict[str, tuple[dict[str, int], dict[str, Any]]] = {  # what is refused of two such reports, and a report
    "labels": (
        {"counts": 2},
        NOTHING | {"outcomes": {"correct": Hits(MAX_COUNT, 5)}, "correct_by_confidence": pack([MAX_COUNT] * 20)},
    ),
    "outcomes": ({"counts": 2}, NOTHING | {"outcomes": {f"o{i}": Hits(MAX_COUNT, i) for i in range(16)}}),
    "cells": ({"counts": 2}, {"cells": pack([MAX_COUNT] * WIDTH)}),
    "three cells": ({"edges": 2}, {"cells": pack([1, 2, 7])}),
    # As much as contract and time allow: of a year and more.
    "a year": (
        {},
        {
            "mono_end_ms": 399 * DAY, "wall_start_ms": None, "n": MAX_COUNT, "n_monitored": MAX_COUNT,
            "rejected": {f"r{i}": MAX_COUNT for i in range(31)}, "cells": pack([MAX_COUNT] * WIDTH),
            "outcomes": {"correct": Hits(MAX_COUNT, 1)}, "correct_by_confidence": pack([MAX_COUNT] * 10 + [1] * 10),
            "shadow": Hits(MAX_COUNT, 1), "repeated": MAX_COUNT, "next_due_s": MAX_COUNT,
        },
    ),
}  # fmt: skip


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> Iterator[House]:
    one = House(tmp_path, packages)
    one.publish_package("1.0.0")
    one.publish_package("2.0.0")
    one.enrol(*GOOD, EVIL)
    yield one
    one.control.dispose()
    one.telemetry.dispose()


def _send(house: House, device: str, **changes: Any) -> None:
    told = {
        "digest": house.packages["1.0.0"].digest[:16], "edge_hash": house.edges["1.0.0"],
        "wall_start_ms": house.now - 60_000, **changes,
    }  # fmt: skip
    known = Known(lambda _: "lab", Edges(house.control, house.registry.blobs).of)
    body = wire.report_bytes(next(house.numbers), **told)
    commit(house.telemetry, [wire.message(device, "report", body, house.now)], known)


def _report(house: House, n: int = 250) -> None:
    for device in GOOD:
        cells = draw_cells(house.packages["1.0.0"], n, house.rng)
        sure = pack([0] * 9 + [40] + [0] * 9 + [5])
        told = {"outcomes": {"correct": Hits(40, 5)}, "correct_by_confidence": sure}
        _send(house, device, n=n, n_monitored=n, cells=pack(cells), **told)


def _everything(house: House) -> dict[str, Any]:
    """Every tick, and what people and other programs read then. What each says as JSON that any reader takes."""
    while house.tick():
        pass
    while device_hours.tick(house.telemetry):
        pass
    blobs = house.registry.blobs
    doubt.tick(house.control, house.telemetry, blobs, house.now)
    known, now = Packages(house.control, blobs), house.now
    with house.telemetry.connect() as connection:
        rows = connection.execute(sa.select(*(telemetry.windows.c[name] for name in points.COLUMNS))).all()
    points.lines(rows, {}, {})
    told = {
        "accuracy": reader.read(house.control, house.telemetry, known, now_ms=now),
        "of devices": reader.read(house.control, house.telemetry, known, now_ms=now, devices={*GOOD, EVIL}),
        "of days": days.by_cohort(house.control, house.telemetry, blobs, now_ms=now),
        "drift": house.conductor.drift.verdicts(),
        "rollouts": house.conductor.rollouts(),
    }
    json.dumps(told, allow_nan=False)
    return told


@pytest.mark.parametrize("what", ABSURD)
def test_one_device_stops_no_tick_and_keeps_no_other_out_of_the_sums(house: House, what: str) -> None:
    refused, report = ABSURD[what]
    house.now += 2 * HOUR  # and it is the first of the hour
    _send(house, EVIL, **report)
    _report(house)
    _send(house, EVIL, **report)
    _report(house)
    with house.telemetry.connect() as connection:
        assert refusals.totals(connection) == refused
        r = telemetry.rollups.c
        windows = connection.execute(sa.select(sa.func.sum(r.windows)).where(r.tier_s == 3600)).scalar()
    assert windows == 4 + 2 * (not refused)
    told = _everything(house)
    (model,) = told["accuracy"]["models"]
    assert model["labelled"]["devices"] == 2 + (not refused)
    if refused:
        assert model["expected"]["n"] == 1000
        assert model["slices"][0]["expected"]["holds"] == "disagrees", "as the labels of the good ones say"
    assert {v["subject"] for v in told["drift"] if v["blocks"] == 2} >= {*GOOD}


def test_one_device_stops_no_rollout(house: House) -> None:
    house.start("1.0.0", stages=("100%",))
    house.live([*GOOD, EVIL], 20, until="done")
    house.start("2.0.0", stages=("50%", "100%"))
    for cell in (0, 200, 400):
        whose = {"digest": str(house.digest(EVIL))[:16], "edge_hash": house.edges[house.version(EVIL)]}
        took = pack_grid(np.eye(401, dtype=np.int64)[cell] * MAX_COUNT)
        _send(house, EVIL, **{**ABSURD["a year"][1], **whose, "latency_total": took})
        house.live([*GOOD], 3)
    (newest, first) = _everything(house)["rollouts"]
    assert (newest["version"], first["state"]) == ("2.0.0", "done")
    assert newest["devices_exposed"] >= 1
