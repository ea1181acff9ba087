"""Runs: one folder for each time that something was compiled, to be listed and compared.

    WORK/runs/<YYYYmmdd-HHMMSS>-<name>-<version>[-n]/   run.json, choice.json, evidence.json

run.json is rewritten, atomically, at every step, so that a run that was killed still says how far it came. A run that
ended without a choice has measured.json instead of choice.json, when it had candidates.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.errors import ContractError, EdgewrightError, Refused, RequestError, Unavailable

from ..disk import FULL, write_whole
from .choice import Candidate, Limits

_RESERVE: Final = ".reserve"  # space that is given back at the end, so that a full disk takes a run's last words
_RESERVED: Final = 16 * 1024
State = Literal["running", "done", "refused", "failed", "interrupted", "damaged"]


class StepDone(msgspec.Struct, frozen=True):
    name: str
    seconds: float | None  # None: it was there already


class Run(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    version: str
    device: str
    seed: int
    started: datetime
    limits: Limits = Limits()
    state: State = "running"
    pid: int = 0
    steps: tuple[StepDone, ...] = ()
    seconds: float = 0.0
    package: str = ""
    digest: str = ""
    message: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The candidates of a run that chose none of them."""

    limits: Limits
    candidates: tuple[Candidate, ...]


class RunFolder:
    """The folder of one run, written from the process that compiles."""

    def __init__(self, work: Path, run: Run) -> None:
        self.run = run
        self._met: set[str] = set()
        base = work / "runs"
        base.mkdir(parents=True, exist_ok=True)
        for n in range(1, 1000):
            identifier = run.id if n == 1 else f"{run.id}-{n}"
            self.path = base / identifier
            try:
                self.path.mkdir()
            except FileExistsError:
                continue
            self.run = msgspec.structs.replace(run, id=identifier)
            break
        try:
            self._write()
            write_whole(self.path / _RESERVE, bytes(_RESERVED))
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def step(self, name: str, seconds: float | None) -> None:
        """Told of a step whenever it is asked for, records the first time: what this run made it finds later."""
        if name in self._met:
            return
        self._met.add(name)
        self.change(steps=(*self.run.steps, StepDone(name, None if seconds is None else round(seconds, 2))))

    def change(self, **facts: object) -> None:
        self.run = msgspec.structs.replace(self.run, **facts)
        self._write()

    def end(self, **facts: object) -> None:
        (self.path / _RESERVE).unlink(missing_ok=True)
        self.change(**facts)

    def measured(self, limits: Limits, candidates: Sequence[Candidate]) -> None:
        """Keep what was measured before the run ended without a choice."""
        if candidates:
            found = Measured(limits=limits, candidates=tuple(candidates))
            write_whole(self.path / "measured.json", _readable(found))

    def _write(self) -> None:
        write_whole(self.path / "run.json", _readable(self.run))


@contextmanager
def ending(folder: RunFolder, since: Callable[[], float], room: str) -> Iterator[None]:
    """Writes into the folder how the run within ended, unless it ended well: only who ran it knows what was made.

    `since` are the seconds of the run, `room` is where a full disk may be made good. Raises what is raised within, and
    Unavailable for a full disk.
    """
    try:
        yield
    except BaseException as error:
        state: State = "refused" if isinstance(error, Refused) else "failed"
        said = str(error) if isinstance(error, EdgewrightError | OSError) else type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            state, said = "interrupted", "interrupted: compile again to go on"
        full = _full(error, room)
        with suppress(OSError):  # the first error is the one to tell
            folder.end(state=state, message=full or said, seconds=round(since(), 2))
        if full:
            raise Unavailable(full) from error
        raise


def _full(error: BaseException, room: str) -> str:
    """What is said when the disk takes no more; empty for any other error."""
    reason = error.__cause__ if isinstance(error, Unavailable) else error
    if not isinstance(reason, OSError) or reason.errno not in FULL:
        return ""
    what = str(error) if isinstance(error, Unavailable) else f"{reason.filename} could not be written; free space"
    return f"the disk is full: {what}, or name another disk with {room}"


def _readable(record: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=1) + b"\n"


def identifier(now: datetime, name: str, version: str) -> str:
    return f"{now:%Y%m%d-%H%M%S}-{name}-{version}"


def all_runs(work: Path) -> tuple[Run, ...]:
    """Every run under `work`, oldest first; one whose record cannot be read is listed as damaged."""
    return tuple(_listed(path.parent) for path in sorted((work / "runs").glob("*/run.json")))


def _listed(path: Path) -> Run:
    try:
        return read_run(path)
    except ContractError as error:
        return Run(
            id=path.name,
            name="",
            version="",
            device="",
            seed=0,
            started=datetime.fromtimestamp(0, UTC),
            state="damaged",
            message=str(error),
        )


def find(work: Path, identifier: str) -> Path:
    """The folder of a run, by its id or the beginning of it. Raises RequestError unless that is one run."""
    found = sorted(p.parent for p in (work / "runs").glob("*/run.json") if p.parent.name.startswith(identifier))
    exact = [p for p in found if p.name == identifier]
    if len(exact or found) != 1:
        known = ", ".join(r.id for r in all_runs(work)) or "none"
        raise RequestError(
            f"expected the id of one run under {work}, got {identifier!r}, which fits {len(found)}; runs are: {known}"
        )
    return (exact or found)[0]


def read_run(path: Path) -> Run:
    """Raises ContractError when run.json is damaged."""
    try:
        return msgspec.json.decode((path / "run.json").read_bytes(), type=built(Run))
    except msgspec.MsgspecError as error:
        raise ContractError(str(path / "run.json"), "the record of a run", str(error)) from None


def read_measured(path: Path) -> Measured | None:
    """None when the run made a choice, or came to no candidate. Raises ContractError when measured.json is damaged."""
    file = path / "measured.json"
    if not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=built(Measured))
    except msgspec.MsgspecError as error:
        raise ContractError(str(file), "the candidates of a run", str(error)) from None
