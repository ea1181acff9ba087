"""Whether the hub is whole: its periodic work, its threads and tasks, and what it says of itself at /healthz.

What fails is tried again by whoever does it, and told meanwhile: `reasons` has a sentence for each part that does not
work now. What is *dead*, a thread or task that ended although nobody told it to, does not come back: `watch` raises
Unavailable, the process ends with status 3, and whoever keeps it running starts it anew. Nothing is lost by that,
because devices keep what is not acknowledged; a hub that answers devices and counts nothing would be worse.

Order: dead parts are seen within `LOOK_S`; a periodic task is late `LATE_S` after its turn was due. The sentences name
no error and no place, since anyone may ask; the log does. Cost of asking: two small reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from edgewright_contracts.errors import Unavailable

from .storage.store import away

LOOK_S: Final = 0.5
LATE_S: Final = 60.0
AWAY_S: Final = 5.0  # between two turns, at most, while a database is away: what runs hourly need not wait an hour
PAUSE_S: Final = 0.02  # between the turns of a task that has more to do, so that others get at the databases
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Beat:
    """How a periodic task fares."""

    name: str
    every_s: float
    ended_s: float = field(default_factory=time.monotonic)  # when its last turn ended, or when it began to wait
    failed: bool = False

    def said(self, now_s: float) -> str:
        """Why it is not well, or nothing."""
        if self.failed:
            return f"{self.name} failed and is tried again"
        since_s = now_s - self.ended_s
        return f"{self.name} has not ended a turn for {since_s:.0f} s" if since_s > self.every_s + LATE_S else ""


class Vitals:
    """`databases`: each with the question that only a sound one answers. Parts are added while the hub starts."""

    def __init__(self, databases: Mapping[str, tuple[sa.Engine, sa.Select[Any]]]) -> None:
        self._databases = databases
        self._asked: list[Callable[[], str]] = []
        self._living: list[tuple[str, Callable[[], bool]]] = []

    def ask(self, said: Callable[[], str]) -> None:
        """`said` has a sentence when something does not work, else nothing."""
        self._asked.append(said)

    def keep(self, name: str, lives: Callable[[], bool]) -> None:
        """The hub cannot be without this."""
        self._living.append((name, lives))

    def keep_task(self, name: str, task: asyncio.Task[Any]) -> None:
        self.keep(name, lambda: not task.done())

    def reasons(self) -> list[str]:
        """Why the hub is not well; none when it is."""
        out = []
        for name, (engine, question) in self._databases.items():
            try:
                with engine.connect() as connection:
                    connection.execute(question).first()
            except sa.exc.SQLAlchemyError:
                _LOG.exception("%s cannot be read", name)
                out.append(f"{name} cannot be read")
        return out + [text for said in self._asked if (text := said())]

    async def watch(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises Unavailable when a part died."""
        while not stop.is_set():
            for name, lives in self._living:
                if not lives():
                    _LOG.critical("%s ended by itself; the hub cannot be without it and ends too", name)
                    raise Unavailable(f"{name} of the hub ended by itself (the log says more): start the hub again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_S)

    @contextlib.asynccontextmanager
    async def every(self, name: str, seconds: float, act: Callable[[], Any]) -> AsyncIterator[None]:
        """Run `act` in a thread again and again, `seconds` apart; a failure is logged and the next turn comes all the
        same. An act that returns True has more to do and is called again at once."""
        beat = Beat(name, seconds)
        task = asyncio.create_task(_turns(beat, act))
        self.ask(lambda: beat.said(time.monotonic()))
        self.keep_task(name, task)
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _turns(beat: Beat, act: Callable[[], Any]) -> None:
    while True:
        more, rest_s = False, beat.every_s
        try:
            more = await asyncio.to_thread(act) is True
            beat.failed = False
        except Exception as error:
            if away(error):  # a full disk, a lock, a server that restarts: not ours, and over soon or not
                rest_s = min(rest_s, AWAY_S)
                if not beat.failed:
                    _LOG.error("%s: a database fails (%s); tried again every %g s", beat.name, error, rest_s)
            else:
                _LOG.exception("%s failed; it is tried again in %g s", beat.name, rest_s)
            beat.failed = True
        beat.ended_s = time.monotonic()
        await asyncio.sleep(PAUSE_S if more else rest_s)
