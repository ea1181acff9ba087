"""How far a compilation is: bars on a terminal, plain lines anywhere else.

What is left is told from the progress of the stage itself, as soon as it has made some; the stages after it come on top
and nobody knows for how long, so that it is "at least" until the last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

EVERY: Final = 30.0  # seconds between two plain lines of one stage
_FOUND: Final = "found finished"


class Stages:
    """What was told so far. Names come in the order of the plan; one that is not in it comes behind the last."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._share: dict[str, float] = {}
        self._began: dict[str, tuple[float, float]] = {}  # when a stage was first told, and its share then
        self._at = -1
        self._stage = ""
        self._planned = self._more = False
        self._last = ""

    def plan(self, names: Sequence[str], *, more: bool) -> None:
        """`more`: a search, which adds stages as long as it has time."""
        self._names += [name for name in names if name not in self._names]
        self._planned, self._more, self._last = True, more, names[-1]

    def tell(self, stage: str, share: float, now: float) -> tuple[str, ...]:
        """Gives the planned stages that it came past without a word: all of their steps were there already."""
        if stage not in self._names:
            self._names.insert(self._at + 1, stage)
        self._began.setdefault(stage, (now, share))
        self._share[stage], self._stage = share, stage
        self._more = self._more and stage != self._last  # what comes last comes after the search
        before, self._at = self._at, max(self._at, self._names.index(stage))
        return tuple(name for name in self._names[before + 1 : self._at] if name not in self._share)

    @property
    def share(self) -> float:
        """Of the stages, not of the time."""
        return (self._at + self._share.get(self._names[self._at], 0.0)) / len(self._names)

    @property
    def said(self) -> str:
        of = f" of {len(self._names)}{' or more' if self._more else ''}" if self._planned else ""
        return f"stage {self._at + 1}{of}"

    def seconds(self, stage: str, now: float) -> float:
        """Since it was first told."""
        return now - self._began[stage][0]

    def left(self, now: float) -> float | None:
        """Seconds of the present stage, at the pace that it has had here; None as long as there is no evidence."""
        share = self._share.get(self._stage, 1.0)
        since, first = self._began.get(self._stage, (now, share))
        if share >= 1.0 or share <= first or now <= since:
            return None
        return (now - since) * (1.0 - share) / (share - first)

    def eta(self, now: float) -> str:
        """Of the whole run; empty as long as there is no evidence."""
        left = self.left(now)
        if left is None:
            return ""
        last = self._at + 1 == len(self._names) and not self._more
        return f"{'about' if last else 'at least'} {_clock(left)} to go"


class Told(Protocol):
    def plan(self, names: Sequence[str], *, more: bool) -> None: ...
    def __call__(self, stage: str, share: float) -> None: ...


@contextmanager
def shown(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Told]:
    """What a compilation is given to tell its progress to; a quiet console shows nothing."""
    if not console.is_terminal or console.quiet:
        yield Lines(console, clock)
        return
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # rich would show what is written to sys.stderr above the bars: all the noise of the tools, past `quiet`
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bars:
        yield Bars(bars, clock)


class Lines:
    """A line for each stage that begins, that took its time, that ends or was found; without control codes."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._stages = Stages()
        self._spoke: dict[str, float] = {}
        self._done: set[str] = set()

    def plan(self, names: Sequence[str], *, more: bool) -> None:
        self._stages.plan(names, more=more)

    def __call__(self, stage: str, share: float) -> None:
        now, stages = self._clock(), self._stages
        for name in stages.tell(stage, share, now):
            self._print(f"{name}: {_FOUND}")
        if stage in self._done:
            return
        if share >= 1.0:
            self._done.add(stage)
            self._print(f"{stages.said}: {stage}: done in {_clock(stages.seconds(stage, now))}")
        elif stage not in self._spoke:
            self._spoke[stage] = now
            self._print(f"{stages.said}: {stage}")
        elif now - self._spoke[stage] >= EVERY:
            self._spoke[stage] = now
            self._print(", ".join(filter(None, (f"{stages.said}: {stage}: {share:.0%}", stages.eta(now)))))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class Bars:
    """A bar for the run and one for each stage."""

    def __init__(self, bars: Progress, clock: Callable[[], float]) -> None:
        self._bars = bars
        self._clock = clock
        self._stages = Stages()
        self._whole = bars.add_task("compiling", total=1.0, left="")
        self._tasks: dict[str, TaskID] = {}

    def plan(self, names: Sequence[str], *, more: bool) -> None:
        self._stages.plan(names, more=more)

    def __call__(self, stage: str, share: float) -> None:
        now, stages = self._clock(), self._stages
        for name in stages.tell(stage, share, now):
            self._tasks[name] = self._bars.add_task(name, total=1.0, left=_FOUND)
            self._bars.update(self._tasks[name], completed=1.0)  # which stops its clock
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=1.0, left="")
        left = stages.left(now)
        self._bars.update(self._tasks[stage], completed=share, left="" if left is None else f"{_clock(left)} left")
        self._bars.update(self._whole, description=stages.said, completed=stages.share, left=stages.eta(now))


def _clock(seconds: float) -> str:
    """As 0:07, 12:30 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
