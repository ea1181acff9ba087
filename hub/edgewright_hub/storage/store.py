"""The two databases: how they are opened, brought to the newest schema, and written to on SQLite and PostgreSQL alike.

`telemetry.db` is written by ingest (and shortened by retention), `hub.db` by all that decides; two files have no common
transaction, so whoever reads the first to change the second keeps a cursor in the second. A file opened here is in WAL
mode: one writer, any number of readers, none of which waits for the other. On PostgreSQL they are the schemas
`telemetry` and `control` of one database, and everything is the same. Opening migrates: about 50 ms the first time,
5 ms after that.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.compiler import SQLCompiler

from edgewright_contracts.errors import RequestError, Unavailable

NAMING: Final = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# SQLite gives an alias of the row id, without which AUTOINCREMENT is refused, only to INTEGER.
Id: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Document: Final = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

# A session whose network was cut ends within half a minute, on both sides: by default the server keeps it, and the
# locks that it holds, for two hours.
_SERVER_GIVES_UP: Final = (
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=25000"
)
_HUB_GIVES_UP: Final = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_HUB: Final = 0xED6E_0001  # the number of the lock that a hub holds on a server's database

Schema = Literal["telemetry", "control"]


def open_engine(place: Path | str, *, schema: Schema) -> sa.Engine:
    """An engine on a SQLite file (a path) or on PostgreSQL (a URL, postgresql://user@host/name), where both databases
    are schemas of one. What is committed survives a power cut: devices forget what they were told is kept. A commit of
    SQLite waits for the disk (about 5 ms); ingest commits once for all that came. Raises RequestError for another
    URL."""
    if not isinstance(place, Path):
        url = server_url(place)
        options = f"-c search_path={schema} -c synchronous_commit=on -c lock_timeout=10000 {_SERVER_GIVES_UP}"
        name = f"edgewright hub {schema}"
        settings = {"options": options, "application_name": name, "connect_timeout": 10, **_HUB_GIVES_UP}
        return sa.create_engine(url, pool_pre_ping=True, connect_args=settings)
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_CREAT | os.O_RDWR, 0o600)  # hashes of tokens are nobody else's business
    os.close(descriptor)
    engine = sa.create_engine(f"sqlite:///{place}", connect_args={"timeout": 10.0})

    @sa.event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def open_to_read(place: Path | str, *, schema: Schema) -> sa.Engine:
    """An engine that changes nothing, not even the schema. Raises RequestError for a URL of another kind."""
    if isinstance(place, Path):
        return sa.create_engine(f"sqlite:///file:{place.absolute()}?mode=ro&uri=true", poolclass=sa.NullPool)
    options = f"-c search_path={schema} -c default_transaction_read_only=on"
    settings = {"options": options, "connect_timeout": 10}
    return sa.create_engine(server_url(place), poolclass=sa.NullPool, connect_args=settings)


def server_url(text: str) -> sa.URL:
    """Raises RequestError for what is no address of a PostgreSQL server."""
    said = "expected postgresql://USER@HOST/NAME (?host=/run/postgresql for a socket)"
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise RequestError(f"the database: {said}, got {text[:200]!r}") from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise RequestError(f"the database: {said}, got {url.drivername}://")
    if importlib.util.find_spec("psycopg") is None:
        raise RequestError("PostgreSQL needs a driver: pip install 'edgewright[postgresql]'")
    return url.set(drivername="postgresql+psycopg")


def migrate(engine: sa.Engine, metadata: sa.MetaData, schema: Schema) -> None:
    """Bring the database to the newest schema, in one transaction.

    Raises RequestError for one of a newer release, Unavailable for one that cannot be read or written.
    """
    try:
        with outside(engine), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
            command.upgrade(_config(connection, metadata, schema), "head")
    except CommandError as error:
        raise RequestError(
            f"the database {engine.url.database} has a schema that this release does not know ({error}). "
            "It was opened by a newer release: run that one, or restore the backup made before the upgrade."
        ) from None
    except sa.exc.DatabaseError as error:
        raise Unavailable(
            f"the database {engine.url.database} cannot be opened: {error.orig}. "
            "If the file is damaged, restore it from a backup; `edgewright hub doctor` says more"
        ) from None


@contextlib.contextmanager
def outside(engine: sa.Engine) -> Iterator[None]:
    """For work that a person waits for: a database that cannot be reached or written, which is nobody's fault here, is
    Unavailable. (Ingest tries again instead.)"""
    try:
        yield
    except sa.exc.OperationalError as error:
        said = " ".join(str(error.orig).split())
        raise Unavailable(
            f"the database {engine.url.database} cannot be used: {said}. Nothing was changed. "
            "See that the disk has room and that this user may write there, then repeat; "
            "`edgewright hub doctor` says more"
        ) from None


def away(error: BaseException) -> bool:
    """Whether the database could not be reached, or not in time: what failed was not done and may be repeated."""
    if isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.OperationalError) or error.connection_invalidated
    return isinstance(error, sa.exc.TimeoutError)


_OWN_SESSION: Final = sa.text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
_END_SESSION: Final = sa.text(  # until it has ended, at most 5 s; the number alone may be another's after a restart
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = :pid AND backend_start = :backend_start"
)


class Hold:
    """One hub for a database: on a server as long as the session lives that took the lock, which ends when the server
    restarts or the network is cut; `look` then takes it again. The server may not have noticed the cut: what it still
    keeps of the session before is ended first, so that a hub never takes itself for another. Files are held by the lock
    of their directory."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._session: sa.Connection | None = None
        self._known_as: dict[str, Any] | None = None  # by the server, in that session or the one before
        self.lost = False  # another hub took it meanwhile

    def look(self) -> bool:
        """True when it was taken anew: what was being written when the server went may be written or not. Raises
        OperationalError while the server is away."""
        if self._engine.dialect.name != "postgresql":
            return False
        if self._session is not None:
            try:
                self._session.execute(sa.select(1))
            except sa.exc.DBAPIError:
                self.release()
            else:
                return False
        session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._session = session
        try:
            if self._known_as is not None:
                session.execute(_END_SESSION, self._known_as)
            self._known_as = dict(session.execute(_OWN_SESSION).one()._mapping)
            if not session.execute(sa.select(sa.func.pg_try_advisory_lock(_HUB))).scalar_one():
                self.lost = True
        except sa.exc.DBAPIError:
            self.release()  # it may hold nothing
            raise
        return True

    def release(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.invalidate()  # the lock is the session's: given back to the pool, it would stay
            session.close()


@contextlib.contextmanager
def held(engine: sa.Engine) -> Iterator[Hold]:
    """Hold the database. Raises Unavailable when another hub has it."""
    hold = Hold(engine)
    try:
        hold.look()
        if hold.lost:
            place = engine.url.render_as_string(hide_password=True)
            raise Unavailable(f"another hub keeps {place}: stop that one, or name another database with --database")
        yield hold
    finally:
        hold.release()


def revisions(schema: Schema) -> tuple[str, ...]:
    """Of the schema, as this release knows them: the newest first."""
    found = ScriptDirectory.from_config(_scripts(schema)).walk_revisions()
    return tuple(str(one.revision) for one in found)


def check(engine: sa.Engine, metadata: sa.MetaData, schema: Schema) -> None:
    """Raise alembic's AutogenerateDiffsDetected when the migrations and the tables of the code differ."""
    with engine.begin() as connection:
        command.check(_config(connection, metadata, schema))


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    keys: Sequence[str],
    keep: Sequence[str] = (),
) -> None:
    """Insert `rows`, or set all columns but `keep` where a row with equal `keys` exists. Rows have equal columns."""
    if not rows:
        return
    statement = insert(connection, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in (*keys, *keep)}
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=changed), list(rows))


def insert(connection: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT, of the dialect in use."""
    return _insert(connection.dialect.name, table)


def fill(
    connection: sa.Connection,
    table: sa.Table,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    *,
    keys: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
) -> None:
    """`upsert` (without `keys`: insert) of many rows in the order of `columns`, handed to the driver as they are: a
    Document as text. A quarter of the time, since nothing looks at each value."""
    if rows:
        connection.exec_driver_sql(_statement(connection.dialect.name, table, columns, keys, keep), list(rows))


@functools.cache
def _statement(
    dialect: str, table: sa.Table, columns: tuple[str, ...], keys: tuple[str, ...], keep: tuple[str, ...]
) -> str:
    statement = _insert(dialect, table).values({name: sa.bindparam(name) for name in columns})
    if keys:
        changed = {name: statement.excluded[name] for name in columns if name not in (*keys, *keep)}
        statement = statement.on_conflict_do_update(index_elements=list(keys), set_=changed)
    if dialect == "postgresql":
        driver: sa.Dialect = PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]
    else:
        driver = sqlite.dialect(paramstyle="qmark")
    compiled = statement.compile(dialect=driver)
    assert isinstance(compiled, SQLCompiler)
    if tuple(compiled.positiontup or ()) != columns:
        raise ValueError(f"expected columns of {table.name} in its own order, got {columns}")
    return str(compiled)


def _insert(dialect: str, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def _config(connection: sa.Connection, metadata: sa.MetaData, schema: Schema) -> Config:
    config = _scripts(schema)
    config.attributes.update(connection=connection, metadata=metadata)
    return config


def _scripts(schema: Schema) -> Config:
    folder = Path(__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("version_locations", str(folder / schema))
    config.set_main_option("path_separator", "os")
    return config
