"""Runs: one folder for each time that something was compiled, to be listed and compared.

    WORK/runs/<YYYYmmdd-HHMMSS>-<name>-<version>[-n]/   run.json, choice.json, evidence.json

run.json is rewritten, atomically, at every step, so that a run that was killed still says how far it came.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from edgewright_contracts.errors import ContractError, RequestError

from .choice import Limits

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


class RunFolder:
    """The folder of one run, written from the process that compiles."""

    def __init__(self, work: Path, run: Run) -> None:
        self.run = run
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
        self._write()

    def step(self, name: str, seconds: float | None) -> None:
        self.change(steps=(*self.run.steps, StepDone(name, None if seconds is None else round(seconds, 2))))

    def change(self, **facts: object) -> None:
        self.run = msgspec.structs.replace(self.run, **facts)
        self._write()

    def _write(self) -> None:
        part = self.path / ".run.json.part"
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self.run, order="deterministic"), indent=1))
        part.replace(self.path / "run.json")


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
        return msgspec.json.decode((path / "run.json").read_bytes(), type=Run)
    except msgspec.MsgspecError as error:
        raise ContractError(str(path / "run.json"), "the record of a run", str(error)) from None
