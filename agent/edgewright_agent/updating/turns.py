"""Turns: when a download begins, so that a fleet does not arrive at once, and when one goes on that has to wait.

Guarantee: waiting is told once and is no failed attempt. A download that has begun does not draw again, nor does one
whose wish the hub repeats; after a restart, one that had not begun does.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgewright_contracts.event import FailureClass

from ..disk import Disk
from .fetch import Link
from .job import Interrupted, Job


class Turns:
    """`uniform` draws from [0, 1)."""

    def __init__(self, disk: Disk, link: Link, uniform: Callable[[], float]) -> None:
        self._disk, self._link, self._uniform = disk, link, uniform
        self._drawn: dict[str, tuple[str, float]] = {}  # model → digest, when it begins

    def wait(self, job: Job) -> None:
        """Return when the turn of what `job` wants has come. Raises Interrupted until then."""
        name, digest = job.store.name, job.record.digest
        drawn, at_s = self._drawn.get(name, ("", 0.0))
        if drawn != digest:
            begun = self._disk.list(job.store.root / "parts")
            spread_s = 0.0 if begun else self._link.download.spread_s
            at_s = job.now_s + spread_s * self._uniform()
            self._drawn[name] = digest, at_s
        if job.now_s < at_s:
            spread = f"{self._link.download.spread_s:.0f}"
            put_off(job, at_s - job.now_s, f"its turn comes within {spread} s: not all devices download at once")


def put_off(job: Job, seconds: float, reason: str, failure: FailureClass | None = None) -> None:
    """The step of `job` is taken again after so long; `reason` is told and kept, once. Raises Interrupted, OSError."""
    if job.record.reason != reason:
        job.announce(msgspec.structs.replace(job.record, reason=reason, failure=failure))
    job.retry_at_s = job.now_s + seconds
    raise Interrupted
