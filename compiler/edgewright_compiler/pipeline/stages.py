"""The stages of a compilation that are sure to come, by the names that they are told under, in order.

A stage whose steps are all found finished is not told, so that a planned one which the run came past was found. What
only measurement decides (training for int8, layers that stay float, further architectures of a search) is told when it
comes, and not planned.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgewright_contracts.manifest import Format

from ..recipe import Recipe
from ..training.prune import ladder
from .choice import Arch, Choice
from .files import NAMES
from .learn import training, tuning
from .search import archs


def planned(recipe: Recipe, formats: Sequence[Format], recorded: Choice | None, *, searched: bool) -> tuple[str, ...]:
    """With a recorded choice nothing is judged; without one, the first architecture is tried whatever happens; of a
    search that is the whole net, and whether it comes to pruning is a matter of minutes."""
    first = archs(recipe, all_of_them=searched)[0] if recorded is None else recorded.arch
    found = ["reading the data", "trying the export", *_learned(recipe, first)]
    for form in formats if recorded is None else [form for form in formats if form in recorded.chosen]:
        found += [f"exporting {NAMES[form]}", *([f"quantizing {NAMES[form]}"] if recorded is None else [])]
    if recorded is None:
        found += ["measuring candidates", "judging candidates"]
    return (*found, "measuring the package")


def _learned(recipe: Recipe, arch: Arch) -> list[str]:
    found = []
    if recipe.teacher is not None and recipe.teacher.build is not None:
        found.append("training the teacher")
    if recipe.student is not None:
        found.append(training(arch.width))
    if recipe.prune is not None and arch.share < 1.0:
        for target, shares in ladder(recipe.prune).items():
            found += [tuning(share) for share in shares]
            if target == arch.share:
                break
    return [*found, *(["training for int8"] if arch.qat else [])]
