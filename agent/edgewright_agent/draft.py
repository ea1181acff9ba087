"""An event as it is made: now, by this boot, and without the number that the spool gives it at its first offer."""

from __future__ import annotations

from typing import Final

from edgewright_contracts.event import LOG_TAIL_BYTES, Event, FailureClass

from .clock import Clock

UNNUMBERED: Final = "0" * 16  # no spool has this id
REASON_CHARS: Final = 1024


def draft(
    clock: Clock,
    boot_id: str,
    *,
    before: str,
    after: str,
    reason: str,
    failure: FailureClass | None = None,
    log: str = "",
    model: str = "",
    digest: str = "",
    variant: str = "",
    rollout: str = "",
    attempt: int = 0,
) -> Event:
    """`reason` is cut at its end to what an event may hold, `log` at its beginning."""
    return Event(
        spool_id=UNNUMBERED,
        seq=1,
        boot_id=boot_id,
        mono_ms=clock.monotonic_ns() // 1_000_000,
        wall_ms=clock.wall_ms(),
        model=model,
        digest=digest,
        variant=variant,
        rollout=rollout,
        before=before,
        after=after,
        reason=reason[:REASON_CHARS],
        failure=failure,
        attempt=attempt,
        log=log[-LOG_TAIL_BYTES:],
    )
