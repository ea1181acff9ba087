"""Steps: directories named by everything that decides what is in them.

Guarantee: a step's directory appears whole under its name or not at all, so whatever is found there is finished work; a
run that is interrupted or killed goes on behind its last finished step. Two processes that share a store make a step
once. What a step leaves unfinished stays in its `.part` directory, where a long one finds its own checkpoint.

    WORK/steps/<kind>-<16 hex digits>/            files of the step, and step.json: its facts and the seconds it took
    WORK/steps/.<kind>-<16 hex digits>.part/      a step that is being made
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

CHECKPOINT: Final = "checkpoint.pt"
_FACTS: Final = "step.json"


@dataclass(frozen=True, slots=True)
class Step:
    """`facts` hold whatever decides the result: settings, seed, code, tools, and the names of the steps it rests on."""

    kind: str
    facts: Mapping[str, Any]
    name: str = field(init=False)

    def __post_init__(self) -> None:
        known = msgspec.json.encode(self.facts, order="deterministic")
        object.__setattr__(self, "name", f"{self.kind}-{hashlib.sha256(known).hexdigest()[:16]}")


class Store:
    """`told` hears of every step, once it is there: its name, and the seconds that it took (None: found finished).

    `spent` is what all steps that were asked for took when they were made, each once: a budget that is counted in it
    ends a resumed run about where the first one would have ended.
    """

    def __init__(
        self,
        root: Path,
        clock: Callable[[], float],
        told: Callable[[str, float | None], None] = lambda _name, _seconds: None,
    ) -> None:
        self.root = root
        self._seconds: dict[str, float] = {}
        self._clock = clock
        self._told = told

    @property
    def spent(self) -> float:
        return sum(self._seconds.values())

    def get(self, step: Step, make: Callable[[Path], None]) -> Path:
        """The directory of `step`; `make` fills it when it is not there yet.

        `make` may find its own checkpoint.pt of an earlier try in the directory. What it raises passes through.
        """
        done = self.root / step.name
        if (done / _FACTS).is_file():
            return self._found(step, done)
        part = self.root / f".{step.name}.part"
        with _alone(part):
            if (done / _FACTS).is_file():  # made by another process while this one waited
                if part.is_dir():
                    part.rmdir()
                return self._found(step, done)
            _clear(part)
            start = self._clock()
            make(part)
            seconds = self._clock() - start
            (part / CHECKPOINT).unlink(missing_ok=True)
            written = {"kind": step.kind, "seconds": round(seconds, 3), "facts": step.facts}
            (part / _FACTS).write_bytes(msgspec.json.encode(written, order="deterministic"))
            _synced(part)
            part.rename(done)
        self._seconds[step.name] = seconds
        self._told(step.name, seconds)
        return done

    def _found(self, step: Step, done: Path) -> Path:
        if step.name not in self._seconds:
            self._seconds[step.name] = float(msgspec.json.decode((done / _FACTS).read_bytes())["seconds"])
        self._told(step.name, None)
        return done


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One maker at a time. The lock is the kernel's, on the directory itself: a killed process leaves none behind."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process finished the step between these two lines
            descriptor = os.open(directory, os.O_RDONLY)
            break
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(part: Path) -> None:
    for path in part.iterdir():
        if path.name == CHECKPOINT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _synced(part: Path) -> None:
    """A name must not outlive a power cut without its content."""
    for path in (*sorted(part.rglob("*")), part):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
