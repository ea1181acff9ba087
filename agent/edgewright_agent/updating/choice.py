"""The choice of what a device runs of a package: one variant, on one runtime.

Pure. A package that this agent or device cannot run is nobody's fault but that of who sent it here: `Unsuited`.
"""

from __future__ import annotations

import re

from edgewright_contracts.desired import DesiredModel
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest, Variant
from edgewright_runtime.golden import GOLDEN_FILE

from .failures import Unsuited


def choose(
    manifest: Manifest,
    wanted: DesiredModel,
    *,
    agent: str,
    arch: str,
    runtimes: tuple[str, ...],
    transform: bool = False,
) -> tuple[Variant, str]:
    """(variant, runtime), the best that `wanted` allows; `agent` is the version of this program, `transform` whether
    the application has named its own preprocessing.

    Raises Unsuited, ContractError.
    """
    if manifest.name != wanted.name:
        raise ContractError("manifest.name", wanted.name, manifest.name)
    if release(manifest.requires_agent) > release(agent):
        raise Unsuited(
            f"expected agent >= {manifest.requires_agent}, this is {agent}; "
            f"update the agent, or send {manifest.name} {manifest.version} to other devices"
        )
    if manifest.preprocess == "host":
        if GOLDEN_FILE not in manifest.files:
            raise ContractError("files", f"{GOLDEN_FILE}, for preprocess is host", "none")
        if not transform:
            raise untransformed(manifest)
    for variant, runtime in manifest.ranked(arch, runtimes):
        if wanted.variant in (None, variant.id):
            return variant, runtime
    raise Unsuited(
        f"expected a variant{f' {wanted.variant}' if wanted.variant else ''} for {arch} with "
        f"{' or '.join(runtimes) or 'no runtime at all'}, "
        f"{manifest.name} {manifest.version} has {', '.join(manifest.ranking)}"
    )


def untransformed(manifest: Manifest) -> Unsuited:
    """The refusal of a package whose preprocessing is the application's, which has named none."""
    return Unsuited(
        f"expected the application's preprocessing, for {manifest.name} {manifest.version} has preprocess: host, and "
        f"none is registered; name it, as agent.model({manifest.name!r}, transform=function), in the process that "
        f"predicts. A daemon has no such process: there, put the preprocessing in the graph, by front(data) instead of "
        f"host(rows)"
    )


def release(version: str) -> tuple[int, ...]:
    """What versions are compared by: the numbers in front, without zeros behind; "0.2.0rc1" is (0, 2)."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(n) for n in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
