"""The drivers' own count tells which predictions fell into a window that a kill lost."""

from __future__ import annotations

from pathlib import Path

from edgewright.demo.tally import Tally, read


def test_predictions_of_each_start_are_told_apart(tmp_path: Path) -> None:
    first = Tally(tmp_path / "tally", mono_ms=100)
    for at in (110, 120, 130):
        first.predicted(at)
    Tally(tmp_path / "tally", mono_ms=200)  # died before its first prediction
    third = Tally(tmp_path / "tally", mono_ms=300)
    third.predicted(310)
    third.labelled()

    reading = read(tmp_path / "tally")
    assert (reading.predictions, reading.labels, reading.failures) == (4, 1, 0)
    assert reading.since(120) == 2
    assert reading.since(205) == 0
    assert reading.since(300) == 1
