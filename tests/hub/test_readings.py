"""The past of devices that a rollout takes in: hours and the windows behind them say what all windows say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_contracts.binning import GRID_CELLS, pack, pack_grid
from edgewright_hub.fleet.selectors import Device
from edgewright_hub.ingest import device_hours
from edgewright_hub.rollouts import evidence, readings
from edgewright_hub.rollouts.gates import GatePolicy
from edgewright_hub.rollouts.members import Member
from edgewright_hub.rollouts.processes import Margin, Process
from edgewright_hub.rollouts.readings import Readings
from edgewright_hub.rollouts.specification import RolloutSpec
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.places import Places
from edgewright_hub.storage.telemetry import open_telemetry

OLD, OTHER = "b" * 64, "c" * 64
HOUR = 3600_000
NOW = 1_800_000_000_000 + 1_234_567
SPEC = RolloutSpec(model="m", digest="a" * 64, gate=GatePolicy(outcomes={"pick_ok": Margin(r0=1.05, r1=1.25)}))
PREVIOUS: dict[str, str | None] = {"d0": OLD, "d1": OTHER, "d2": OLD, "d3": None, "d4": OLD}
FLEET = {device: Device(device) for device in PREVIOUS}


@pytest.fixture
def engine(stores: Places) -> Iterator[sa.Engine]:
    one = open_telemetry(stores.telemetry)
    yield one
    one.dispose()


def _window(seq: int, device: str, start_ms: int, **more: Any) -> dict[str, Any]:
    return {
        "device": device, "spool_id": "0" * 16, "seq": seq, "arrived_ms": start_ms, "start_ms": start_ms,
        "placed": "wall", "mono_start_ms": 0, "mono_end_ms": 60_000, "boot_id": "0" * 16, "cohort": "lab",
        "digest": OLD[:16], "variant": "onnx-fp32", "context": "", "edge_hash": "", "phase": "normal", "rollout": "",
        "n": 60, "n_monitored": 0, "errors": 0, "rejected": 0, "labels_n": 0, "labels_wrong": 0, "latency_total": b"",
        "cells": b"", "body": b"", "latency_run": b"", "input_age": b"", "outcomes": {}, "confidence": b"",
    } | more  # fmt: skip


def _some(rng: np.random.Generator, size: int) -> list[dict[str, Any]]:
    """Windows of everything that may come, of four devices, in no order."""
    rows = []
    for seq in range(size):
        grid = np.zeros(GRID_CELLS, np.int64)
        np.add.at(grid, rng.normal(200, 3, 60).astype(int), 1)
        n = int(rng.integers(0, 5))
        bins = rng.integers(0, 200, 10)
        rows.append(
            _window(
                seq,
                str(rng.choice(["d0", "d1", "d2", "d3"])),
                NOW - int(rng.integers(0, 23 * HOUR)),
                digest=str(rng.choice([OLD, OTHER]))[:16],
                context=str(rng.choice(["", "night"])),
                phase=str(rng.choice(["normal", "probation", "shadow"], p=[0.8, 0.1, 0.1])),
                errors=int(rng.poisson(0.6 * rng.gamma(1))),
                labels_n=n,
                labels_wrong=n // 2,
                latency_total=pack_grid(grid) if rng.random() < 0.9 else b"",
                outcomes={"correct": [n, n - n // 2], "pick_ok": [2 * n, n]} if n else {},
                confidence=pack([*bins, *(bins // 2)]) if n else b"",
                shadow_n=9,
            )
        )
    return rows


def _arrive(engine: sa.Engine, rows: Sequence[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(telemetry.windows.insert(), list(rows))


def _before(engine: sa.Engine) -> tuple[tuple[Member, ...], tuple[Process, ...]]:
    return Readings(engine).before(SPEC, FLEET, PREVIOUS, NOW)


def _same(found: tuple[tuple[Member, ...], tuple[Process, ...]], other: Any) -> None:
    for one, two in zip(found[0], other[0], strict=True):
        assert (one.device, one.previous, one.slow_cell) == (two.device, two.previous, two.slow_cell)
        assert one.pre_trials == pytest.approx(two.pre_trials)
        assert one.pre_events == pytest.approx(two.pre_events)
    assert [p.phi for p in found[1]] == pytest.approx([p.phi for p in other[1]])


def test_hours_and_what_is_behind_them_tell_the_same_as_all_windows(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _some(np.random.default_rng(1), 600)
    _arrive(engine, rows[:400])
    raw = _before(engine)
    while device_hours.tick(engine):
        pass
    _same(_before(engine), raw)
    _arrive(engine, rows[400:])
    behind = _before(engine)
    with engine.connect() as connection:
        every = connection.execute(sa.select(telemetry.windows)).all()
    for member in behind[0]:
        mine = [r for r in every if r.device == member.device and r.digest == (member.previous or "")[:16]]
        mine = [r for r in mine if r.phase != "shadow"]
        cell = np.full(len(mine), -1 if member.slow_cell is None else member.slow_cell)
        table = evidence.tabulate(mine, cell, SPEC.gate.metrics)
        for metric in ("failure", "missing"):
            table[:, :, SPEC.gate.metrics.index(metric)] = 0.0
        assert member.pre_trials == pytest.approx(table[:, 0].sum(axis=0))
        assert member.pre_events == pytest.approx(table[:, 1].sum(axis=0))
        assert (member.slow_cell is None) == (not mine)
    assert max(p.phi for p in behind[1]) > 1.2, "errors come in bursts"
    monkeypatch.setattr(device_hours, "BATCH", 30)
    while device_hours.tick(engine):
        _same(_before(engine), behind)
    _same(_before(engine), behind)


def test_of_too_many_windows_the_newest_tell_how_much_they_vary(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device was restless until noon."""
    rng = np.random.default_rng(2)
    rows = []
    for seq in range(22 * 12):
        device, hour = f"d{seq % 2 * 2}", seq // 12
        mean = 6.0 if hour > 12 else 12.0 * (rng.random() < 0.5)
        rows.append(_window(seq, device, NOW - (22 - hour) * HOUR + seq % 12 * 300_000, errors=int(rng.poisson(mean))))
    _arrive(engine, rows)
    restless, told = _before(engine)[1][0].phi, _before(engine)[0]
    monkeypatch.setattr(readings, "SAMPLE", 8 * 12)
    members, processes = _before(engine)
    assert processes[0].phi < 1.5 < 3 < restless
    assert members == told, "sums are of the whole day"


def test_devices_that_report_half_of_the_time_are_told_to(engine: sa.Engine) -> None:
    rows = [_window(i, "d0", NOW - i * 60_000) for i in range(10)]
    rows += [_window(i, "d2", NOW - i * 60_000) for i in range(20)]
    rows += [_window(i, "d4", NOW - i * 60_000, digest=OTHER[:16]) for i in range(30, 60)]
    _arrive(engine, rows)
    assert Readings(engine).reported_s({"d0": OLD, "d2": OLD, "d3": None}, NOW) == 900
    assert Readings(engine).reported_s({"d3": None}, NOW) == 0
