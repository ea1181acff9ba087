"""A hub from a backup, on this machine or another: nothing is written before all of it was found whole and fit.

Devices have seen more than the backup knows: whatever happened after it was made. So that none of them takes the
restored hub for an old one, everything that may only rise jumps:

    revisions of desired documents   by `JUMP`; first documents begin above it, too
    snapshot and timestamp           above the time of now by `AHEAD_S`
    numbers of reports               nothing is needed: `ingest.counting` takes a gap, and doctor says what it lost

The owner's list of packages is signed by the owner alone: if one was published after the backup, devices wait until it
is published here again. Everything is made beside `data` and gets its name in one rename (on a server: before that, in
schemas that must not be there yet), so a restore that fails leaves nothing. In a folder that is there, which may be a
volume of its own, it is made and then moved up, the repository last: what a kill leaves in between is no hub.
"""

from __future__ import annotations

import os
import secrets
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts import durable
from edgewright_contracts.errors import Refused, RequestError, Unavailable

from ..alerts import alerts
from ..fleet.inventory import note
from ..registry.repository import Repository
from ..rollouts.desired_documents import FLOOR
from ..storage import control
from ..storage.places import move
from ..storage.store import Schema, open_to_read, revisions, server_url, upsert
from . import tables
from .archive import Archive, Manifest, opened
from .backup import OF_VOLUME, ROLES, counted

JUMP: Final = 1000  # revisions of a device's document since a backup; devices take up to 1,000,000 at once
AHEAD_S: Final = 86_400
EARLY: Final = timedelta(minutes=5)


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    data: str
    made: str  # when the backup was made, UTC
    host: str  # where
    upgraded: dict[str, str]  # schemas that were older, with the revision that they had
    counts: dict[str, int]
    targets: int  # version of the owner's list in force


def restore(archive: Path, data: Path, *, now: datetime, database: str | None = None) -> Restored:
    """Have the hub of `archive` on `data`, which is absent or empty; its databases on a server, if one is named. Raises
    RequestError, Refused, Unavailable; then nothing is there that was not before."""
    data = data.absolute()
    if data.exists() and (not data.is_dir() or any(place.name != OF_VOLUME for place in data.iterdir())):
        raise RequestError(f"--data: expected a folder that is absent or empty, {data} is not: name another")
    if not data.parent.is_dir():
        raise RequestError(f"--data: expected {data.parent} to be a folder; make it, or name another")
    with opened(archive) as whole:
        older = _refuse_unfit(whole.manifest, now)
        if database:
            _refuse_used(database)
        part = (data if data.exists() else data.parent) / f".{data.name}.{secrets.token_hex(4)}.part"
        try:
            _refuse_full(part.parent, whole.manifest)
            part.mkdir(mode=0o700)
            done = _make(whole, part, now, older, data)
            if database:
                _to_server(database, part)
            _name(part, data)
        except (OSError, sa.exc.DBAPIError) as error:
            said = error.strerror or error if isinstance(error, OSError) else error.orig
            raise Unavailable(f"the hub cannot be restored to {data}: {said}. Nothing of it is left") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return done


def _name(part: Path, data: Path) -> None:
    if not data.exists():
        part.replace(data)
        durable.sync(data.parent)
        return
    moved = []
    try:
        for place in sorted(part.iterdir(), key=lambda one: one.name == "repo"):
            moved.append(data / place.name)
            place.replace(moved[-1])
    except OSError:
        for place in moved:
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        raise
    durable.sync(data)


def _make(whole: Archive, part: Path, now: datetime, older: dict[str, str], data: Path) -> Restored:
    """The hub, ready to be served, in `part`."""
    whole.extract(part)
    now_ms, made = int(now.timestamp() * 1000), datetime.fromtimestamp(whole.manifest.made_ms / 1000, UTC)
    said = f"made {made:%Y-%m-%d %H:%M:%S} UTC on {whole.manifest.host}"
    counts: dict[str, int] = {}
    for schema, name in tables.FILES.items():
        engine = tables.OPEN[schema](part / name)
        try:
            with engine.begin() as connection:
                if schema == "control":
                    _jump(connection)
                    _tell(connection, said, now_ms)
                counts |= counted(connection, schema)
        finally:
            engine.dispose()
    repository = Repository(part / "repo", part / "keys")
    repository.resign(now=now, beyond_s=AHEAD_S)
    repository.verify()
    return Restored(
        data=str(data),
        made=f"{made:%Y-%m-%dT%H:%M:%SZ}",
        host=whole.manifest.host,
        upgraded=older,
        counts=counts,
        targets=int(repository.targets().signed.version),
    )


def _jump(connection: sa.Connection) -> None:
    d, c = control.desired, control.cursors.c
    for row in connection.execute(sa.select(d)).all():
        document: Any = {**row.document, "rev": row.rev + JUMP}
        connection.execute(d.update().where(d.c.device == row.device).values(rev=row.rev + JUMP, document=document))
    before = connection.execute(sa.select(c.position).where(c.name == FLOOR)).scalar() or 0
    upsert(connection, control.cursors, [{"name": FLOOR, "position": before + JUMP}], keys=["name"])


def _tell(connection: sa.Connection, said: str, now_ms: int) -> None:
    note(connection, "", "restore", f"from a backup {said}", who="hub restore", now_ms=now_ms)
    alerts.open_alert(
        connection,
        "restored",
        severity="ticket",
        kind="hub",
        subject="restore",
        text=f"this hub was restored from a backup {said}. What was decided after that is not known here: publish, "
        "enrol, retire and roll out again what you did since, and see that the hub before it never runs again",
        now_ms=now_ms,
    )


def _refuse_unfit(manifest: Manifest, now: datetime) -> dict[str, str]:
    """Schemas that are older than this release, with their revisions."""
    older: dict[str, str] = {}
    for schema in tables.FILES:
        has, known = manifest.revisions.get(schema, ""), revisions(schema)
        if has not in known:
            raise RequestError(
                f"the backup has the schema {has[:40] or 'none'} of {tables.FILES[schema]}, this release knows none "
                f"beyond {known[0]}: it was made by a newer release, restore it with that one"
            )
        if has != known[0]:
            older[schema] = has
    absent = [name for name in (*tables.FILES.values(), *_needed()) if name not in manifest.files]
    if absent:
        raise RequestError(f"the backup holds no {absent[0]}: it is not one of a hub that was served")
    if now + EARLY < datetime.fromtimestamp(manifest.made_ms / 1000, UTC):
        raise Refused(
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, before the backup was made: set it. Devices would "
            "refuse what a hub of the past signs"
        )
    return older


def _needed() -> tuple[str, ...]:
    keys = tuple(f"keys/{role}.pem" for role in ROLES[:2])
    return (*keys, "ca/ca.key", "ca/ca.pem", "repo/metadata/1.root.json", "repo/metadata/timestamp.json")


def _refuse_full(folder: Path, manifest: Manifest) -> None:
    size, free = sum(file.size for file in manifest.files.values()), shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f"it needs {size >> 20} MiB in {folder}, {free >> 20} MiB are free: make room")


def _refuse_used(url: str) -> None:
    for schema in tables.FILES:
        engine = open_to_read(url, schema=schema)
        try:
            with engine.connect() as connection:
                used = sa.inspect(connection).has_schema(schema)
        except sa.exc.OperationalError as error:
            said = " ".join(str(error.orig).split())
            raise Unavailable(f"--database: the server cannot be reached: {said}") from None
        finally:
            engine.dispose()
        if used:
            raise RequestError(
                f"--database: expected a database without a schema {schema!r}, this one belongs to a hub: "
                "make a new one (createdb)"
            )


def _to_server(url: str, part: Path) -> None:
    done: list[Schema] = []
    try:
        for schema, name in tables.FILES.items():
            done.append(schema)
            tables.fill(url, schema, part / name)
            (part / name).unlink()
            for beside in ("-wal", "-shm"):
                Path(os.fspath(part / name) + beside).unlink(missing_ok=True)
        move(part, url)
    except BaseException:
        _drop(url, done)
        raise


def _drop(url: str, schemas: list[Schema]) -> None:
    engine = sa.create_engine(server_url(url))
    try:
        with engine.begin() as connection:
            for schema in schemas:
                connection.execute(sa.schema.DropSchema(schema, cascade=True, if_exists=True))
    finally:
        engine.dispose()
