"""Whether a rollout may begin: which package and which devices its specification means, and what speaks against it.

Everything is refused before anything moves, with the reason and the way out: RequestError for what names something that
is not there, Refused where the answer is "no".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.desired import Desired
from edgewright_contracts.errors import Refused, RequestError

from ..fleet import roster
from ..fleet.selectors import Device, parse
from ..storage import control
from .abilities import Abilities
from .desired_documents import MODELS, current, room, told
from .gates import GatePolicy
from .progress import unpacked
from .rollout import cooling
from .specification import RolloutSpec, is_selector, stage_size, stored
from .state import ACTIVE, BLOCKS

_WAYS: Final = {
    "candidate": "nobody has approved it yet. `edgewright registry approve {name} {version}` does",
    "deprecated": "what runs it may keep it, and nobody else gets it. `edgewright registry approve {name} {version}` "
    "takes that back",
    "revoked": "nobody may run it any more. Publish a corrected version under a new number",
}


class Package(NamedTuple):
    name: str
    version: str
    digest: str
    state: str
    stage: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rollout against which nothing speaks."""

    spec: RolloutSpec  # completed
    package: Package
    previous: dict[str, str | None]  # what each device has now that would be given it
    already: tuple[str, ...]  # devices that have it
    unable: dict[str, str]  # why devices cannot run it, of which that is known: they take no part
    number: int  # of all rollouts, this one counted


def propose(
    connection: sa.Connection,
    spec: RolloutSpec,
    fleet: Mapping[str, Device],
    documents: Mapping[str, Desired],
    abilities: Abilities,
    *,
    now_ms: int,
    force: bool = False,
    begins: str = "",
) -> Proposal:
    """`force`: devices that rest from the model are given it all the same. `begins`: this rollout was created before;
    that was decided then, and those of its devices that were retired since are left out. Nothing is written.

    Raises RequestError for an unknown package, fleet or device; Refused for a withdrawn or blocked package, for no
    device to give it to, for another rollout of the same model on these devices, for devices that rest after one, for
    a package that none of them can run, and for stages that show nothing.
    """
    package = named(spec, packages(connection))
    spec = msgspec.structs.replace(spec, digest=package.digest, version=package.version, gate=comparing(spec))
    if spec.bandwidth_bytes_s is not None and not spec.release_bytes:
        spec = msgspec.structs.replace(spec, release_bytes=release_bytes(connection, package))
    rows = connection.execute(sa.select(control.rollouts).order_by(control.rollouts.c.created_ms)).all()
    refuse_blocked(package, connection)
    members = chosen(spec, fleet)
    refuse_empty(spec, members, fleet, roster.named(connection), begins=bool(begins))
    refuse_others(spec, members, fleet, [row for row in rows if row.id != begins])
    if not (force or begins):
        refuse_cooling(spec, members, rows, now_ms)
    had = {d: current(documents.get(d), spec.model) for d in members}
    previous = {d: digest for d, digest in had.items() if digest != spec.digest}
    refuse_full(spec, previous, documents)
    if not previous:
        raise Refused(f"all {len(had)} devices already have {package.name} {package.version}")
    abilities.read(connection, {spec.digest, *filter(None, previous.values())})
    unable = {device: why for device in previous if (why := abilities.why_not(device, spec.digest))}
    if len(unable) == len(previous):
        said = "; ".join(sorted(set(unable.values()))[:3])
        raise Refused(f"none of the {len(previous)} devices can run {package.name} {package.version}: {said}")
    already = tuple(d for d in had if d not in previous)
    able = {device: digest for device, digest in previous.items() if device not in unable}
    refuse_pointless(spec, [fleet[device] for device in able])
    return Proposal(spec, package, able, already, unable, len(rows) + 1)


def comparing(spec: RolloutSpec) -> GatePolicy:
    """The gate of the spec; the outcome of its experiment is counted and judged as labels are if nobody said how."""
    gate, outcome = spec.gate, spec.experiment.outcome if spec.experiment else ""
    if not outcome or outcome in gate.metrics:
        return gate
    margin = gate.label or GatePolicy().label
    assert margin is not None
    return msgspec.structs.replace(gate, outcomes={**gate.outcomes, outcome: margin})


def packages(connection: sa.Connection) -> list[Package]:
    p = control.packages.c
    query = sa.select(p.name, p.version, p.digest, p.state, p.stage).order_by(p.published_ms)
    return [Package(*row) for row in connection.execute(query)]


def withdrawn(connection: sa.Connection) -> dict[str, str]:
    """Why nobody may run them any more, by digest, of packages of which that is so."""
    p = control.packages.c
    query = sa.select(p.digest, p.state, p.stage).where((p.state != "allowed") | (p.stage == "revoked"))
    return {
        row.digest: "its owner does not sign it any more" if row.state != "allowed" else "it was revoked"
        for row in connection.execute(query)
    }


def chosen(spec: RolloutSpec, devices: Mapping[str, Device]) -> list[str]:
    """The enrolled devices that a spec means."""
    names, selector = set(spec.devices), parse(spec.selector) if spec.selector else None
    return [
        one.id
        for one in devices.values()
        if spec.fleet in ("", one.fleet)
        and (not names or one.id in names)
        and (selector is None or selector.means(one))
    ]


def groups(spec: RolloutSpec, devices: Sequence[Device]) -> list[int | None]:
    """Of each device, the first stage whose selector means it."""
    selectors = [(i, parse(str(stage))) for i, stage in enumerate(spec.ladder) if is_selector(stage)]
    return [next((i for i, one in selectors if one.means(device)), None) for device in devices]


def exposed(spec: RolloutSpec, groups: Sequence[int | None]) -> list[int]:
    """Devices in all that each stage reaches, if all can be reached."""
    sizes: list[int] = []
    for place, stage in enumerate(spec.ladder):
        before = sizes[-1] if sizes else 0
        if is_selector(stage):
            sizes.append(before + sum(group == place for group in groups))
        else:
            sizes.append(max(before, stage_size(stage, len(groups))))
    return sizes


def named(spec: RolloutSpec, packages: Sequence[Package]) -> Package:
    """The one package that a spec means. Raises RequestError for an unknown one, Refused for one that its owner does
    not sign any more or of which its stage says "no"."""
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
    if found[0].stage != "approved":
        way = _WAYS[found[0].stage].format(name=found[0].name, version=found[0].version)
        raise Refused(f"{spec.model} {found[0].version} is {found[0].stage}: {way}")
    return found[0]


@contextmanager
def or_abort(rollout_id: str) -> Iterator[None]:
    """Why a rollout that waits may not go on is Refused, with how to end it: whoever asks for it did nothing wrong."""
    try:
        yield
    except (Refused, RequestError) as error:
        raise Refused(f"{error}. `edgewright rollout abort {rollout_id}` ends this rollout") from None


def refuse_onward(connection: sa.Connection, rollout_id: str, spec: RolloutSpec) -> None:
    """Raise Refused where a rollout that waits may not go on: its package may be given to nobody else any more."""
    with or_abort(rollout_id):
        refuse_blocked(named(spec, packages(connection)), connection)


def refuse_blocked(package: Package, connection: sa.Connection) -> None:
    if why := blocked(connection, {package.digest}).get(package.digest):
        raise Refused(
            f"{package.name} {package.version} is blocked: {why}. Publish a corrected version under a new number"
        )


def blocked(connection: sa.Connection, digests: Set[str]) -> dict[str, str]:
    """Why no rollout may give them to anybody else, by digest, of those of which that is so."""
    r = control.rollouts.c
    query = sa.select(r.id, r.spec).where(r.state.in_(("rolling-back", "rolled-back")))
    names = [row.id for row in connection.execute(query) if row.spec["digest"] in digests] if digests else []
    found = {}
    for row in connection.execute(sa.select(control.rollouts).where(r.id.in_(names))) if names else ():
        if row.progress["outcome"] in BLOCKS:
            found[row.spec["digest"]] = f"rollout {row.id} sent it back ({row.progress['reason']})"
    return found


def refuse_others(
    spec: RolloutSpec, members: Iterable[str], devices: Mapping[str, Device], rows: Iterable[sa.Row[Any]]
) -> None:
    """Raise Refused when another rollout of the model is under way on some of these devices."""
    for row, shared in overlapping(spec.model, members, devices, rows):
        raise Refused(
            f"rollout {row.id} ({spec.model} {stored(row.spec).version}) is {row.state} on {len(shared)} "
            "of the same devices. Wait for its end, or abort it"
        )


def overlapping(
    model: str, members: Iterable[str], devices: Mapping[str, Device], rows: Iterable[sa.Row[Any]]
) -> Iterator[tuple[sa.Row[Any], set[str]]]:
    """Rollouts of the model under way on some of these devices, with those that they share: whom it means now, and who
    was given its release, although it may mean them no longer."""
    mine = set(members)
    for row in rows:
        if row.state in ACTIVE and row.name == model:
            theirs = unpacked(row.progress).members
            given = (theirs.devices[i] for i in np.flatnonzero(theirs.given).tolist())
            if shared := mine & {*chosen(stored(row.spec), devices), *given}:
                yield row, shared


def refuse_cooling(spec: RolloutSpec, members: Iterable[str], rows: Iterable[sa.Row[Any]], now_ms: int) -> None:
    """Raise Refused while some of these devices rest from the model, which was taken back from them."""
    for row in rows:
        other = stored(row.spec)
        if row.name != spec.model or not other.cooldown_s:
            continue
        state = unpacked(row.progress)
        resting = sorted(set(members) & set(cooling(state, other, now_ms)))
        if resting:
            left_s = other.cooldown_s - (now_ms - state.since_ms) / 1000
            raise Refused(
                f"{', '.join(resting[:3])} ({len(resting)} in all) rest for another {left_s / 60:.0f} min: rollout "
                f"{row.id} was taken back from them ({state.outcome}). Leave them out, wait, or --force it"
            )


def release_bytes(connection: sa.Connection, package: Package) -> int:
    """What a device downloads of it at most: the largest variant and what goes with each."""
    p = control.packages.c
    manifest = connection.execute(sa.select(p.manifest).where(p.digest == package.digest)).scalar_one()
    sizes: dict[str, int] = defaultdict(int)
    for path, file in manifest["files"].items():
        sizes[path.split("/")[1] if path.startswith("variants/") else ""] += file["size"]
    shared = sizes.pop("", 0)
    return shared + max(sizes.values(), default=0)


def refuse_empty(
    spec: RolloutSpec, members: Sequence[str], devices: Mapping[str, Device], cohorts: Iterable[str], *, begins: bool
) -> None:
    """Raise RequestError when there is no such device, fleet or cohort, Refused while no device is enrolled at all or
    a selector means none."""
    if not devices:
        raise Refused("no device is enrolled yet; `edgewright hub token` makes the token that enrols one")
    fleets = sorted({one.fleet for one in devices.values()})
    if spec.fleet and spec.fleet not in fleets:
        raise RequestError(f"no enrolled device is in a fleet {spec.fleet!r}. Known fleets: {', '.join(fleets)}")
    for text in (spec.selector, *(str(stage) for stage in spec.ladder if is_selector(stage))):
        if text and not roster.meant(roster.known(parse(text), cohorts), devices.values()):
            raise Refused(f"the selector {text} means no enrolled device; `edgewright fleet devices` lists them")
    unknown = sorted(set(spec.devices) - set(members))
    if unknown and not (begins and members):
        where = f" in fleet {spec.fleet!r}" if spec.fleet else ""
        raise RequestError(
            f"no enrolled device{where} is called {', '.join(unknown)}; `edgewright fleet devices` lists them"
        )


def refuse_pointless(spec: RolloutSpec, able: Sequence[Device]) -> None:
    """Raise Refused where a stage would give the release to nobody, or an experiment leaves nobody to compare with.
    `able`: who would be given it."""
    for stage in filter(is_selector, spec.ladder):
        if not roster.meant(parse(str(stage)), able):
            raise Refused(
                f"the stage {stage} means none of the {len(able)} devices that would be given it: others have it "
                "already, or cannot run it. Leave that stage out, or name other devices"
            )
    place = spec.experiment_stage
    if place is not None and exposed(spec, groups(spec, able))[place] >= len(able):
        assert spec.experiment is not None
        raise Refused(
            f"an experiment at {spec.experiment.share} of {len(able)} devices leaves none without the release to "
            "compare with. Ask for a smaller share, or for more devices"
        )


def refuse_full(spec: RolloutSpec, members: Iterable[str], documents: Mapping[str, Desired]) -> None:
    """Raise Refused when a device has as many models as it can be told of."""
    full = [d for d in members if not told(documents.get(d), spec.model) and room(documents.get(d)) < 1]
    if full:
        raise Refused(f"{', '.join(full[:3])} ({len(full)} in all) can have no model besides the {MODELS} they have")
