"""How late labels come is told from what came since a version began, or not at all; a plan counts it or says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from edgewright.planning import print_plan
from edgewright_contracts.package import Package
from edgewright_hub.rollouts.label_delay import label_delay_h
from edgewright_hub.rollouts.processes import Floats
from edgewright_hub.rollouts.specification import RolloutSpec
from edgewright_hub.storage import telemetry
from sim.house import QUICK, House

HOUR_MS = 3600_000


def _version(
    delay_h: float, *, days: int, shape: float = 1.0, an_hour: int = 2000, share: float = 0.02
) -> tuple[Floats, Floats]:
    """Inferences and labels of each hour since it began; more by day, and fewer on the first."""
    rng = np.random.default_rng([int(delay_h), days])
    hours = 24 * days
    inferences = an_hour * (1 + 0.5 * np.sin(np.arange(hours) * 2 * np.pi / 24)) * np.minimum(1, np.arange(hours) / 12)
    begun = np.repeat(np.arange(hours), rng.poisson(inferences * share))
    at = begun + rng.random(begun.size) + rng.gamma(shape, delay_h / shape, begun.size)
    return inferences, np.bincount(at[at < hours].astype(int), minlength=hours).astype(np.float64)


@pytest.mark.parametrize(("delay_h", "shape"), [(6, 1), (48, 1), (48, 100), (24, 100), (168, 4)])
def test_the_delay_of_labels_is_told_from_the_days_after_a_version_began(delay_h: float, shape: float) -> None:
    assert label_delay_h([_version(delay_h, days=40, shape=shape)]) == pytest.approx(delay_h, rel=0.25)


def test_labels_that_come_at_once_are_hardly_late() -> None:
    assert (label_delay_h([_version(0.01, days=10)]) or 0.0) < 3


def test_two_versions_tell_more_than_one_and_labels_behind_the_use_of_one_are_not_asked_for() -> None:
    inferences, labels = _version(48, days=20)
    inferences[300:], labels[300:] = 0.0, 0.0  # devices that begin another version may have forgotten these
    assert label_delay_h([(inferences, labels), _version(48, days=12)]) == pytest.approx(48, rel=0.2)


@pytest.mark.parametrize(
    "versions",
    [
        [],
        [_version(48, days=40, share=0.0)],
        [_version(48, days=40, share=2e-5)],
        [_version(300, days=5)],
        [(np.zeros(9), np.zeros(9))],
    ],
    ids=["nothing", "no labels", "few labels", "a time shorter than the delay", "no inferences"],
)
def test_what_cannot_be_told_is_not_guessed(versions: list[tuple[Floats, Floats]]) -> None:
    assert label_delay_h(versions) is None


def _summed(house: House, began_ms: int, version: tuple[Floats, Floats]) -> None:
    plain = {"windows": 1, "n_monitored": 0, "errors": 0, "rejected": 0, "labels_wrong": 0}
    rows: list[dict[str, Any]] = [
        {
            "tier_s": 3600, "t0_ms": began_ms + hour * HOUR_MS, "cohort": "lab", "variant": "onnx-fp32", "context": "",
            "digest": house.packages["1.0.0"].digest[:16], "edge_hash": "", "phase": "normal",
            "n": int(n), "labels_n": int(labels), "latency_total": b"", "cells": b"",
        } | plain
        for hour, (n, labels) in enumerate(zip(*version, strict=True))
    ]  # fmt: skip
    with house.telemetry.begin() as connection:
        connection.execute(sa.insert(telemetry.rollups), rows)


def test_a_plan_waits_for_labels_as_long_as_they_came_late_before(
    tmp_path: Path, packages: dict[str, Package], capsys: pytest.CaptureFixture[str]
) -> None:
    house, four = House(tmp_path, packages), [f"pi-{i}" for i in range(4)]
    for version in packages:
        house.publish_package(version)
    house.enrol(*four)
    house.start("1.0.0", stages=("100%",))
    house.live(four, 40)  # a fifth of the inferences is labelled
    spec = RolloutSpec(model="digits", version="2.0.0", gate=QUICK, window_s=5.0)
    hour, plans, said = house.now - house.now % HOUR_MS, [], []
    for days in (70, 30):  # that the version has been in use; 60 are looked at
        with house.telemetry.begin() as connection:
            connection.execute(sa.delete(telemetry.rollups))
        _summed(house, hour - days * 24 * HOUR_MS, _version(48, days=days))
        plans.append(house.conductor.plan(spec, now_ms=house.now))
        print_plan(plans[-1])
        said.append(capsys.readouterr().out)
    unknown, known = plans
    assert unknown["label_delay_s"] is None
    assert "how late labels come is not known: the times leave it out" in said[0]
    assert known["label_delay_s"] == pytest.approx(48 * 3600, rel=0.25)
    assert known["expected_s"] > unknown["expected_s"] + 600
    assert "labels come 2.1 d late in the mean" in said[1]
