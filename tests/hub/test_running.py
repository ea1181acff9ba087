"""Which package a device runs, told from windows that may come late."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgewright_hub.drift.running import Running

MODEL, OLD, NEW = "digits", "a" * 16, "b" * 16
SPOOL, OTHER = "1" * 16, "2" * 16
HOUR = 3600_000


def _row(digest: str, spool_id: str, seq: int, end_ms: int) -> SimpleNamespace:
    start = {"start_ms": end_ms - 500, "mono_start_ms": 100, "mono_end_ms": 600}
    return SimpleNamespace(device="pi-0", digest=digest, spool_id=spool_id, seq=seq, **start)


@pytest.mark.parametrize(
    ("said", "runs"),
    [
        ([(OLD, SPOOL, 1, 1000), (NEW, SPOOL, 2, 2000)], NEW),
        ([(OLD, SPOOL, 1, 1000), (NEW, SPOOL, 3, 3000), (OLD, SPOOL, 2, 2000)], NEW),
        ([(NEW, SPOOL, 5, 5000), (NEW, SPOOL, 3, 3000), (OLD, SPOOL, 4, 4000)], NEW),
        ([(NEW, SPOOL, 3, 3000), (OLD, SPOOL, 4, 3000)], NEW),  # the last answers of a package that goes
        ([(OLD, SPOOL, 3, 3000), (NEW, SPOOL, 4, 3000), (NEW, SPOOL, 5, 4000)], NEW),
        ([(OLD, SPOOL, 3, HOUR), (NEW, SPOOL, 4, 1000)], NEW),  # its clock was set back
        ([(OLD, SPOOL, 9, 9000), (NEW, OTHER, 1, 1000)], NEW),  # it began a new spool
        ([(OLD, SPOOL, 1, 1000), (NEW, SPOOL, 2, 2000), (OLD, SPOOL, 3, 3000)], OLD),  # sent back
    ],
)
def test_the_newest_window_of_a_spool_says_what_runs_however_they_arrive(
    said: list[tuple[str, str, int, int]], runs: str
) -> None:
    running = Running()
    for one in said:
        running.late(_row(*one), MODEL)
    assert running.digest("pi-0", MODEL) == runs
    assert running.digest("pi-0", "another") == ""


def test_what_is_known_from_before_a_restart_gives_way_to_what_comes() -> None:
    running = Running()
    running.note("pi-0", MODEL, OLD)
    assert not running.late(_row(NEW, SPOOL, 1, 1000), MODEL)
    assert running.digest("pi-0", MODEL) == NEW
    running.forget("pi-0", MODEL)
    assert running.digest("pi-0", MODEL) == ""
