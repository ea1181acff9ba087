"""What the hub does every now and then besides judging: alerts and their webhooks, labels, samples, what ends soon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from cryptography import x509

from .accuracy import labels, retraining
from .alerts import expiry, webhooks
from .alerts.expiry import Ending
from .registry.repository import RENEWAL, Repository
from .rollouts import sampling
from .web.samples import Samples

WEBHOOKS_S: Final = 5.0
_CERTIFICATES: Final = {
    "ca": "no command renews it; make a new hub and enrol the devices there",
    "server": "restart the hub, which renews it",
    "hub": "restart the hub, which renews it",
}

Chore = tuple[str, float, Callable[[], Any]]  # what vitals calls it, seconds between two turns, and the turn


def chores(
    control_engine: sa.Engine, telemetry_engine: sa.Engine, repository: Repository, ca: Path, samples: Samples
) -> tuple[Chore, ...]:
    def expire() -> None:
        expiry.tick(control_engine, endings(repository, ca), datetime.now(UTC))

    def sample() -> None:
        sampling.end(control_engine, samples.arrived, _now_ms())
        samples.expire(time.time())

    return (
        ("sending webhooks", WEBHOOKS_S, lambda: webhooks.deliver(control_engine, webhooks.post, _now_ms())),
        ("counting labels", labels.EVERY_S, partial(labels.tick, control_engine, telemetry_engine)),
        ("retrain policies", retraining.EVERY_S, lambda: retraining.tick(control_engine, _now_ms())),
        ("what ends soon", expiry.EVERY_S, expire),
        ("requests for samples", sampling.EVERY_S, sample),
    )


def endings(repository: Repository, ca: Path) -> Iterator[Ending]:
    """Of the owner's signatures, and of the certificates in the folder `ca`."""
    yield Ending("the owner's list of packages", repository.targets().signed.expires, RENEWAL["targets"])
    yield Ending("the owner's root", repository.root().signed.expires, RENEWAL["root"])
    for name, way in _CERTIFICATES.items():
        certificate = x509.load_pem_x509_certificate((ca / f"{name}.pem").read_bytes())
        yield Ending(f"the certificate {name}.pem", certificate.not_valid_after_utc, way)


def _now_ms() -> int:
    return int(time.time() * 1000)
