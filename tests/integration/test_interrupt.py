"""Ctrl-C in the middle of the demo: one line, code 130, no process and no file left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize("moment", ["before the hub", "compiling", "devices run"])
def test_ctrl_c_leaves_nothing_behind(moment: str, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "edgewright", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    reached: dict[str, Callable[[], bool]] = {
        "before the hub": lambda: any(tmp_path.glob("edgewright-demo-*/logs/hub.log")),
        "compiling": lambda: any(tmp_path.glob("edgewright-demo-*/**/work/steps")),
        "devices run": lambda: any(tmp_path.glob("edgewright-demo-*/devices/edge-8/tally")),
    }
    until(reached[moment], 240)
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert said.strip().splitlines()[-1] == "edgewright: interrupted"
    assert "Traceback" not in said
    assert list(tmp_path.glob("edgewright-*")) == []
    assert [line for line in commands() if str(tmp_path) in line] == []


def until(reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def commands() -> list[str]:
    """The command line of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it ended while we looked
    return found
