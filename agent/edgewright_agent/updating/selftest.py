"""The self-test of a slot, seen from the agent: a child process is started, listened to, and believed within limits.

Guarantee: the agent survives whatever the child does. A crash or an endless loop is the model's failure. A signal from
outside is not, nor is too little memory: SIGKILL while the kernel counted a process that it ended for want of memory,
or a runtime that could not get any. Nor is too little processor time: what loops has used BUSY_S of it, while a child
that was stopped, throttled or swapped out has lasted WALL_S and used less. (So has one that waits for itself: in doubt
it is not the model.) All are tried again, and memory given up after a few attempts (`update`).

Cost: about half a second of CPU for a small model, in the child, at a lower priority; 64 kB here.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.built import built
from edgewright_runtime.runtime import NoMemory

from .pressure import oom_kills, rose
from .proof import FOLDER
from .slots import Damaged
from .verdict import NO_MEMORY, VERDICT_BYTES, CutShort, Ended, NoVerdict, Verdict

BUSY_S: Final = 240.0  # of processor time: 100 runs and more of a large model on a small device
WALL_S: Final = 480.0  # what answers may have to wait for it (`proving`), so not for ever
FROM_OUTSIDE: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # no model sends these to itself


def selftest(
    folder: Path,
    variant: str,
    runtime: str,
    *,
    stopping: threading.Event,
    interrupt: Callable[[], None] = lambda: None,
    busy_s: float = BUSY_S,
    wall_s: float = WALL_S,
) -> tuple[Verdict, str]:
    """Run the self-test of a slot in a child process: (verdict, log). A child that crashes or hangs did not pass.

    Raises CutShort when `stopping` is set meanwhile, the child was ended from outside or got too little processor time,
    NoMemory, NoVerdict when it ended by itself without a word about the model, Damaged when the files are not those
    that were signed, and what `interrupt` raises, which is called twice a second; the child is gone then.
    """
    from . import child  # with it come 0.3 MB, and most days nothing is tested

    def ended(form: str) -> Ended:
        return child.run([str(folder), variant, runtime, form], stopping, interrupt, busy_s, wall_s)

    killed = oom_kills()
    end = ended("optimised")
    if end.code is not None and -end.code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGBUS):
        made = folder / FOLDER
        if made.exists():  # it may be the optimised form that crashes, and the package's own file is all right
            shutil.rmtree(made, ignore_errors=True)
            end = ended("plain")
    return _verdict(end, folder, busy_s, stopping=stopping.is_set(), starved=rose(killed, oom_kills())), end.log


def _verdict(end: Ended, folder: Path, busy_s: float, *, stopping: bool, starved: bool) -> Verdict:
    code = end.code
    if code is None:
        if end.used_s < busy_s:
            raise CutShort(
                f"the self-test got {end.used_s:.3g} s of processor time and did not end: the device had no more for "
                "it, or it waits for ever; it will be run again"
            )
        return Verdict(False, f"the self-test hung: it used {end.used_s:.3g} s of processor time without an end")
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
        verdict = msgspec.json.decode(end.out, type=built(Verdict))
    except msgspec.DecodeError:
        said = "no verdict" if len(end.out) <= VERDICT_BYTES else "too much to be a verdict"
        raise NoVerdict(f"the self-test ended with code {code} and {said}: {_last(end.log)}") from None
    if verdict.damaged:
        raise Damaged(str(folder), "what was signed", verdict.reason)
    return verdict


def _last(log: str) -> str:
    return log.strip().rpartition("\n")[2]
