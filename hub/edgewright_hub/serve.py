"""The hub's process: all that runs, in the order it starts: authority, registry, broker, consumer, conductor, web.

`serve` returns when `stop` is set or a signal came, with every task ended, within 3 seconds. While it runs the data
directory holds hub.json (addresses and pid), ca.pem and admin.token; hub.json appears when everything answers and goes
at the end. A lock on the directory keeps a second hub away, also after a kill, since the system gives it back.

    DATA/ca/  hub.db  telemetry.db  repo/  keys/  lock  hub.json  ca.pem  admin.token
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import json
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from edgewright_contracts import desired
from edgewright_contracts.errors import RequestError, Unavailable

from . import control, tokens
from .api import Hub
from .app import device_app, page_app
from .broker import EmbeddedBroker
from .ca import open_authority
from .conductor import Conductor
from .consumer import Consumer
from .control import open_control
from .registry import RESIGN_EVERY, Registry
from .telemetry import open_telemetry

CONNECT_S: Final = 10.0
DEFAULT_FLEET: Final = "default"  # of a device that this hub does not know, for instance after it was restored
FLEETS_S: Final = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Config:
    data: Path
    trust: Path | None = None  # the owner's hub folder, needed at the first start
    https: Address = Address("127.0.0.1", 8443)
    page: Address = Address("127.0.0.1", 8080)
    mqtt: Address = Address("127.0.0.1", 8883)
    broker: Address | None = None  # an external one, instead of the embedded one at `mqtt`
    names: tuple[str, ...] = ()  # by which devices reach this machine; the first is what they are told
    tick_s: float = 1.0
    ack_interval_s: float = 30.0
    window_s: float = 300.0  # of the devices' reports, while no rollout asks for shorter ones


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """hub.json."""

    https: str
    page: str
    broker: dict[str, Any]
    pid: int


def run(config: Config, *, ready: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises RequestError (configuration) or Unavailable (port, lock)."""
    asyncio.run(_until_signalled(config, ready))


async def _until_signalled(config: Config, ready: Callable[[Running], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(config, stop=stop, ready=ready)


async def serve(config: Config, *, stop: asyncio.Event, ready: Callable[[Running], None]) -> None:
    """Run everything until `stop` is set. Raises as `run`."""
    if not _is_loopback(config.page.host):
        raise RequestError(f"--page: expected a loopback address, because the page asks no password; got {config.page}")
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_locked(config.data))
        now = datetime.now(UTC)
        authority = open_authority(config.data / "ca", now=now)
        bound = (a.host for a in (config.https, config.mqtt) if _is_address(a.host))
        authority.keep_server((*config.names, *bound), config.data / "ca", now=now)
        control_engine = open_control(config.data / "hub.db")
        stack.callback(control_engine.dispose)
        telemetry_engine = open_telemetry(config.data / "telemetry.db")
        stack.callback(telemetry_engine.dispose)
        registry = Registry(config.data / "repo", config.data / "keys", control_engine)
        registry.open(config.trust, now=now)
        https = stack.enter_context(_listen(config.https, "--https"))
        page = stack.enter_context(_listen(config.page, "--page"))

        if config.broker is None:
            embedded = EmbeddedBroker(config.mqtt.host, config.mqtt.port, authority.broker_context())
            await embedded.start()
            stack.push_async_callback(embedded.stop)
            broker = Address(_reachable(embedded.host), embedded.port)
        else:
            broker = config.broker
        consumer = Consumer(
            telemetry_engine,
            host=broker.host,
            port=broker.port,
            context=authority.client_context(),
            cohort_of=Fleets(control_engine).of,
            desired=lambda: _desired(control_engine),
            ack_interval_s=config.ack_interval_s,
        )
        consumer.start()
        stack.push_async_callback(asyncio.to_thread, consumer.stop)
        if not await asyncio.to_thread(consumer.ready.wait, CONNECT_S):
            if config.broker is None:
                raise Unavailable(f"the embedded broker at {broker} does not answer; the log says more")
            _LOG.warning("no answer from the broker at %s yet; trying on", broker)

        wanted = desired.Config(window_s=config.window_s)
        conductor = Conductor(control_engine, telemetry_engine, registry, consumer.publish, wanted)
        name = config.names[0] if config.names else _reachable(config.https.host)
        url = f"https://{Address(name, https.getsockname()[1])}"
        told = (config.names[0] if config.names and config.broker is None else broker.host, broker.port)
        common: dict[str, Any] = {
            "control": control_engine,
            "telemetry": telemetry_engine,
            "registry": registry,
            "authority": authority,
            "conductor": conductor,
            "broker": told,
            "repo": f"{url}/repo/",
        }
        certificate = (str(config.data / "ca" / "server.pem"), str(config.data / "ca" / "server.key"))
        await stack.enter_async_context(_web(device_app(Hub(**common, open_to_read=False)), https, certificate, stop))
        await stack.enter_async_context(_web(page_app(Hub(**common, open_to_read=True)), page, None, stop))
        await stack.enter_async_context(_every(RESIGN_EVERY.total_seconds(), lambda: _resign(registry)))
        await stack.enter_async_context(_every(config.tick_s, lambda: conductor.tick(int(time.time() * 1000))))

        _admin_token(control_engine, config.data / "admin.token")
        shutil.copyfile(config.data / "ca" / "ca.pem", config.data / "ca.pem")
        running = Running(
            https=url,
            page=f"http://{Address(config.page.host, page.getsockname()[1])}/",
            broker={"host": told[0], "port": told[1]},
            pid=os.getpid(),
        )
        place = config.data / "hub.json"
        stack.callback(place.unlink, missing_ok=True)
        part = config.data / ".hub.json.part"
        part.write_bytes(msgspec.json.format(msgspec.json.encode(running)) + b"\n")
        part.replace(place)
        ready(running)
        await stop.wait()


class Fleets:
    """Which fleet a device belongs to; asked for each report, so it is read from hub.db every 5 seconds only."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._known: dict[str, str] = {}
        self._read_s = float("-inf")

    def of(self, device: str) -> str:
        if time.monotonic() - self._read_s > FLEETS_S:
            table = control.devices.c
            with self._engine.connect() as connection:
                rows = connection.execute(sa.select(table.id, table.fleet)).all()
            self._known = {row.id: row.fleet for row in rows}
            self._read_s = time.monotonic()
        return self._known.get(device, DEFAULT_FLEET)


def _desired(engine: sa.Engine) -> list[tuple[str, bytes]]:
    table = control.desired.c
    with engine.connect() as connection:
        rows = connection.execute(sa.select(table.device, table.document)).all()
    return [(row.device, msgspec.json.encode(row.document, order="deterministic")) for row in rows]


def _resign(registry: Registry) -> None:
    now = datetime.now(UTC)
    registry.resign(now=now)
    if said := registry.warning(now=now):
        _LOG.warning("%s", said)


def _admin_token(engine: sa.Engine, place: Path) -> None:
    """Keep the token in the file if hub.db still knows it, else make one."""
    if place.exists() and tokens.holder(engine, place.read_text().strip()) is not None:
        return
    place.unlink(missing_ok=True)
    with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(tokens.grant(engine, role="admin", name="admin") + "\n")


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                f"another hub runs on {data} ({_holder(data)}): stop that one, or choose another --data directory"
            ) from None
        yield


def _holder(data: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return f"process {json.loads((data / 'hub.json').read_bytes())['pid']}"
    return "it is still starting"


def _listen(address: Address, option: str) -> socket.socket:
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
async def _web(
    app: FastAPI, listener: socket.socket, certificate: tuple[str, str] | None, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Serve until `stop` is set or the context ends. Clients that still listen then are cut off after a second."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        ssl_certfile=certificate[0] if certificate else None,
        ssl_keyfile=certificate[1] if certificate else None,
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
        yield
    finally:
        ending.cancel()
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def _every(seconds: float, act: Callable[[], Any]) -> AsyncIterator[None]:
    """Run `act` in a thread again and again, `seconds` apart; a failure is logged and the next turn comes all the same.
    An act that returns True has more to do and is called again at once."""

    async def turns() -> None:
        while True:
            more = False
            try:
                more = await asyncio.to_thread(act) is True
            except Exception:
                _LOG.exception("a periodic task failed; it is tried again in %g s", seconds)
            await asyncio.sleep(0 if more else seconds)

    task = asyncio.create_task(turns())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    return host if _is_address(host) else "127.0.0.1"


def _is_address(host: str) -> bool:
    """A host that a client can be told to connect to: not "all interfaces"."""
    return host not in {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound
