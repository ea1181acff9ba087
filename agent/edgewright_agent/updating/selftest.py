"""The self-test of a slot, seen from the agent: a child process is started, listened to, and believed within limits.

Guarantee: the agent survives whatever the child does. A crash or an endless loop is the model's failure. A signal from
outside is not, nor is too little memory: SIGKILL while the kernel counted a process that it ended for want of memory,
or a runtime that could not get any. Both are tried again, and the latter given up after a few attempts (`update`). What
the child prints is read only as far as it may be of use.

Cost: about half a second of CPU for a small model, in the child, at a lower priority; 64 kB here.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgewright_contracts.errors import Unavailable
from edgewright_runtime.runtime import NoMemory

from .pressure import oom_kills, rose
from .proof import FOLDER
from .selftest_child import NO_MEMORY, Verdict
from .slots import Damaged

SELFTEST_S: Final = 120.0
LOG_TAIL: Final = 8000
VERDICT_BYTES: Final = 64 << 10
INTERRUPT_S: Final = 0.5  # between two looks at what cannot wait
FROM_OUTSIDE: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # no model sends these to itself


class CutShort(Unavailable):
    """The self-test was ended from outside: by a service manager, a shell, or the end of the agent."""


class NoVerdict(Unavailable):
    """The self-test could not judge the model: the device, its Python or its flash failed before."""


class Ended(NamedTuple):
    code: int | None  # None: it hung; negative: died of this signal
    out: bytes
    log: str


def selftest(
    folder: Path,
    variant: str,
    runtime: str,
    *,
    stopping: threading.Event,
    interrupt: Callable[[], None] = lambda: None,
    timeout_s: float = SELFTEST_S,
) -> tuple[Verdict, str]:
    """Run the self-test of a slot in a child process: (verdict, log). A child that crashes or hangs did not pass.

    Raises CutShort when `stopping` is set meanwhile or the child was ended from outside, NoMemory, NoVerdict when it
    ended by itself without a word about the model, Damaged when the files are not those that were signed, and what
    `interrupt` raises, which is called twice a second; the child is gone then. It has a session of its own, so that
    what ends the agent's process group leaves the verdict to the agent, and -P, so that it imports nothing from the
    working directory.
    """

    def ended(form: str) -> Ended:
        return _ended([str(folder), variant, runtime, form], stopping, interrupt, timeout_s)

    killed = oom_kills()
    end = ended("optimised")
    if end.code is not None and -end.code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGBUS):
        made = folder / FOLDER
        if made.exists():  # it may be the optimised form that crashes, and the package's own file is all right
            shutil.rmtree(made, ignore_errors=True)
            end = ended("plain")
    return _verdict(end, folder, timeout_s, stopping=stopping.is_set(), starved=rose(killed, oom_kills())), end.log


def _verdict(end: Ended, folder: Path, timeout_s: float, *, stopping: bool, starved: bool) -> Verdict:
    code = end.code
    if code is None:
        return Verdict(False, f"the self-test hung for {timeout_s:g} s")
    if code == NO_MEMORY or (code == -signal.SIGKILL and starved):
        raise NoMemory(
            f"too little memory for the self-test ({_last(end.log) or 'the kernel ended it'}); free some, or send this "
            "device a smaller variant"
        )
    if -code in (*FROM_OUTSIDE, signal.SIGKILL) or (code < 0 and stopping):
        raise CutShort(f"the self-test was ended by signal {-code}; it will be run again")
    if code < 0:
        return Verdict(False, f"the self-test was killed by signal {-code}")
    try:
        verdict = msgspec.json.decode(end.out, type=Verdict)
    except msgspec.DecodeError:
        said = "no verdict" if len(end.out) <= VERDICT_BYTES else "too much to be a verdict"
        raise NoVerdict(f"the self-test ended with code {code} and {said}: {_last(end.log)}") from None
    if verdict.damaged:
        raise Damaged(str(folder), "what was signed", verdict.reason)
    return verdict


def _ended(arguments: list[str], stopping: threading.Event, interrupt: Callable[[], None], timeout_s: float) -> Ended:
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


def _last(log: str) -> str:
    return log.strip().rpartition("\n")[2]
