"""What the hub does every now and then besides judging: labels, samples, what ends soon, what to train again."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from .accuracy import doubt, labels, retraining
from .alerts import expiry
from .registry import endings
from .registry.repository import Repository
from .rollouts import sampling
from .web.samples import Samples

Chore = tuple[str, float, Callable[[], Any]]  # what vitals calls it, seconds between two turns, and the turn


def chores(
    control_engine: sa.Engine, telemetry_engine: sa.Engine, repository: Repository, ca: Path, samples: Samples
) -> tuple[Chore, ...]:
    def expire() -> None:
        found = [*endings.of_signatures(repository), *endings.of_certificates(ca)]
        expiry.tick(control_engine, [expiry.Ending(*one) for one in found], datetime.now(UTC))

    def sample() -> None:
        sampling.end(control_engine, samples.arrived, _now_ms())
        samples.expire(time.time())

    return (
        ("counting labels", labels.EVERY_S, partial(labels.tick, control_engine, telemetry_engine)),
        (
            "asking labels",
            doubt.EVERY_S,
            lambda: doubt.tick(control_engine, telemetry_engine, repository.blobs, _now_ms()),
        ),
        ("retrain policies", retraining.EVERY_S, lambda: retraining.tick(control_engine, _now_ms())),
        ("what ends soon", expiry.EVERY_S, expire),
        ("requests for samples", sampling.EVERY_S, sample),
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
