"""The rule by which one of the measured candidates is packaged, and what is said when none can be. Pure.

Guarantee: nothing here has seen the test set. Candidates are judged on validation rows; the bound on the test set is
computed once, later, for what was chosen here. Equal candidates and limits give an equal choice.

A candidate is *within* the limits when its expected bound is: its loss on validation rows plus the half-width that the
test set will have. Among those, the one with the least bytes × time is taken, because a factor of two in either is
worth the same; where that differs by no more than times do, the one with the least loss; of equal loss, the one whose
answers are nearest to the float file's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgewright_contracts.errors import Refused

from .choice import COSTS, DEFAULT_DROP, Arch, Candidate, Choice, Limits, distance, left_out, loss_only, misses

NEAREST: Final = 3
SMALLER: Final = "let smaller ones be tried: more --minutes, a smaller width, the other --format"
NOISE: Final = 0.1  # of the logarithm of a cost: what times of equal files differ by on a busy machine


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


def _least(usable: Sequence[Candidate], limits: Limits, smaller: str) -> list[str]:
    """What can be reached here at all, for every limit that no candidate of some format keeps."""
    said = []
    for cost in COSTS:
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
    return min((c for c in within if c.cost <= least + NOISE), key=lambda c: (c.drop, distance(c)))


def _excess(candidate: Candidate, limits: Limits) -> float:
    """How many times over the limit it is that it misses most."""
    if limits.max_drop is None:
        over = [candidate.drop / DEFAULT_DROP]
    else:
        over = [(candidate.drop + candidate.half_width) / limits.max_drop]
    for cost in COSTS:
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
