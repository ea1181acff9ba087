"""The self-test's process: started, listened to, and gone afterwards, whatever it does.

It has a session of its own, so that what ends the agent's process group leaves the verdict to the agent, and -P, so
that it imports nothing from the working directory. What it prints is read only as far as it may be of use.

How long it may take is counted in its own processor time, so that a device which has none to give blames nobody.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..limits.device import TICK_NS
from .verdict import VERDICT_BYTES, CutShort, Ended

LOG_TAIL: Final = 8000
INTERRUPT_S: Final = 0.5  # between two looks at what cannot wait


def run(
    arguments: list[str], stopping: threading.Event, interrupt: Callable[[], None], busy_s: float, wall_s: float
) -> Ended:
    """Until it ends by itself, or has lasted and worked `busy_s`, or has lasted `wall_s`.

    Raises CutShort when `stopping` is set, OSError when there is no process to be had, and what `interrupt` does.
    """
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgewright_agent.updating.selftest_child", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return _heard(child, stopping, interrupt, busy_s, wall_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and whatever it started
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _heard(
    child: subprocess.Popen[bytes],
    stopping: threading.Event,
    interrupt: Callable[[], None],
    busy_s: float,
    wall_s: float,
) -> Ended:
    """Of its output the beginning is kept, of its log the end."""
    assert child.stdout is not None
    assert child.stderr is not None
    out, log, used_s = b"", b"", 0.0
    began_s = time.monotonic()
    look_s = began_s + INTERRUPT_S
    with selectors.DefaultSelector() as open_streams:
        for stream in (child.stdout, child.stderr):
            open_streams.register(stream, selectors.EVENT_READ)
        code = None
        while code is None:
            for key, _ in open_streams.select(INTERRUPT_S):
                data = os.read(key.fd, VERDICT_BYTES)
                if not data:
                    open_streams.unregister(key.fileobj)
                elif key.fileobj is child.stdout:
                    out = (out + data)[: VERDICT_BYTES + 1]
                else:
                    log = (log + data)[-LOG_TAIL:]
            if not open_streams.get_map():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = child.wait(INTERRUPT_S)
            now = time.monotonic()
            if code is None and now >= look_s:
                look_s = now + INTERRUPT_S
                if stopping.is_set():
                    raise CutShort("the agent stops; the self-test will be run again")
                interrupt()
                used_s, lasted_s = _used_s(child.pid), now - began_s
                if lasted_s >= wall_s or min(lasted_s, used_s) >= busy_s:
                    break
    return Ended(code, out, log.decode(errors="replace"), used_s)


def _used_s(pid: int) -> float:
    """Processor time of a child, and of those that it has waited for itself (proc(5)). Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * TICK_NS / 1e9
