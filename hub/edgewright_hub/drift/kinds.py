"""What kind of drift it is, in an operator's words: one table from what was seen to what it is called. Pure.

    label shift               the mix of predicted classes moved further than the embedding, and no input did
    missing values            cells of missing values (NaN) hold clearly more than before
    new classes               values outside of all that the reference knew, or further from all known classes
    training-serving skew     a device differs from training since its first windows, while it agrees with itself
    stale or repeated input   inputs repeat, or are older when they are used, as the agent counts them
    input shift, unfelt       inputs moved, and neither embedding nor output: the model does not see it
    input shift, felt         inputs moved, and with them the embedding or the output
    output shift              the output moved alone, and not its classes

Several may hold at once; `severity` is how many of input, embedding and output moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .moves import Moved

PARTS: Final = ("input", "embedding", "output")
FEED: Final = "feed"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen on one device, or one cohort, of one variant in one context."""

    parts: frozenset[str]  # in alarm
    missing: bool = False
    outside: bool = False
    classes: float = 0.0  # how far the predicted classes moved, beyond chance; 0: they did not
    embedding: float = 0.0  # how far the embedding moved at most, alarm or not
    skew: bool = False


_Named = tuple[str, Callable[[Evidence], bool]]
TABLE: Final[tuple[_Named, ...]] = (
    ("training-serving skew", lambda e: e.skew),
    ("missing values", lambda e: e.missing),
    ("new classes", lambda e: e.outside and not e.missing),
    ("stale or repeated input", lambda e: FEED in e.parts),
    ("label shift", lambda e: e.classes > e.embedding and "input" not in e.parts),
    ("input shift, unfelt", lambda e: "input" in e.parts and not e.parts & {"embedding", "output"}),
    ("input shift, felt", lambda e: "input" in e.parts and bool(e.parts & {"embedding", "output"})),
    ("output shift", lambda e: e.parts & set(PARTS) == {"output"} and not e.classes),
)


def evidence(
    moves: Mapping[str, Sequence[Moved]], *, alarms: frozenset[str], skewed: frozenset[str] = frozenset()
) -> Evidence:
    """`moves`: the channels that moved of each part, also of parts that are not in alarm; `alarms`: parts that drifted;
    `skewed`: parts that always differed."""
    told = [m for part in alarms | skewed for m in moves.get(part, ())]
    novelty = any(m.name.startswith("distance") and m.up for m in told)
    outside = any(m.cells == "outside" for part in (alarms | skewed) - {"input", FEED} for m in moves.get(part, ()))
    classes = [m.js_beyond_chance for m in moves.get("output", ()) if m.of == "categorical"]
    return Evidence(
        parts=alarms,
        missing=any(m.cells == "missing" for m in told),
        outside=novelty or outside,
        classes=max(classes, default=0.0) if "output" in alarms else 0.0,
        embedding=max((m.js_beyond_chance for m in moves.get("embedding", ())), default=0.0),
        skew=bool(skewed),
    )


def kinds(seen: Evidence) -> tuple[str, ...]:
    return tuple(name for name, holds in TABLE if holds(seen))


def severity(seen: Evidence) -> int:
    return len(seen.parts & set(PARTS))
