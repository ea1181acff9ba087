"""Where the daemon listens: a loopback port, or a unix socket for whoever may write to it (mode 0660)."""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import NamedTuple

from edgewright_contracts.errors import RequestError, Unavailable

from .routes import LOOPBACK

BACKLOG = 128


class Port(NamedTuple):
    host: str
    number: int


Place = Port | Path


def place(said: str) -> Place:
    """Of `127.0.0.1:PORT`, `[::1]:PORT` or `unix:/PATH`. Raises RequestError."""
    if said.startswith("unix:"):
        path = Path(said.removeprefix("unix:"))
        if not path.is_absolute():
            raise RequestError(f"expected --listen unix:/an/absolute/path, got {said!r}")
        return path
    host, _, port = said.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        raise RequestError(f"expected --listen 127.0.0.1:PORT or unix:/PATH, got {said!r}")
    host = host.removeprefix("[").removesuffix("]")
    if host not in LOOPBACK:
        raise RequestError(f"expected a loopback address to listen on, got {host}: the protocol has no authentication")
    return Port(host, int(port))


def listen(at: Place) -> socket.socket:
    """Raises Unavailable when another program has the place, or the system refuses it."""
    try:
        return _port(at) if isinstance(at, Port) else _path(at)
    except OSError as error:
        where = f"{at.host} port {at.number}" if isinstance(at, Port) else str(at)
        raise Unavailable(
            f"cannot listen on {where}: {error.strerror or error}; end what has it, or name another "
            f"with --listen (port 0 takes a free one)"
        ) from None


def _port(at: Port) -> socket.socket:
    return socket.create_server(
        (at.host, at.number), family=socket.AF_INET6 if ":" in at.host else socket.AF_INET, backlog=BACKLOG
    )


def _path(at: Path) -> socket.socket:
    """Made beside and renamed: nobody ever finds it with another mode, and what a killed agent left is replaced."""
    _free(at)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    part = at.with_name(f"{at.name}.new")
    try:
        part.unlink(missing_ok=True)
        listener.bind(str(part))
        part.chmod(0o660)
        listener.listen(BACKLOG)
        part.replace(at)
    except BaseException:
        listener.close()
        part.unlink(missing_ok=True)
        raise
    return listener


def _free(at: Path) -> None:
    """Raises OSError when somebody listens there, or it is no socket."""
    try:
        kind = at.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(17, "something else than a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(at))
        except OSError:
            return  # nobody answers: left by a process that was killed
    raise FileExistsError(17, "another program listens there")
