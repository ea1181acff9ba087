"""Starts processes and ends exactly those. Each writes to a log of its own, whose tail an error message can show."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from edgewright_contracts.errors import Unavailable

_END_S: Final = 8.0


@dataclass
class Processes:
    """`root` holds `logs`, and `tmp` for what a process that is ended in the middle would leave behind."""

    root: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _files: list[IO[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        (self.root / "tmp").mkdir(exist_ok=True)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.end_all()

    def start(self, name: str, command: list[str]) -> None:
        """Run `command` under `name`; in a session of its own, so that Ctrl-C reaches only the parent."""
        log = self.log(name).open("ab")
        self._files.append(log)
        own = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(self.root / "tmp")}
        with _uninterrupted():
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
                start_new_session=True,
            )

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def check(self) -> None:
        """Raises Unavailable when a process has failed, with the end of its log; one that is done has not."""
        for name, process in self._running.items():
            if process.poll():
                raise Unavailable(f"{name} ended with code {process.returncode}; its log ends:\n{self.tail(name)}")

    def tail(self, name: str, lines: int = 12) -> str:
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would end it."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def end(self, name: str) -> int:
        """SIGTERM, then SIGKILL after 8 s; returns the exit code."""
        process = self._running.pop(name)
        _end([process])
        return process.returncode

    def end_all(self) -> None:
        """Nobody hurries it: a second Ctrl-C would leave the others behind."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        running = list(self._running.values())
        self._running.clear()
        _end(running)
        for number, handler in before.items():
            signal.signal(number, handler)
        for file in self._files:
            file.close()
        self._files.clear()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A Ctrl-C inside the block is raised behind it: a process that was started and not yet noted would go on."""
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        raise KeyboardInterrupt


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _END_S
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
