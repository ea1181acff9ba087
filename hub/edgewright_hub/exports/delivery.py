"""Lines to a server until each of them is stored there, or is set aside because the server will never store it.

A batch that the server finds too large or unfit is halved again and again, down to the lines that are at fault. A line
that it refuses alone is appended to a file, with the reason, *if it takes others of the same batch* or keeps nothing so
old: then the line is wrong. If it takes none, something is wrong with all, such as a field that somebody else wrote
with another type; then nothing is set aside and a person is asked for (`Misled`).

The file is line protocol with comments, which `influx write --file` takes once its cause is gone. It is on the disk
before `give` returns; a batch that is given again may leave its lines there twice, which changes nothing. When it is
full, `give` refuses to go on rather than lose a line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from .influx import Misled, TooLarge, Unfit

FILE_BYTES: Final = 64 * 1024**2
HOPELESS: Final = 20  # lines refused, and none taken, before the rest is not tried


class Target(Protocol):
    def write(self, lines: Sequence[str]) -> None: ...


class Refusal(NamedTuple):
    line: str
    said: str
    for_ever: bool  # whatever a person does


class Delivery:
    """For one thread."""

    def __init__(self, target: Target, aside: Path) -> None:
        self._target, self._aside = target, aside
        self._at_once = 10_000  # lines: what the server has taken until now
        self._taken = 0  # lines of the batch at hand

    def give(self, lines: Sequence[str]) -> list[Refusal]:
        """Those that were set aside. Raises Away or Misled: then nothing is set aside, and anything may be stored."""
        self._taken = 0
        refused: list[Refusal] = []
        self._give(lines, refused)
        if refused:
            if not self._taken and not all(one.for_ever for one in refused):
                raise _none(refused)
            self._keep(refused)
        return refused

    def _give(self, lines: Sequence[str], refused: list[Refusal]) -> None:
        for at in range(0, len(lines), self._at_once):
            some = lines[at : at + self._at_once]
            try:
                self._target.write(some)
                self._taken += len(some)
            except TooLarge as error:
                if len(some) == 1:
                    refused.append(Refusal(some[0], str(error), for_ever=False))
                else:
                    self._at_once = (len(some) + 1) // 2
                    self._give(lines[at:], refused)
                    return
            except Unfit as error:
                if len(some) == 1:
                    refused.append(Refusal(some[0], str(error), for_ever=error.too_old))
                    if not self._taken and sum(not one.for_ever for one in refused) >= HOPELESS:
                        raise _none(refused) from None
                else:
                    middle = len(some) // 2
                    self._give(some[:middle], refused)
                    self._give(some[middle:], refused)

    def _keep(self, refused: Sequence[Refusal]) -> None:
        text = "".join(f"# {' '.join(one.said.split())}\n{one.line}\n" for one in refused)
        size = self._aside.stat().st_size if self._aside.exists() else 0
        if size + len(text) > FILE_BYTES:
            raise Misled(
                f"{self._aside} is full ({FILE_BYTES // 1024**2} MiB of points that it refused): see what they say, "
                "give them again with `influx write --file`, and remove the file"
            )
        try:
            descriptor = os.open(self._aside, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            with open(descriptor, "a", encoding="utf-8") as stream:  # noqa: PTH123 (of a descriptor)
                stream.write(text)
                stream.flush()
                os.fsync(descriptor)
        except OSError as error:
            raise Misled(f"points that it refused cannot be kept in {self._aside}: {error.strerror}") from None


def _none(refused: Sequence[Refusal]) -> Misled:
    return Misled(f"it takes no point at all: {refused[-1].said}; first: {refused[0].line[:200]}")
