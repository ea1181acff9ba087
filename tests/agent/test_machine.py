"""A power cut is told from a crash, and is nobody's fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating import update
from edgewright_agent.updating.machine import restarted
from edgewright_agent.updating.update import CRASHES, CUTS, Event, Record, State


def test_a_machine_that_restarted_is_known_by_its_kernels_number(tmp_path: Path):
    disk, kernel = RealDisk(), tmp_path / "boot_id"
    assert not restarted(disk, tmp_path, kernel)  # no such kernel
    seen = []
    for number in ("one", "one", "two", "two"):
        kernel.write_text(number + "\n")
        seen.append(restarted(disk, tmp_path, kernel))
    assert seen == [False, False, True, False]


def test_a_disk_that_takes_nothing_keeps_no_agent_from_starting(tmp_path: Path):
    kernel = tmp_path / "boot_id"
    kernel.write_text("one")

    class Full(RealDisk):
        def write(self, path: Path, data: bytes) -> None:
            raise OSError(28, "no space left on device")

    assert not restarted(Full(), tmp_path, kernel)


@pytest.mark.parametrize("state", [State.WARMUP, State.PROBATION, State.SHADOW])
def test_power_cuts_put_a_package_back_only_when_there_are_many_and_block_none(state):
    record = Record(state=state)
    for _ in range(CUTS - 1):
        record, then = update.resume(record, unclean=True, cut=True)
        assert then is None
        assert record.state is state
        assert record.crashes == 0
    record, then = update.resume(record, unclean=True, cut=True)
    assert then is Event.DELAYED
    after = update.advance(record, then, reason="10 power cuts", failure="power")
    assert after.state in (State.IDLE, State.ROLLBACK)
    assert after.failure == "power"


def test_crashes_between_power_cuts_are_counted_as_before():
    record, thens = Record(state=State.PROBATION), []
    for cut in (True, False, True, False, True, False):
        record, then = update.resume(record, unclean=True, cut=cut)
        thens.append(then)
    assert thens == [None, None, None, None, None, Event.BROKEN]
    assert (record.crashes, record.cuts) == (CRASHES[State.PROBATION], 3)


def test_a_machine_that_ended_in_the_self_test_counts_there_as_before():
    record, then = update.resume(Record(state=State.SELFTEST), unclean=True, cut=True)
    assert (record.crashes, record.cuts, then) == (1, 0, None)
