"""The search: which architectures are tried, in which order, and until when.

Without a budget the recipe's own architecture is all, and where only int8 loses too much, the same trained for int8
(which costs minutes, and is taken only where it measures better). With one, its other widths and shares follow, from
the largest down, as long as the next is expected to end in time; time is what steps took when they were made, so that a
resumed search ends where the first would have. Once there are candidates, an architecture whose float form is far
outside is not exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edgewright_contracts.errors import Refused
from edgewright_contracts.manifest import Format
from edgewright_devices import DeviceProfile

from ..graph.graph import plain
from ..measuring.evidence import Machine
from ..measuring.metrics import Outputs
from ..recipe import Recipe
from .build import Built
from .candidates import candidates, judged
from .choice import DEFAULT_DROP, Arch, Candidate, Choice, Limits, int8_costs
from .choosing import choose
from .learn import Learned, answered, pruned_sizes, student
from .workbench import Workbench

FAR: Final = 3.0  # times the points aimed at, from which a float net is not worth exporting


def archs(recipe: Recipe, *, all_of_them: bool) -> tuple[Arch, ...]:
    """The recipe's own: its first width, pruned to its last share. All of them: from the largest down."""
    shares = recipe.prune.shares if recipe.prune is not None else ()
    widths = recipe.widths if recipe.student is not None else (1.0,)
    if not all_of_them:
        return (Arch(width=widths[0], share=shares[-1] if shares else 1.0),)
    return tuple(Arch(width=w, share=s) for w in widths for s in (1.0, *shares))


def for_int8(arch: Arch) -> Arch:
    """The same, trained for int8 at the end."""
    return msgspec.structs.replace(arch, qat=True)


def search(
    bench: Workbench,
    device: DeviceProfile,
    machine: Machine,
    formats: Sequence[Format],
    limits: Limits,
    minutes: float | None,
    taught_by: Learned | None,
    truth: Outputs,
    kept: Callable[[Limits, Sequence[Candidate]], None] = lambda _limits, _found: None,
) -> Choice:
    """`kept` is given what was measured when it ends without a choice, whatever ends it.

    Raises Refused when nothing keeps the limits, or nothing could be made.
    """
    found: list[Candidate] = []
    try:
        tried, untried = _explored(bench, device, machine, formats, limits, minutes, taught_by, truth, found)
        choice = choose(found, limits, tried, untried)
    except BaseException:
        kept(limits, found)
        raise
    return msgspec.structs.replace(choice, sizes=pruned_sizes(bench, choice.arch, taught_by))


def _explored(
    bench: Workbench,
    device: DeviceProfile,
    machine: Machine,
    formats: Sequence[Format],
    limits: Limits,
    minutes: float | None,
    taught_by: Learned | None,
    truth: Outputs,
    found: list[Candidate],
) -> tuple[tuple[Arch, ...], tuple[Arch, ...]]:
    """Adds to `found` as it goes; gives the architectures that were tried, and those that time was too short for."""
    tried: list[Arch] = []
    longest, before = 0.0, bench.store.spent
    waiting = list(archs(bench.recipe, all_of_them=minutes is not None))
    while waiting:
        start = bench.store.spent
        if tried and minutes is not None and start - before + longest > 60 * minutes:
            break
        arch = waiting.pop(0)
        tried.append(arch)
        try:
            more = _tried(bench, device, machine, arch, formats, limits, taught_by, truth, screen=bool(found))
            if not arch.qat and int8_costs(more, limits):
                waiting.insert(0, for_int8(arch))
            found += more
        except Refused as reason:
            if minutes is None:
                raise
            found += _none(arch, formats, str(reason))
        longest = max(longest, bench.store.spent - start)
    return tuple(tried), tuple(waiting)


def _tried(
    bench: Workbench,
    device: DeviceProfile,
    machine: Machine,
    arch: Arch,
    formats: Sequence[Format],
    limits: Limits,
    taught_by: Learned | None,
    truth: Outputs,
    *,
    screen: bool,
) -> tuple[Candidate, ...]:
    learned = student(bench, arch, taught_by)
    if screen:
        graph = plain(bench.recipe, bench.data, learned.net(), temperature=1.0, seed=bench.seed)
        _, bound = judged(bench, truth, answered(graph, bench.data.validation))
        aim = limits.max_drop or DEFAULT_DROP
        if 2 * bound.estimate - bound.bound > FAR * aim:  # the estimate less the half-width
            return _none(arch, formats, f"its float form loses {bound.estimate:.2f} points already")
    return candidates(bench, device, machine, arch, Built(bench, learned), formats, truth, limits)


def _none(arch: Arch, formats: Sequence[Format], reason: str) -> tuple[Candidate, ...]:
    return tuple(Candidate(arch=arch, scheme=f"{f}-fp32", format=f, precision="fp32", refused=reason) for f in formats)
