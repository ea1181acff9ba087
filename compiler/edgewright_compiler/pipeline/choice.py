"""The choice: which of the measured candidates is packaged. Pure; its whole input and answer are one file, choice.json.

Guarantee: nothing here has seen the test set. Candidates are judged on validation rows; the bound on the test set is
computed once, later, for what was chosen here. Equal candidates and limits give an equal choice, and a recorded choice
can be handed in instead of measuring again, so that a package can be made anew, bit for bit, on a machine like it.

A candidate is *within* the limits when its expected bound is: its loss on validation rows plus the half-width that the
test set will have. Among those, the one with the least bytes × time is taken, because a factor of two in either is
worth the same; where that differs by no more than times do, the one with the least loss; of equal loss, the one whose
answers are nearest to the float file's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, log
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.manifest import Format

from ..disk import write_whole

DEFAULT_DROP: Final = 1.0  # points, what a choice aims at when nobody sets a limit
NEAREST: Final = 3
SMALLER: Final = "let smaller ones be tried: more --minutes, a smaller width, the other --format"
NOISE: Final = 0.1  # of the logarithm of a cost: what times of equal files differ by on a busy machine


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


class _Cost(NamedTuple):
    """Something that is limited, besides the loss: of a candidate, its limit, and how it is spoken of."""

    of: Callable[[Candidate], float | None]
    limit: Callable[[Limits], float | None]
    unit: str
    option: str
    least: str


_COSTS: Final = (
    _Cost(lambda c: c.p95_ms, lambda asked: asked.max_p95_ms, "ms", "--max-p95-ms", "fastest"),
    _Cost(lambda c: c.bytes / 1000, lambda asked: asked.max_size_kb, "kB", "--max-size-kb", "smallest"),
    _Cost(lambda c: c.rss_mb, lambda asked: asked.max_rss_mb, "MB", "--max-rss-mb", "least in memory"),
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
    for cost in _COSTS:
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


def choose(
    candidates: Sequence[Candidate],
    limits: Limits,
    tried: Sequence[Arch],
    untried: Sequence[Arch] = (),
    smaller: str = SMALLER,
) -> Choice:
    """The architecture whose best candidates, one for each format, cost least in sum.

    Without `max_drop`, the least loss is taken when nothing comes near. Raises Refused when no candidate keeps limits
    that were asked for: with the nearest ones, which limit each of them misses, and what would help; `smaller` says
    how there can be smaller and faster ones.
    """
    formats = sorted({c.format for c in candidates})
    best: list[tuple[float, Arch, dict[str, str]]] = []
    for arch in dict.fromkeys(c.arch for c in candidates):
        picked = [
            _best(within)
            for form in formats
            if (within := [c for c in candidates if (c.arch, c.format) == (arch, form) and not misses(c, limits)])
        ]
        if len(picked) == len(formats):
            best.append((sum(c.cost for c in picked), arch, {c.format: c.scheme for c in picked}))
    if best:
        _, arch, chosen = min(best, key=lambda b: (b[0], b[1].id))
        of = "the only architecture" if len(best) == 1 else f"{len(best)} architectures"
        return Choice(
            arch=arch,
            chosen=chosen,
            limits=limits,
            candidates=tuple(candidates),
            why=f"least bytes × time of {of} within the limits",
            tried=tuple(tried),
            untried=tuple(untried),
        )
    usable = [c for c in candidates if not c.refused]
    if limits == Limits() and {c.format for c in usable} == set(formats):
        arch = min(usable, key=lambda c: (c.drop, c.cost)).arch
        of_arch = [c for c in usable if c.arch == arch]
        if {c.format for c in of_arch} == set(formats):
            chosen = {
                form: min((c for c in of_arch if c.format == form), key=lambda c: (c.drop, c.cost)).scheme
                for form in formats
            }
            why = f"the least loss: nothing comes within {DEFAULT_DROP:g} point of the reference on validation rows"
            return Choice(
                arch=arch,
                chosen=chosen,
                limits=limits,
                candidates=tuple(candidates),
                why=why,
                tried=tuple(tried),
                untried=tuple(untried),
                poor=True,
            )
    said = [f"no candidate of {len(candidates)} keeps every limit", nearest(candidates, limits)]
    said += [*_least(usable, limits, smaller), _rows(usable, limits), left_out(untried) if untried else ""]
    raise Refused(". ".join(filter(None, said)))


def left_out(untried: Sequence[Arch]) -> str:
    """What a search did not reach, in words."""
    names = ", ".join(arch.id for arch in untried)
    planned = "1 planned architecture was" if len(untried) == 1 else f"{len(untried)} planned architectures were"
    return f"{planned} not tried, no minutes were left ({names}): more --minutes tries them"


def _least(usable: Sequence[Candidate], limits: Limits, smaller: str) -> list[str]:
    """What can be reached here at all, for every limit that no candidate of some format keeps."""
    said = []
    for cost in _COSTS:
        limit, over = cost.limit(limits), []
        for form in sorted({c.format for c in usable}):
            least = min((v for c in usable if c.format == form and (v := cost.of(c)) is not None), default=None)
            if limit is not None and least is not None and least > limit:
                over.append(f"{least:.3g} {cost.unit} ({form})")
        if over:
            estimate = ", an estimate until the device has measured" if cost.option == "--max-p95-ms" else ""
            said.append(f"The {cost.least} here is {' and '.join(over)}{estimate}: raise {cost.option}, or {smaller}")
    whole = sorted({c.format for c in usable if not misses(c, limits)})
    return said + [f"--format {form} alone keeps every limit" for form in whole]


def _rows(usable: Sequence[Candidate], limits: Limits) -> str:
    """Whether more test rows would help: they do where the width of the interval is all that stands in the way."""
    if limits.max_drop is None or not usable or not all(misses(c, loss_only(limits)) for c in usable):
        return ""
    least = min(usable, key=lambda c: (c.drop, c.id))
    if least.drop >= limits.max_drop:
        rows = f" (n = {least.rows:,})" if least.rows else ""
        said = f"The least loss is {least.drop:.2f} points by estimate{rows}, of {least.id}. "
        return said + "The loss itself is the limit, more test rows would not help"
    near = [c for c in usable if c.drop < limits.max_drop and len(misses(c, limits)) == 1 and c.rows_needed]
    if not near:
        return ""
    best = min(near, key=lambda c: (c.rows_needed, c.id))
    return (
        f"{best.id} loses {best.drop:.2f} points by estimate, and the number of test rows is the limit "
        f"(n = {best.rows:,}): at these rates {best.rows_needed:,} would do"
    )


def _best(within: Sequence[Candidate]) -> Candidate:
    """The least cost; of those that a clock cannot tell from it, the least loss, then the answers nearest to the float
    file's, then the first, as schemes are tried from the simplest on."""
    least = min(c.cost for c in within)
    return min((c for c in within if c.cost <= least + NOISE), key=lambda c: (c.drop, _error(c)))


def _error(candidate: Candidate) -> float:
    return inf if candidate.error is None else candidate.error


def _excess(candidate: Candidate, limits: Limits) -> float:
    """How many times over the limit it is that it misses most."""
    if limits.max_drop is None:
        over = [candidate.drop / DEFAULT_DROP]
    else:
        over = [(candidate.drop + candidate.half_width) / limits.max_drop]
    for cost in _COSTS:
        value, limit = cost.of(candidate), cost.limit(limits)
        if value is not None and limit is not None:
            over.append(value / limit)
    return max(over)


def nearest(candidates: Sequence[Candidate], limits: Limits) -> str:
    """The candidates that miss least what they miss most, and what binds them, for the message."""
    ranked = sorted(
        (c for c in candidates if not c.refused), key=lambda c: (_excess(c, limits), c.drop + c.half_width, c.cost)
    )[:NEAREST]
    if not ranked:
        reasons = dict.fromkeys(c.refused for c in candidates)
        return f"None could be made: {'; '.join(reasons)}"
    lines = [f"{c.id} ({c.format}): {', '.join(misses(c, limits)) or 'keeps all'}" for c in ranked]
    return "Nearest: " + "; ".join(lines)


def pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that no other of their format beats in loss, bytes, time and error at once, by rising loss."""
    usable = [c for c in candidates if not c.refused]
    front = [c for c in usable if not any(_dominates(other, c) for other in usable if other.format == c.format)]
    return tuple(sorted(front, key=lambda c: (c.format, c.drop, c.bytes)))


def _dominates(a: Candidate, b: Candidate) -> bool:
    x, y = ((c.drop, c.bytes, c.relative, _error(c)) for c in (a, b))
    return all(p <= q for p, q in zip(x, y, strict=True)) and x != y


_ANEW: Final = "or leave the recorded choice out (--choice), and it is made anew"
_PURPOSES: Final = {
    "recipe": ("another recipe or file, or other settings of it", "compile the one that it was made for"),
    "data": ("other data", "compile with those"),
    "device": ("another device", "name that one (--device)"),
    "seed": ("another seed", "give that one (--seed)"),
}


def recalled(choice: Choice, purpose: Purpose, archs: Sequence[Arch], formats: Sequence[Format]) -> Choice:
    """A recorded choice, for `formats` alone. `archs` are all that the recipe can make.

    Raises RequestError when it was made for another recipe, device, seed or data, does not say for which, or chooses
    what cannot be made.
    """
    if choice.purpose is None:
        raise RequestError(
            "the recorded choice does not say what it was made for: expected recipe, data, device and seed under "
            f"'purpose', got nothing; take the choice.json of a run, {_ANEW}"
        )
    for name, (what, way_out) in _PURPOSES.items():
        expected, got = (str(getattr(one, name)) for one in (purpose, choice.purpose))
        if expected != got:
            raise RequestError(
                f"the recorded choice was made for {what}: expected {expected:.16}, got {got:.16}; {way_out}, {_ANEW}"
            )
    if msgspec.structs.replace(choice.arch, qat=False) not in archs:
        known = ", ".join(arch.id for arch in archs)
        raise RequestError(
            f"the recorded choice is {choice.arch.id}: expected one of {known}; compile what it was made for, {_ANEW}"
        )
    left = {form: scheme for form, scheme in choice.chosen.items() if form in formats}
    if not left:
        has = ", ".join(choice.chosen) or "no format"
        raise RequestError(
            f"the recorded choice has {has}: expected {' or '.join(formats)}; name another --format, {_ANEW}"
        )
    return msgspec.structs.replace(choice, chosen=left)


def limits_of(recorded: Choice | None, asked: Limits) -> Limits:
    """The limits that hold: those of a recorded choice, which was made within them, or else those that are asked for.

    Raises RequestError when one that is asked for is not the recorded one; one that is left out is the recorded one.
    """
    if recorded is None:
        return asked
    found = []
    for name in Limits.__struct_fields__:
        held, wanted = getattr(recorded.limits, name), getattr(asked, name)
        if wanted is not None and wanted != held:
            had = "none" if held is None else f"{held:g}"
            found.append(f"--{name.replace('_', '-')}: expected {had}, got {wanted:g}")
    if found:
        raise RequestError(
            f"the recorded choice was made within other limits ({'; '.join(found)}): leave these limits out, and those "
            "that it was made within hold, or leave the recorded choice out (--choice), and one is made within yours"
        )
    return recorded.limits


def write_choice(choice: Choice, path: Path) -> None:
    write_whole(path, msgspec.json.format(msgspec.json.encode(choice, order="deterministic"), indent=1) + b"\n")


def read_choice(path: Path) -> Choice:
    """Raises RequestError for a file that is not there or is no choice."""
    try:
        choice = msgspec.json.decode(path.read_bytes(), type=Choice)
    except OSError as error:
        raise RequestError(f"{path}: expected a choice.json of an earlier run: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise RequestError(f"{path} is no choice.json of an earlier run: {error}") from None
    there = {(c.arch, c.format, c.scheme) for c in choice.candidates}
    for form, scheme in choice.chosen.items():
        if (choice.arch, form, scheme) not in there:
            raise RequestError(f"{path} chooses {choice.arch.id}/{scheme}, which is not among its candidates")
    return choice
