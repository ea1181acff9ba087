"""Why a message is not counted, in a word that can be counted itself.

    malformed   bytes that are no message of this kind
    counts      a number below 0, beyond 2**40, more errors than inferences, more of anything than any device can do
                in so long
    edges       cells that were counted under other channels than the package's, or another number of them
    clock       a window of the future
    replay      a number that was counted before: a broker's or device's second delivery, or somebody else's
    foreign     one device speaks for another
    size        more bytes than this kind of message may have
    topic       a topic that no device publishes
    width       counted, but not in the rollups: more or fewer cells than others under the same channels
    broken      the message broke its transaction

All but replays become dead letters, the newest `LETTERS_EACH` of each device; all are counted by device and reason.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import sqlalchemy as sa

from edgewright_contracts.binning import unpack
from edgewright_contracts.errors import ContractError
from edgewright_contracts.report import CONFIDENCE_BINS, Window

from ..registry.edges import Layout
from ..storage import telemetry

Reason = Literal["malformed", "counts", "edges", "clock", "replay", "foreign", "size", "topic", "width", "broken"]
LETTERS_EACH: Final = 100
LETTERS_KEPT: Final = 10_000
LETTER_BYTES: Final = 4096
WAITING: Final = 10_000  # refusals that wait for a database
FASTEST: Final = 1000  # inferences, labels or anything else in a millisecond: more is nonsense
LONGEST_MS: Final = 400 * 86_400_000  # of one window

_COUNTS: Final = frozenset((
    "n", "n_monitored", "errors", "rejected", "repeated", "cells", "hits", "outcomes", "shadow", "usage", "shed",
    "latency_queue", "latency_run", "latency_total", "input_age", "correct_by_confidence", "mono_end_ms", "span",
))  # fmt: skip


@dataclass(slots=True)
class Tally:
    """How often one device was refused for one reason, in a batch."""

    count: int
    first_ms: int
    last_ms: int
    said: str


class Noted:
    """What was refused before it became a message, until the writer counts it. `add` may be called from any thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Reason, str, int]] = deque(maxlen=WAITING)

    def add(self, device: str, reason: Reason, said: str) -> None:
        self._waiting.append((device, reason, said, int(time.time() * 1000)))

    def all(self) -> list[tuple[str, Reason, str, int]]:
        return list(self._waiting)

    def counted(self, number: int) -> None:
        """The first `number` of them are in the database."""
        for _ in range(min(number, len(self._waiting))):
            self._waiting.popleft()


class Refused(NamedTuple):
    device: str
    reason: Reason
    times: int  # since the hub first ran
    last_ms: int
    said: str  # of the last one


def since(connection: sa.Connection, at_ms: int) -> list[Refused]:
    """Of devices that were refused since then, the newest first."""
    r = telemetry.refusals.c
    columns = (r.device, r.reason, r["count"], r.last_ms, r.said)
    rows = connection.execute(sa.select(*columns).where(r.last_ms >= at_ms).order_by(r.last_ms.desc()))
    return [Refused(*row) for row in rows]


def totals(connection: sa.Connection) -> dict[Reason, int]:
    """Since the hub first ran, of all devices."""
    r = telemetry.refusals.c
    rows = connection.execute(sa.select(r.reason, sa.func.sum(r["count"])).group_by(r.reason).order_by(r.reason))
    return {reason: int(number) for reason, number in rows}


def reason_of(error: ContractError) -> Reason:
    """Of what could be read so far that a field is named."""
    return "counts" if _COUNTS & set(error.field.replace("[", ".").split(".")) else "malformed"


def absurd(window: Window) -> str:
    """Why no device can have counted this, or nothing. Raises ContractError for labels that cannot be read."""
    length_ms = window.mono_end_ms - window.mono_start_ms
    if length_ms > LONGEST_MS:
        days = f"at most {LONGEST_MS // 86_400_000} days, got {length_ms // 86_400_000}"
        return f"mono_end_ms: expected a window of {days}"
    most = FASTEST * (length_ms + 1000)
    for name, number in _told(window):
        if number > most:
            return f"{name}: expected at most {most} in {length_ms} ms, got {number}"
    return ""


def _told(window: Window) -> Iterator[tuple[str, int]]:
    """What is bounded by time alone, and not by another number of the window."""
    yield "n", window.n
    yield "repeated", window.repeated
    yield "shadow.n", window.shadow.n
    if window.rejected:
        yield "rejected", sum(window.rejected.values())
    for name, hits in window.outcomes.items():
        yield f"outcomes[{name}]", hits.n
    if data := window.correct_by_confidence:
        bins = unpack(data, field="correct_by_confidence", count=2 * CONFIDENCE_BINS)
        yield "correct_by_confidence", int(bins[:CONFIDENCE_BINS].sum())


def unlike(window: Window, layout: Layout, width: int, total: int) -> tuple[Reason, str] | None:
    """Why its so many cells, with that sum, cannot have been counted by its package."""
    package = f"{window.digest} {window.variant}"
    if window.edge_hash != layout.edge_hash:
        said = f"edge_hash: expected {layout.edge_hash}, as of the channels of {package}, got {window.edge_hash}"
        return "edges", f"report.window.{said}"
    if width not in (0, layout.width):
        said = f"cells: expected {layout.width} cells, as of the channels of {package}, got {width}"
        return "edges", f"report.window.{said}"
    if layout.most is not None and total > window.n * layout.most:
        said = f"cells: expected a sum of at most {window.n * layout.most} of {window.n} inferences, got {total}"
        return "counts", f"report.window.{said}"
    return None
