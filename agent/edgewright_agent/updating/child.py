"""The self-test's process: started, listened to, and gone afterwards, whatever it does.

It has a session of its own, so that what ends the agent's process group leaves the verdict to the agent, and -P, so
that it imports nothing from the working directory. What it prints is read only as far as it may be of use.
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
from typing import Final

from .verdict import VERDICT_BYTES, CutShort, Ended

LOG_TAIL: Final = 8000
INTERRUPT_S: Final = 0.5  # between two looks at what cannot wait


def run(arguments: list[str], stopping: threading.Event, interrupt: Callable[[], None], timeout_s: float) -> Ended:
    """Raises CutShort when `stopping` is set, OSError when there is no process to be had, and what `interrupt` does."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgewright_agent.updating.selftest_child", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return _heard(child, stopping, interrupt, time.monotonic() + timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and whatever it started
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _heard(
    child: subprocess.Popen[bytes], stopping: threading.Event, interrupt: Callable[[], None], end_s: float
) -> Ended:
    """Listen until the child ends, or `end_s` has passed; of its output the beginning is kept, of its log the end."""
    assert child.stdout is not None
    assert child.stderr is not None
    out, log, look_s = b"", b"", time.monotonic() + INTERRUPT_S
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
                if now >= end_s:
                    break
    return Ended(code, out, log.decode(errors="replace"))
