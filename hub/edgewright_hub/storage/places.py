"""Where the databases of a data directory are: two files in it, or on the PostgreSQL server that `DATA/database` names.

That file is written by `hub serve --database URL` and holds the URL alone, with its password: nobody else may read it.
All other commands on the directory then find the same databases.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgewright_contracts import durable

from .store import server_url

NAME = "database"


class Places(NamedTuple):
    control: Path | str
    telemetry: Path | str


def places(data: Path) -> Places:
    """Raises RequestError when the file names no server."""
    named = data / NAME
    if not named.exists():
        return Places(data / "hub.db", data / "telemetry.db")
    url = named.read_text().strip()
    server_url(url)
    return Places(url, url)


def move(data: Path, url: str) -> Places:
    """From now on they are there. What another place holds stays where it is. Raises RequestError."""
    server_url(url)
    durable.replace(data / NAME, f"{url}\n".encode(), mode=0o600)
    return Places(url, url)
