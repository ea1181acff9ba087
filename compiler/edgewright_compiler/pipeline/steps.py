"""Steps: directories named by everything that decides what is in them.

Guarantee: a step's directory appears whole under its name or not at all, so whatever is found there is finished work; a
run that is interrupted or killed goes on behind its last finished step. Two processes that share a store make a step
once. Of a step that fails nothing is left but its checkpoint, if it is a long one, in its `.part` directory; what a
killed one leaves there is cleared when it is made anew.

    WORK/steps/<kind>-<16 hex digits>/            files of the step, and step.json: its facts and the seconds it took
    WORK/steps/.<kind>-<16 hex digits>.part/      a step that is being made
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from ..disk import flush_tree

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

    def has(self, step: Step) -> bool:
        return (self.root / step.name / _FACTS).is_file()

    def get(self, step: Step, make: Callable[[Path], None]) -> Path:
        """The directory of `step`; `make` fills it when it is not there yet.

        `make` may find its own checkpoint.pt of an earlier try in the directory. What it raises passes through; a full
        disk with the path of the step.
        """
        done = self.root / step.name
        if self.has(step):
            return self._found(step, done)
        part = self.root / f".{step.name}.part"
        with _alone(part):
            if self.has(step):  # made by another process while this one waited
                part.rmdir()
                return self._found(step, done)
            _clear(part)
            start = self._clock()
            try:
                make(part)
                seconds = self._clock() - start
                written = {"kind": step.kind, "seconds": round(seconds, 3), "facts": step.facts}
                (part / _FACTS).write_bytes(msgspec.json.encode(written, order="deterministic"))
                flush_tree(part)
                (part / CHECKPOINT).unlink(missing_ok=True)  # last: until the disk has taken all, it is what is left
            except BaseException as error:
                _clear(part)
                if not any(part.iterdir()):
                    part.rmdir()
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = str(part)
                raise
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
    descriptor = _locked(directory)
    while descriptor is None:
        descriptor = _locked(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(directory: Path) -> int | None:
    """None when another process, while this one waited, renamed or removed what it waited for."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            return descriptor
    except FileNotFoundError:
        pass
    if descriptor is not None:
        os.close(descriptor)
    return None


def _clear(part: Path) -> None:
    for path in part.iterdir():
        if path.name == CHECKPOINT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
