"""A backup of a hub, made while it runs.

Order, which is the guarantee: hub.db first, then telemetry.db, so that no position up to which rollouts and drift have
read lies beyond what there is to read; then the signed lists from the newest to what they name, then all other files,
so that whatever a database or a list names is in the archive (blobs are there before anything names them, and never
change). That it is so is looked at before the archive gets its name. A publisher or a collection of garbage that comes
in between is found, and nothing is left: make it again.

The file holds secrets: the keys of the authority, of snapshot and timestamp, and the admin's token. It is 0600 from its
first byte. Not in it: the address of a database server, since a restored hub must not write there; and what a start
makes anew. Cost: the size of the hub's data twice while it is made (both databases are copied first).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from edgewright_contracts import durable
from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.manifest import decode_manifest

from ..registry.repository import Repository
from ..storage import control, telemetry
from ..storage.places import NAME, places
from ..storage.store import Schema, open_to_read
from . import tables
from .archive import FORMAT, Manifest, Writer

ANEW: Final = frozenset({"lock", "hub.json", "ca.pem", NAME})  # made by every start, or not to be taken along
OF_VOLUME: Final = "lost+found"  # of fsck, at the top of a volume; no file of a hub
ROLES: Final = ("timestamp", "snapshot", "targets", "root")  # each names the next


def make(data: Path, target: Path, *, now: datetime) -> Manifest:
    """Write the backup of the hub on `data` to `target`, which is new. Raises RequestError, Unavailable; then there is
    no such file."""
    if target.exists():
        raise RequestError(f"{target} is there already: name another file, a backup is never written over")
    if target.absolute().is_relative_to(data.absolute()):
        raise RequestError(f"{target}: expected a file outside of {data}, or the next backup would hold this one")
    if not target.parent.is_dir():
        raise RequestError(f"{target}: expected a folder that is there, {target.parent} is not")
    mark = f".{target.name}.{secrets.token_hex(4)}.part"
    part, copies = target.with_name(mark), target.with_name(f"{mark}s")
    try:
        copies.mkdir(mode=0o700)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            writer = Writer(stream)
            manifest = _write(writer, data, copies, now)
            writer.end(manifest)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
        durable.sync(target.parent)
    except OSError as error:
        raise Unavailable(
            f"the backup {target} cannot be written: {error.strerror or error}. Nothing of it is left; it needs room "
            "for the hub's data twice"
        ) from None
    finally:
        part.unlink(missing_ok=True)
        shutil.rmtree(copies, ignore_errors=True)
    return manifest


def _write(writer: Writer, data: Path, copies: Path, now: datetime) -> Manifest:
    stored = places(data)
    revisions: dict[str, str] = {}
    counts: dict[str, int] = {}
    for schema, name in tables.FILES.items():  # hub.db first
        tables.snapshot(getattr(stored, schema), schema, copies / name)
        revisions[schema] = _look(copies / name, schema, counts)
        writer.add(name, copies / name)
        (copies / name).unlink()
    for place in _files(data):
        writer.add(str(place.relative_to(data)), place)
    _complete(Repository(data / "repo", data / "keys"), data, writer)
    return Manifest(
        format=FORMAT,
        made_ms=int(now.timestamp() * 1000),
        host=socket.gethostname(),
        revisions=revisions,
        counts=counts,
        files=writer.files,
    )


def _look(copy: Path, schema: Schema, counts: dict[str, int]) -> str:
    """Its revision; what there is of what people look for goes to `counts`."""
    engine = open_to_read(copy, schema=schema)
    try:
        with engine.connect() as connection:
            counts |= counted(connection, schema)
            return tables.revision(connection)
    finally:
        engine.dispose()


def counted(connection: sa.Connection, schema: Schema) -> dict[str, int]:
    d = telemetry.devices.c
    questions: dict[str, sa.Select[int]] = {
        "devices": sa.select(sa.func.count()).select_from(control.devices),
        "packages": sa.select(sa.func.count()).select_from(control.packages),
        "rollouts": sa.select(sa.func.count()).select_from(control.rollouts),
    }
    if schema == "telemetry":
        questions = {
            "windows": sa.select(sa.func.coalesce(sa.func.sum(d.windows), 0)),
            "inferences": sa.select(sa.func.coalesce(sa.func.sum(d.inferences), 0)),
        }
    return {name: int(connection.execute(question).scalar_one()) for name, question in questions.items()}


def _files(data: Path) -> Iterator[Path]:
    """All but the databases, the lists that name others first."""
    metadata = data / "repo" / "metadata"
    first = [place for role in ROLES for place in sorted(metadata.glob(f"*{role}.json"))]
    yield from first
    known = {*first, *(data / name for name in ANEW)}
    for place in sorted(data.rglob("*")):
        database = place.parent == data and place.name.startswith(tuple(tables.FILES.values()))
        hidden = place.name.startswith(".") or place.name.endswith(".part")  # what is being written
        foreign = place.is_relative_to(data / OF_VOLUME)
        ours = place.is_file() and not place.is_symlink() and not foreign
        if ours and place not in known and not database and not hidden:
            yield place


def _complete(repository: Repository, data: Path, writer: Writer) -> None:
    """Every file that the list in the archive names is in the archive. Raises Unavailable."""
    versions = [int(name.split("/")[-1].partition(".")[0]) for name in writer.files if name.endswith(".targets.json")]
    listed = repository.targets()
    wanted = [repository.metadata / "timestamp.json", data / "ca" / "ca.key", repository.metadata / "1.root.json"]
    for path, target in listed.signed.targets.items():
        digest = str(target.hashes["sha256"])
        blob = repository.blobs / digest
        wanted += [blob, repository.manifest_place(path, digest)]
        if blob.is_file():
            wanted += [repository.blobs / file.sha256 for file in decode_manifest(blob.read_bytes()).files.values()]
    absent = [str(one.relative_to(data)) for one in wanted if str(one.relative_to(data)) not in writer.files]
    if int(listed.signed.version) not in versions or absent:
        raise Unavailable(
            f"the registry changed while it was copied ({(absent or ['a newer list'])[0]} is not in the backup), or it "
            "is not whole: repeat the backup; `edgewright hub doctor` says what is missing for good"
        )
