"""What may be wrong with a hub, found on its data directory, whether or not it runs. Changes nothing.

Each check says what it found and, when that is not well, the way out. The two databases are read whole once
(PRAGMA quick_check: about 1 s for 300 MB), and so is every file of the packages that the owner signs now.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import sqlalchemy as sa
from tuf.api.exceptions import RepositoryError

from edgewright_contracts.errors import EdgewrightError
from edgewright_contracts.manifest import decode_manifest

from .exports import progress
from .ingest.refusals import since
from .registry import endings
from .registry.repository import Repository
from .storage import control, telemetry
from .storage.places import places
from .storage.store import Schema, open_to_read

FREE_BYTES: Final = 1024**3
DAY_MS: Final = 86_400_000
DATABASES: Final[dict[str, Schema]] = {"hub.db": "control", "telemetry.db": "telemetry"}


class Finding(NamedTuple):
    check: str
    well: bool
    said: str


def examine(data: Path, *, now: datetime) -> list[Finding]:
    """All findings, in a fixed order; a check that cannot be made is a finding too."""
    out: list[Finding] = []
    for check in (
        _process,
        _databases,
        _certificates,
        _metadata,
        _signatures,
        _blobs,
        _refusals,
        _spools,
        _export,
        _disk,
    ):
        try:
            out += check(data, now)
        except (OSError, ValueError, sa.exc.SQLAlchemyError, EdgewrightError, RepositoryError) as error:
            out.append(Finding(check.__name__.removeprefix("_"), well=False, said=f"could not be examined: {error}"))
    return out


def _process(data: Path, _now: datetime) -> Iterator[Finding]:
    rests = Finding("process", well=False, said="the hub does not run: start it with `edgewright hub serve`")
    try:
        lock = (data / "lock").open()
    except FileNotFoundError:  # it never did: this one was restored
        yield rests
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield Finding("process", well=True, said="the hub runs")
        else:
            yield rests


def _databases(data: Path, _now: datetime) -> Iterator[Finding]:
    for name, schema in DATABASES.items():
        with _reading(data, schema) as connection:
            if connection.dialect.name == "sqlite":
                said = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
                way = "; stop the hub and restore it from a backup"
                yield Finding(name, said == "ok", "sound" if said == "ok" else f"damaged: {said}{way}")
            else:
                release = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
                place = connection.engine.url.render_as_string(hide_password=True)
                yield Finding(name, well=True, said=f"answers at {place}, schema {release}")


def _certificates(data: Path, now: datetime) -> Iterator[Finding]:
    for one in endings.of_certificates(data / "ca"):
        yield _lasting(one, now)


def _metadata(data: Path, now: datetime) -> Iterator[Finding]:
    for one in endings.of_signatures(Repository(data / "repo", data / "keys")):
        yield _lasting(one, now)


def _lasting(one: endings.Ending, now: datetime) -> Finding:
    """Well until so long before its end that a person should act, as the alerts of a running hub have it."""
    left = one.at - now
    hours = left // timedelta(hours=1)
    span = f"{left.days} days" if left >= timedelta(days=3) else f"{hours} hours"
    said = f"valid for {span}" if left > timedelta() else f"ended {(-left).days} days ago"
    return Finding(one.what, not one.due(now), f"{said}: {one.way}" if one.due(now) else said)


def _signatures(data: Path, _now: datetime) -> Iterator[Finding]:
    """Of everything that devices check, by the keys that root.json names, and root.json by its own."""
    repository = Repository(data / "repo", data / "keys")
    try:
        repository.verify()
    except (EdgewrightError, RepositoryError, ValueError) as error:
        way = "devices refuse to update; stop the hub and restore DATA/repo from a backup"
        yield Finding("signatures", well=False, said=f"{error}: {way}")
    else:
        yield Finding("signatures", well=True, said="root, targets, snapshot and timestamp bear those of their keys")


def _blobs(data: Path, _now: datetime) -> Iterator[Finding]:
    """Every file of every package in the owner's list: whole, and of the hash in its name."""
    repository = Repository(data / "repo", data / "keys")
    number, bad = 0, []
    for path, target in repository.targets().signed.targets.items():
        digest = str(target.hashes["sha256"])
        places = {repository.manifest_place(path, digest): digest, repository.blobs / digest: digest}
        if _has(repository.blobs / digest, digest):
            files = decode_manifest((repository.blobs / digest).read_bytes()).files.values()
            places |= {repository.blobs / file.sha256: file.sha256 for file in files}
        number += len(places)
        bad += [f"{place.relative_to(data)} ({path})" for place, sha256 in places.items() if not _has(place, sha256)]
    said = f"all {number} of the packages in the owner's list are whole" if number else "nothing is published"
    if bad:
        said = (
            f"{len(bad)} of {number} are damaged or absent: {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}; "
            "remove what is left of them and restore them from a backup, for devices refuse them"
        )
    yield Finding("files", not bad, said)


def _has(place: Path, sha256: str) -> bool:
    try:
        with place.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _refusals(data: Path, now: datetime) -> Iterator[Finding]:
    """What devices sent that was not counted; replays, which brokers make, are well."""
    day = int(now.timestamp() * 1000) - DAY_MS
    letters = telemetry.dead_letters.c
    with _reading(data, "telemetry") as connection:
        refused = since(connection, day)
        kept = sa.select(sa.func.count(letters.id)).where(letters.arrived_ms >= day)
        number = connection.execute(kept).scalar_one()
    bad = [one for one in refused if one.reason != "replay"]
    said = f"none in 24 hours, {sum(one.times for one in refused)} replays in all" if refused else "none in 24 hours"
    if bad:
        first = "; ".join(f"{one.reason} {one.times} of {one.device or 'nobody'} ({one.said})" for one in bad[:3])
        said = f"{len(bad)} kinds in 24 hours, {number} dead letters kept: {first}{'; ...' if len(bad) > 3 else ''}"
    yield Finding("refused", not bad, said)


def _spools(data: Path, _now: datetime) -> Iterator[Finding]:
    """Numbers that will never come, since the hub that counted them is gone: this one was restored."""
    s = telemetry.spools.c
    with _reading(data, "telemetry") as connection:
        lost = sa.select(sa.func.coalesce(sa.func.sum(s.lost), 0), sa.func.count()).where(s.lost > 0)
        number, devices = connection.execute(lost).one()
    said = f"{number} reports of {devices} devices were counted by a hub that is gone, and are in no sum of this one"
    yield Finding("reports", not number, said if number else "none is missing")


def _export(data: Path, now: datetime) -> Iterator[Finding]:
    """How far InfluxDB is behind, if windows go there."""
    with _reading(data, "telemetry") as connection:
        found = progress.progress(connection)
    if found is None:
        return
    a = control.alerts.c
    about = a.open_key.in_((progress.ALERT, progress.ALERT_REFUSED))
    with _reading(data, "control") as connection:
        told = connection.execute(sa.select(a.text).where(about).order_by(a.id)).scalars().all()
    late_ms = int(now.timestamp() * 1000) - found.since_ms if found.since_ms is not None else 0
    said = f"{found.pending} windows wait for InfluxDB, for {max(0, late_ms) // 60_000} minutes"
    if found.lost:
        told = [*told, f"{found.lost} windows waited for too long and are not there"]
    yield Finding("export", not told and late_ms < progress.LATE_MS, "; ".join((said, *told)))


def _disk(data: Path, _now: datetime) -> Iterator[Finding]:
    free = shutil.disk_usage(data).free
    said = f"{free / 1024**3:.1f} GiB free"
    yield Finding("disk", free >= FREE_BYTES, said if free >= FREE_BYTES else f"{said}: make room, at least 1 GiB")


@contextlib.contextmanager
def _reading(data: Path, schema: Schema) -> Iterator[sa.Connection]:
    """A connection that cannot write, closed at the end."""
    engine = open_to_read(getattr(places(data), schema), schema=schema)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
