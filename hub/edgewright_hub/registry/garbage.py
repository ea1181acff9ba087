"""Files of the repository that nothing needs any more.

Never removed are the files of a package that

    the owner signs now               a device may be told to run it at any moment
    a device is told to run           in its desired document
    a device has                      in any slot, so that it can go back, or by its newest window
    a rollout is about                or may go back to: one under way, or that ended within `RECENT_MS`; or the newest
                                      that newcomers get

nor any that came within a day (a publisher may be about to name it), nor one of which no package is known that is a
part still being written. What is kept names its first reason. Cost: one look at each file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from tuf.api.metadata import Metadata, Snapshot  # type: ignore[attr-defined]

from ..storage import control, telemetry
from .repository import SHA256, Repository

RECENT_MS: Final = 90 * 86_400_000
YOUNG_S: Final = 86_400.0


class Collected(NamedTuple):
    removed: list[str]  # paths below the repository's folder
    bytes: int
    kept: dict[str, str]  # why, by "NAME VERSION"


def reasons(
    ours: sa.Connection, theirs: sa.Connection, repository: Repository, rollouts: Mapping[str, str]
) -> dict[str, str]:
    """Why a package is needed, by digest, or by the 16 digits of it that windows name. `rollouts`: likewise, those that
    rollouts need."""
    found: dict[str, str] = {}
    for path, target in repository.targets().signed.targets.items():
        found.setdefault(str(target.hashes["sha256"]), f"its owner signs {path.split('/')[1]} now")
    for row in ours.execute(sa.select(control.desired)):
        for digest in (m.get("digest") for m in row.document.get("models", ())):
            if digest:
                found.setdefault(digest, f"{row.device} is told to run it")
    d = telemetry.devices.c
    for row in theirs.execute(sa.select(d.device, d.birth, d.digest)):
        for slot in (row.birth or {}).get("slots", ()):
            found.setdefault(slot["digest"], f"{row.device} has it in its {slot['state']} slot")
        if row.digest:
            found.setdefault(row.digest, f"{row.device} ran it in its newest window")
    for digest, why in rollouts.items():
        found.setdefault(digest, why)
    return found


def collect(
    ours: sa.Connection, repository: Repository, needed: Mapping[str, str], *, now_s: float, dry_run: bool
) -> Collected:
    """Remove what is not `needed`; a dry run only says what that would be. No publisher gets in between."""
    with repository.publishing:
        p = control.packages
        packages = ours.execute(sa.select(p.c.name, p.c.version, p.c.digest, p.c.manifest)).all()
        kept: dict[str, str] = {}
        wanted: set[str] = set(needed)
        for row in packages:
            why = needed.get(row.digest) or needed.get(row.digest[:16])
            if why is not None:
                kept[f"{row.name} {row.version}"] = why
                wanted |= {row.digest, *(file["sha256"] for file in row.manifest["files"].values())}
        removed, size = [], 0
        for place in sorted(_unneeded(repository, wanted, now_s)):
            removed.append(str(place.relative_to(repository.folder)))
            size += place.stat().st_size
            if not dry_run:
                place.unlink()
        return Collected(removed, size, kept)


def _unneeded(repository: Repository, wanted: set[str], now_s: float) -> Iterator[Path]:
    for place in repository.blobs.iterdir():
        if SHA256.match(place.name) and place.name not in wanted and _old(place, now_s):
            yield place
    for place in (repository.folder / "targets").glob("packages/*/*/*.manifest.json"):
        if place.name.partition(".")[0] not in wanted and _old(place, now_s):
            yield place
    named = {1, int(repository.targets().signed.version), *_of_snapshots(repository.metadata)}
    for place in repository.metadata.glob("*.targets.json"):
        if int(place.name.partition(".")[0]) not in named and _old(place, now_s):
            yield place


def _of_snapshots(metadata: Path) -> Iterable[int]:
    """Lists that a device which reads an earlier snapshot just now will ask for."""
    for place in metadata.glob("*.snapshot.json"):
        signed: Any = Metadata[Snapshot].from_bytes(place.read_bytes()).signed
        yield int(signed.meta["targets.json"].version)


def _old(place: Path, now_s: float) -> bool:
    return now_s - place.stat().st_mtime > YOUNG_S
