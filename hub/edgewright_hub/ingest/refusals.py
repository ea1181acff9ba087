"""Why a message is not counted, in a word that can be counted itself.

    malformed   bytes that are no message of this kind
    counts      a number below 0, beyond 2**40, more errors than inferences, more inferences than any device can make
    edges       cells that were counted under other channels than the package's
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

from dataclasses import dataclass
from typing import Final, Literal

from edgewright_contracts.errors import ContractError
from edgewright_contracts.report import Window

Reason = Literal["malformed", "counts", "edges", "clock", "replay", "foreign", "size", "topic", "width", "broken"]
LETTERS_EACH: Final = 100
LETTERS_KEPT: Final = 10_000
LETTER_BYTES: Final = 4096
FASTEST: Final = 1000  # inferences in a millisecond: more is nonsense
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


def reason_of(error: ContractError) -> Reason:
    """Of what could be read so far that a field is named."""
    return "counts" if _COUNTS & set(error.field.replace("[", ".").split(".")) else "malformed"


def absurd(window: Window) -> str:
    """Why no device can have counted this, or nothing."""
    length_ms = window.mono_end_ms - window.mono_start_ms
    if length_ms > LONGEST_MS:
        return f"expected a window of at most {LONGEST_MS // 86_400_000} days, got {length_ms // 86_400_000}"
    most = FASTEST * (length_ms + 1000)
    if window.n > most:
        return f"expected at most {most} inferences in {length_ms} ms, got {window.n}"
    return ""
