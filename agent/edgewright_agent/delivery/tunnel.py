"""A TCP connection through an HTTP proxy: CONNECT (RFC 9110, 9.3.6), with Basic authentication if the URL names a user.

The tunnel carries TLS, so the proxy sees the name and port of the hub and how much is said, nothing else.
"""

from __future__ import annotations

import base64
import socket
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from edgewright_contracts.errors import RequestError

from .. import tcp

HEAD_BYTES: Final = 8192


class Proxy(NamedTuple):
    host: str
    port: int
    authorization: str = ""


def parse(url: str) -> Proxy:
    """Of http://[USER:PASSWORD@]HOST[:PORT]. Raises RequestError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 8080
    except ValueError:
        host, port = None, 0
    if host is None or parts.scheme != "http" or parts.path not in ("", "/"):
        raise RequestError(f"expected a proxy as http://[USER:PASSWORD@]HOST:PORT, got {url!r}")
    if parts.username is None:
        return Proxy(host, port)
    said = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port, "Basic " + base64.b64encode(said.encode()).decode())


def connect(proxy: Proxy, host: str, port: int, timeout: float) -> socket.socket:
    """A socket whose other end is `host`. Raises OSError, with the proxy's reason when it refuses."""
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    link = tcp.connect(proxy.host, proxy.port, timeout)
    try:
        head = f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n"
        if proxy.authorization:
            head += f"Proxy-Authorization: {proxy.authorization}\r\n"
        link.sendall(head.encode() + b"\r\n")
        _agreed(link, f"the proxy {proxy.host}:{proxy.port}", name)
    except BaseException:
        link.close()
        raise
    return link


def _agreed(link: socket.socket, proxy: str, name: str) -> None:
    """Read the answer's head. Raises ConnectionError."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):  # byte by byte: what follows belongs to TLS
        byte = link.recv(1)
        if not byte or len(answer) >= HEAD_BYTES:
            raise ConnectionError(f"{proxy} answered no HTTP to CONNECT")
        answer += byte
    said = answer.split(b"\r\n", 1)[0].decode("latin-1")
    parts = said.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].startswith("2"):
        raise ConnectionRefusedError(f"{proxy} refused {name}: {said[:80]}")
