"""A PostgreSQL server of the tests' own: a socket in a folder of its own, never as root, without fsync."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from edgewright_hub.storage.control import open_control
from edgewright_hub.storage.places import NAME, Places, move, places
from edgewright_hub.storage.telemetry import open_telemetry

ASKED = "EDGEWRIGHT_TEST_DATABASE"  # "postgresql": every test that keeps something keeps it there
OPTIONS = {"fsync": "off", "full_page_writes": "off", "listen_addresses": "", "autovacuum": "off", "jit": "off"}


def binaries() -> Path | None:
    """Debian keeps them out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return found[-1].parent
    which = shutil.which("postgres")
    return Path(which).resolve().parent if which else None


class Server:
    """`url()` is a new database; `stop()` and `start()` are a restart."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None, "no PostgreSQL: sh scripts/system-packages.sh postgresql"
        self._bin = found
        self.folder = Path(tempfile.mkdtemp(prefix="ew-pg-"))
        self._numbers = itertools.count()
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        make = ["-D", f"{self.folder}/data", "--auth=trust", "--username=hub", "--no-sync", "--no-locale", "-EUTF8"]
        subprocess.run([*self._as, self._bin / "initdb", *make], check=True, stdout=subprocess.DEVNULL, cwd=self.folder)
        self.start()

    def start(self) -> None:
        options = [f"-c{name}={value}" for name, value in OPTIONS.items()]
        command = [self._bin / "postgres", "-D", f"{self.folder}/data", "-k", str(self.folder), *options]
        self._process = subprocess.Popen(
            [*self._as, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder
        )
        self._engine = sa.create_engine(self._named("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        end = time.monotonic() + 60
        while True:
            try:
                self._engine.connect().close()
                return
            except sa.exc.OperationalError:
                assert time.monotonic() < end, "PostgreSQL does not answer"
                assert self._process.poll() is None, "PostgreSQL ended"
                time.sleep(0.05)

    @functools.cached_property
    def migrated(self) -> str:
        """The name of a database with all tables, to be copied."""
        url = self.url()
        open_telemetry(url).dispose()
        open_control(url).dispose()
        return str(sa.make_url(url).database)

    def _named(self, name: str) -> str:
        return f"postgresql+psycopg://hub@/{name}?host={self.folder}"

    def url(self, template: str = "template1") -> str:
        """`template` is a database that nobody is connected to."""
        name = f"t{next(self._numbers)}"
        with self._engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        return self._named(name)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """fast: open transactions are rolled back; immediate: as after a crash of the server."""
        self._process.send_signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
        self._process.wait(60)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


@functools.cache
def server() -> Server:
    """One for this process, until it ends."""
    one = Server()
    atexit.register(one.close)
    return one


def chosen(place: Path, *, asked: bool = False) -> Places:
    """Where the databases of `place` are: files in it, or a new database on the server where that is asked for."""
    if (asked or os.environ.get(ASKED) == "postgresql") and not (place / NAME).exists():
        place.mkdir(parents=True, exist_ok=True)
        return move(place, server().url(server().migrated))
    return places(place)


def copied(place: Path) -> None:
    """`place` is a copy of a folder: what it names on the server, it gets a copy of."""
    if (place / NAME).exists():
        move(place, server().url(str(sa.make_url(str(places(place).control)).database)))
