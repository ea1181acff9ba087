"""The choice of what a device runs of a package: one variant, on one runtime.

Pure. A package that this agent or device cannot run is nobody's fault but that of who sent it here: `Unsuited`.
"""

from __future__ import annotations

import re

from edgewright_contracts.desired import DesiredModel
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest, Variant

from .failures import Unsuited


def choose(
    manifest: Manifest, wanted: DesiredModel, *, agent: str, arch: str, runtimes: tuple[str, ...]
) -> tuple[Variant, str]:
    """(variant, runtime), the best that `wanted` allows; `agent` is the version of this program.

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
        raise Unsuited(
            f"expected preprocess: graph, {manifest.name} {manifest.version} has host, and this agent cannot check the "
            f"application's own transform against golden.npz; make the package with its preprocessing in the graph, "
            f"by front(data) instead of host(rows): docs/your-own-model.md"
        )
    for variant, runtime in manifest.ranked(arch, runtimes):
        if wanted.variant in (None, variant.id):
            return variant, runtime
    raise Unsuited(
        f"expected a variant{f' {wanted.variant}' if wanted.variant else ''} for {arch} with "
        f"{' or '.join(runtimes) or 'no runtime at all'}, "
        f"{manifest.name} {manifest.version} has {', '.join(manifest.ranking)}"
    )


def release(version: str) -> tuple[int, ...]:
    """What versions are compared by: the numbers in front, without zeros behind; "0.2.0rc1" is (0, 2)."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(n) for n in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
