"""Whether a rollout may begin: which package and which devices its specification means, and what speaks against it.

Everything is refused before anything moves, with the reason and the way out: RequestError for what names something that
is not there, Refused where the answer is "no".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from edgewright_contracts.desired import Desired
from edgewright_contracts.errors import Refused, RequestError

from ..storage import control
from .desired_documents import MODELS, room, told
from .specification import RolloutSpec, stored
from .state import ACTIVE


class Package(NamedTuple):
    name: str
    version: str
    digest: str
    state: str


def packages(connection: sa.Connection) -> list[Package]:
    p = control.packages.c
    query = sa.select(p.name, p.version, p.digest, p.state).order_by(p.published_ms)
    return [Package(*row) for row in connection.execute(query)]


def chosen(spec: RolloutSpec, fleets: Mapping[str, str]) -> list[str]:
    """The enrolled devices that a spec means."""
    named = set(spec.devices)
    return [d for d, fleet in fleets.items() if spec.fleet in ("", fleet) and (not named or d in named)]


def named(spec: RolloutSpec, packages: Sequence[Package]) -> Package:
    """The one allowed package that a spec means. Raises RequestError for an unknown, Refused for a withdrawn one."""
    if not spec.digest and not spec.version:
        raise RequestError("name what to roll out: a version (`--version 1.2.0`) or a digest")
    mine = [p for p in packages if p.name == spec.model]
    found = [p for p in mine if spec.digest in ("", p.digest) and spec.version in ("", p.version)]
    if not found:
        known = ", ".join(p.version for p in mine) or "none"
        wanted = " ".join(filter(None, (spec.version, spec.digest[:16])))
        raise RequestError(f"{spec.model} {wanted} is not in the registry (published: {known}). Publish it first")
    if found[0].state != "allowed":
        raise Refused(f"{spec.model} {found[0].version} is {found[0].state}: its owner does not sign it any more")
    return found[0]


def refuse_blocked(package: Package, rows: Iterable[sa.Row[Any]]) -> None:
    for row in rows:
        if row.state in ("rolling-back", "rolled-back") and row.spec["digest"] == package.digest:
            why = row.progress["reason"]
            raise Refused(
                f"{package.name} {package.version} is blocked: rollout {row.id} sent it back ({why}). "
                "Publish a corrected version under a new number"
            )


def refuse_others(
    spec: RolloutSpec, members: Iterable[str], fleets: Mapping[str, str], rows: Iterable[sa.Row[Any]]
) -> None:
    """Raise Refused when another rollout of the model is under way on some of these devices, or in their fleet."""
    for row in rows:
        if row.state in ACTIVE and row.name == spec.model:
            other = stored(row.spec)
            shared = set(members) & set(chosen(other, fleets))
            if shared or other.fleet == spec.fleet:
                raise Refused(
                    f"rollout {row.id} ({other.model} {other.version}) is {row.state} on {len(shared)} "
                    "of the same devices. Wait for its end, or abort it"
                )


def refuse_empty(spec: RolloutSpec, members: Sequence[str], fleets: Mapping[str, str]) -> None:
    """Raise RequestError when there is no such device or fleet, Refused while no device is enrolled at all."""
    if not fleets:
        raise Refused("no device is enrolled yet; `edgewright hub token` makes the token that enrols one")
    known = ", ".join(sorted({f for f in fleets.values() if f})) or "none"
    if spec.fleet and spec.fleet not in fleets.values():
        raise RequestError(f"no enrolled device is in a fleet {spec.fleet!r}. Known fleets: {known}")
    if unknown := sorted(set(spec.devices) - set(members)):
        where = f" in fleet {spec.fleet!r}" if spec.fleet else ""
        raise RequestError(
            f"no enrolled device{where} is called {', '.join(unknown)}; `edgewright fleet devices` lists them"
        )


def refuse_full(spec: RolloutSpec, members: Iterable[str], documents: Mapping[str, Desired]) -> None:
    """Raise Refused when a device has as many models as it can be told of."""
    full = [d for d in members if not told(documents.get(d), spec.model) and room(documents.get(d)) < 1]
    if full:
        raise Refused(f"{', '.join(full[:3])} ({len(full)} in all) can have no model besides the {MODELS} they have")
