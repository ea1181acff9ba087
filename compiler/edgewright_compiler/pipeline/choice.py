"""What a choice is made of: the limits, the architectures, the candidates that were measured, and what was decided.

Pure; `Choice` is the whole of choice.json. The rule is in `choosing`, files are `recorded`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, log
from typing import Any, Final, NamedTuple

import msgspec

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Format

DEFAULT_DROP: Final = 1.0  # points, what a choice aims at when nobody sets a limit


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the package must keep; None is no limit. `max_drop` in points, on the 95 % bound; times on the device."""

    max_drop: float | None = None
    max_p95_ms: float | None = None
    max_size_kb: float | None = None
    max_rss_mb: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise RequestError(f"--{name.replace('_', '-')}: expected a number above 0, got {value}")


class Arch(msgspec.Struct, frozen=True, kw_only=True):
    """One net to try: how wide it starts, the share of it that pruning leaves (1.0: not pruned), and whether it was
    trained for int8 at the end (quantization-aware)."""

    width: float = 1.0
    share: float = 1.0
    qat: bool = False

    @property
    def id(self) -> str:
        return f"w{self.width:g}-p{self.share:g}{'-qat' if self.qat else ''}"


class Purpose(msgspec.Struct, frozen=True, kw_only=True):
    """What a choice was made for. `recipe` is a digest of the files and settings of a recipe, or of a finished file and
    what was asked of it; `data` is their fingerprint."""

    recipe: str
    data: str
    device: str
    seed: int


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One file that could be packaged, as it was measured on validation rows and on this machine.

    `how` are the fields of its scheme, so that it can be made again from a recorded choice. `drop` and `half_width` in
    points: the estimate against the float reference, and that of a one-sided 95 % interval at the size of the test set,
    which is `rows`; `rows_needed` would bring the bound under the `max_drop` that was asked for (None: none would).
    `relative` is p50 over the reference kernel's, which compares across runs. `p95_ms` is
    for the device: an estimate until it has measured. `error` is the mean distance of its answers from those of the
    float file, in units of each output's range, of the output where it is largest (None: not compared). A candidate
    that could not be made says so in `refused`.
    """

    arch: Arch
    scheme: str
    format: Format
    precision: str
    how: Mapping[str, Any] = {}
    value: float = 0.0
    drop: float = 0.0
    half_width: float = 0.0
    rows: int = 0
    rows_needed: int | None = None
    bytes: int = 0
    p50_us: float = 0.0
    relative: float = 0.0
    p95_ms: float = 0.0
    rss_mb: float | None = None
    error: float | None = None
    refused: str = ""

    @property
    def id(self) -> str:
        return f"{self.arch.id}/{self.scheme}"

    @property
    def cost(self) -> float:
        return log(self.bytes) + log(self.relative)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided, on what. `chosen` names a scheme for every format; all are of one architecture. `untried` are
    the architectures of the search that its minutes did not reach."""

    arch: Arch
    chosen: Mapping[str, str]
    limits: Limits
    candidates: tuple[Candidate, ...]
    why: str
    tried: tuple[Arch, ...]
    untried: tuple[Arch, ...] = ()
    poor: bool = False  # nothing was within what is aimed at
    sizes: tuple[int, ...] = ()  # bytes of weights after each round of pruning, where a clock decided them
    purpose: Purpose | None = None  # None: not yet said

    def candidate(self, form: str) -> Candidate:
        return next(
            c for c in self.candidates if c.arch == self.arch and c.format == form and c.scheme == self.chosen[form]
        )


class Cost(NamedTuple):
    """Something that is limited, besides the loss: of a candidate, its limit, and how it is spoken of."""

    of: Callable[[Candidate], float | None]
    limit: Callable[[Limits], float | None]
    unit: str
    option: str
    least: str


COSTS: Final = (
    Cost(lambda c: c.p95_ms, lambda asked: asked.max_p95_ms, "ms", "--max-p95-ms", "fastest"),
    Cost(lambda c: c.bytes / 1000, lambda asked: asked.max_size_kb, "kB", "--max-size-kb", "smallest"),
    Cost(lambda c: c.rss_mb, lambda asked: asked.max_rss_mb, "MB", "--max-rss-mb", "least in memory"),
)


def misses(candidate: Candidate, limits: Limits) -> tuple[str, ...]:
    """The limits that a candidate does not keep, in words; none: it is within all of them."""
    if candidate.refused:
        return (candidate.refused,)
    found = []
    if limits.max_drop is None:
        if candidate.drop > DEFAULT_DROP:
            found.append(f"loses {candidate.drop:.2f} points, more than the {DEFAULT_DROP:g} aimed at")
    elif candidate.drop + candidate.half_width > limits.max_drop:
        reach = candidate.drop + candidate.half_width
        rows = f", n = {candidate.rows:,}" if candidate.rows else ""
        found.append(
            f"expected bound on the loss {reach:.2f} points > --max-drop {limits.max_drop:g} "
            f"(estimate {candidate.drop:.2f}{rows})"
        )
    for cost in COSTS:
        value, limit = cost.of(candidate), cost.limit(limits)
        if limit is not None and value is not None and value > limit:
            found.append(f"{value:.3g} {cost.unit} > {cost.option} {limit:g}")
    return tuple(found)


def loss_only(limits: Limits) -> Limits:
    return Limits(max_drop=limits.max_drop)


def int8_costs(candidates: Sequence[Candidate], limits: Limits) -> bool:
    """Whether some format keeps the loss within its limit in float and in no int8: what training for int8 may mend."""
    forms = {c.format for c in candidates}
    within = {(c.format, c.precision) for c in candidates if not misses(c, loss_only(limits))}
    quantized = {c.format for c in candidates if c.precision == "int8" and not c.refused}
    return any((f, "fp32") in within and (f, "int8") not in within and f in quantized for f in forms)


def left_out(untried: Sequence[Arch]) -> str:
    """What a search did not reach, in words."""
    names = ", ".join(arch.id for arch in untried)
    planned = "1 planned architecture was" if len(untried) == 1 else f"{len(untried)} planned architectures were"
    return f"{planned} not tried, no minutes were left ({names}): more --minutes tries them"


def distance(candidate: Candidate) -> float:
    return inf if candidate.error is None else candidate.error


def pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that no other of their format beats in loss, bytes, time and error at once, by rising loss."""
    usable = [c for c in candidates if not c.refused]
    front = [c for c in usable if not any(_dominates(other, c) for other in usable if other.format == c.format)]
    return tuple(sorted(front, key=lambda c: (c.format, c.drop, c.bytes)))


def _dominates(a: Candidate, b: Candidate) -> bool:
    x, y = ((c.drop, c.bytes, c.relative, distance(c)) for c in (a, b))
    return all(p <= q for p, q in zip(x, y, strict=True)) and x != y
