"""The two databases as SQLite files of one moment each, and from such files back to a server.

From SQLite it is `VACUUM INTO`: one read transaction, beside which the hub goes on writing. From PostgreSQL it is every
row of every table, in one transaction that sees one moment, put into a file that our own migrations made; so a backup
is the same whatever it was made of, needs no tools of the server, and may be restored to the other kind. What numbers
rows goes along: an id that was given is never given again, also when its row is long gone, since cursors rely on it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from edgewright_contracts.errors import RequestError, Unavailable

from ..storage import control, store, telemetry
from ..storage.control import open_control
from ..storage.store import Schema, open_to_read, revisions
from ..storage.telemetry import open_telemetry

FILES: Final[dict[Schema, str]] = {"control": "hub.db", "telemetry": "telemetry.db"}
METADATA: Final[dict[Schema, sa.MetaData]] = {"control": control.metadata, "telemetry": telemetry.metadata}
OPEN: Final = {"control": open_control, "telemetry": open_telemetry}
_ROWS: Final = 1000


def snapshot(place: Path | str, schema: Schema, target: Path) -> None:
    """A new file `target` with the whole database, 0600. Raises Unavailable, RequestError."""
    target.touch(mode=0o600)
    if isinstance(place, Path):
        with (
            _readable(schema),
            contextlib.closing(sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True)) as c,
        ):
            c.execute("VACUUM INTO ?", (str(target),))
        return
    source = open_to_read(place, schema=schema)
    made = OPEN[schema](target)
    try:
        with source.connect().execution_options(isolation_level="REPEATABLE READ") as ours, made.begin() as theirs:
            found, newest = revision(ours), revisions(schema)[0]
            if found != newest:
                raise RequestError(
                    f"the schema {schema} of the server is at {found or 'none'}, this release has {newest}: run "
                    "`edgewright hub migrate` of this release first, or make the backup with the release that serves it"
                )
            _copy(ours, theirs, schema)
    except sa.exc.OperationalError as error:
        raise Unavailable(f"the database cannot be read: {error.orig}; see that the server runs, then repeat") from None
    finally:
        source.dispose()
        made.dispose()
    with contextlib.closing(sqlite3.connect(target)) as c:
        c.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it


def fill(url: str, schema: Schema, source: Path) -> None:
    """All rows of the file, which is at this release's schema, into a server that has none of these tables yet."""
    made, file = OPEN[schema](url), open_to_read(source, schema=schema)
    try:
        with file.connect() as ours, made.begin() as theirs:
            _copy(ours, theirs, schema)
    finally:
        file.dispose()
        made.dispose()


def revision(connection: sa.Connection) -> str:
    """Of the schema of an opened database; "" when it has none."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or "")


@contextlib.contextmanager
def _readable(schema: Schema) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise Unavailable(
            f"{FILES[schema]} cannot be copied: {error}. See that the disk has room for a second copy of it beside the "
            "backup; `edgewright hub doctor` says whether it is damaged"
        ) from None


def _copy(ours: sa.Connection, theirs: sa.Connection, schema: Schema) -> None:
    for table in METADATA[schema].sorted_tables:
        theirs.execute(table.delete())  # what a migration put there
        # Documents go along as the text that they are; nothing needs to look into them.
        values = [sa.cast(c, sa.Text).label(c.name) if isinstance(c.type, sa.JSON) else c for c in table.columns]
        names = tuple(column.name for column in table.columns)
        rows = ours.execution_options(stream_results=True, yield_per=_ROWS).execute(sa.select(*values))
        for some in rows.partitions():
            store.fill(theirs, table, names, [tuple(row) for row in some])
        if table.dialect_options["sqlite"]["autoincrement"]:
            _number(theirs, table, _given(ours, table))


def _given(connection: sa.Connection, table: sa.Table) -> int:
    """The highest id that was ever given."""
    if connection.dialect.name == "postgresql":
        name = connection.execute(sa.select(sa.func.pg_get_serial_sequence(table.name, _id(table)))).scalar_one()
        last, used = connection.execute(sa.text(f"SELECT last_value, is_called FROM {name}")).one()  # noqa: S608
        return int(last) if used else 0
    found = sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name")
    return int(connection.execute(found, {"name": table.name}).scalar() or 0)


def _number(connection: sa.Connection, table: sa.Table, given: int) -> None:
    if connection.dialect.name == "postgresql":
        name = sa.func.pg_get_serial_sequence(table.name, _id(table))
        connection.execute(sa.select(sa.func.setval(name, max(given, 1), given > 0)))
        return
    connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
    row = {"name": table.name, "seq": given}
    connection.execute(sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"), row)


def _id(table: sa.Table) -> str:
    return next(iter(table.primary_key.columns)).name
