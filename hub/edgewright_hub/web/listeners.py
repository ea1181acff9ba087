"""Where the hub listens: addresses, sockets, and the web servers on them.

A socket is bound before anything else starts, so that a port that is taken is known, with the way out, at once. The
servers end within about a second of `stop`; clients that still listen then are cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from edgewright_contracts.errors import Unavailable

from . import peers, websocket


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen(address: Address, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"the port {address} cannot be opened: {error.strerror}. "
            f"Stop the program that holds it, or choose another with {option} HOST:PORT"
        ) from None
    return listener


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the hub's, not one server's


@contextlib.asynccontextmanager
async def web(
    app: FastAPI, listener: socket.socket, folder: Path | None, stop: asyncio.Event
) -> AsyncIterator[asyncio.Task[None]]:
    """Serve until `stop` is set or the context ends. Gives the task that serves. With the `folder` of an authority, by
    TLS, where clients may show a certificate of it."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        http=peers.Protocol,
        ws="websockets-sansio",
        ws_max_size=websocket.MESSAGE_BYTES,
        ws_ping_interval=None,  # a ping every 20 s would cost a metered device 300 kB a day; MQTT has its own
        ws_per_message_deflate=False,
        ssl_certfile=folder / "server.pem" if folder else None,
        ssl_keyfile=str(folder / "server.key") if folder else None,
        ssl_ca_certs=str(folder / "ca.pem") if folder else None,
        ssl_cert_reqs=ssl.CERT_OPTIONAL if folder else ssl.CERT_NONE,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if task.done():
        task.result()

    async def end() -> None:
        await stop.wait()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # cutting off a live page is no error
        server.should_exit = True

    ending = asyncio.create_task(end())
    try:
        yield task
    finally:
        ending.cancel()
        server.should_exit = True
        await task


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    return host if is_address(host) else "127.0.0.1"


def is_address(host: str) -> bool:
    """A host that a client can be told to connect to: not "all interfaces"."""
    return host not in {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound
