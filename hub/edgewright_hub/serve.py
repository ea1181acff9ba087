"""The hub's process: all that runs, in the order it starts: authority, registry, broker, consumer, conductor, web.

`serve` returns when `stop` is set or a signal came, with every task ended, within 3 seconds; when one of its own
threads or tasks dies it raises Unavailable, since a hub that is half dead misleads (`vitals`). While it runs the data
directory holds hub.json (addresses and pid), ca.pem and admin.token; hub.json appears when everything answers and goes
at the end. A lock on the directory keeps a second hub away, also after a kill, since the system gives it back.

    DATA/ca/  hub.db  telemetry.db  repo/  keys/  lock  hub.json  ca.pem  admin.token
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts import desired, durable
from edgewright_contracts.desired import ACK_S
from edgewright_contracts.errors import RequestError, Unavailable

from . import retention
from .alerts import webhooks
from .chores import Chore, chores
from .exports.destination import Destination, open_sink
from .fleet import enrolment, orders, tokens
from .fleet.ca import open_authority
from .ingest import device_hours
from .ingest.consumer import Consumer, settle
from .ingest.ingest import Known
from .ingest.refusals import Noted
from .mqtt.broker import EmbeddedBroker
from .registry import deltas
from .registry.edges import Edges
from .registry.registry import Registry
from .registry.repository import RESIGN_EVERY, Repository
from .rollouts.conductor import Conductor
from .rollouts.desired_documents import retained
from .storage import control, telemetry
from .storage.control import open_control
from .storage.places import Places, move, places
from .storage.store import Hold, held, outside
from .storage.telemetry import open_telemetry
from .vitals import Vitals
from .web import websocket
from .web.api import Hub
from .web.app import device_app, page_app
from .web.listeners import Address as Address
from .web.listeners import is_address, is_loopback, listen, reachable, web
from .web.samples import Samples

CONNECT_S: Final = 10.0
DEFAULT_FLEET: Final = "default"  # of a device that this hub does not know, for instance after it was restored
FLEETS_S: Final = 5.0
HOLD_S: Final = 2.0
RETIRED_S: Final = 2.0
SINK_S: Final = 1.0  # that the end waits for the sink
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Config:
    data: Path
    trust: Path | None = None  # the owner's hub folder, needed at the first start
    database: str | None = None  # URL of a PostgreSQL server; kept in the data directory for the next start
    https: Address = Address("127.0.0.1", 8443)  # noqa: RUF009 (frozen)
    page: Address = Address("127.0.0.1", 8080)  # noqa: RUF009
    mqtt: Address = Address("127.0.0.1", 8883)  # noqa: RUF009
    broker: Address | None = None  # an external one, instead of the embedded one at `mqtt`
    websocket: Address | None = None  # where that one speaks MQTT over WebSocket; the embedded one does at `https`
    require_approval: bool = False  # what is published waits for an operator before it may be rolled out
    approvals: int = 0  # persons besides its author who must approve a rollout, at the least
    names: tuple[str, ...] = ()  # by which devices reach this machine; the first is what they are told
    tick_s: float = 1.0
    ack_s: float = ACK_S
    window_s: float = 300.0  # of the devices' reports, while no rollout asks for shorter ones
    influx: Destination | None = None  # where every window goes, too


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """hub.json."""

    https: str
    page: str
    broker: dict[str, Any]
    pid: int


def run(config: Config, *, ready: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises RequestError (configuration) or Unavailable (port, lock)."""
    settle()
    asyncio.run(_until_signalled(config, ready))


async def _until_signalled(config: Config, ready: Callable[[Running], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(config, stop=stop, ready=ready)


async def serve(config: Config, *, stop: asyncio.Event, ready: Callable[[Running], None]) -> None:
    """Run everything until `stop` is set. Raises as `run`."""
    _check(config)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_locked(config.data))
        # What a start may lack is looked at before anything is made: that belongs to one owner for ever.
        Repository(config.data / "repo", config.data / "keys").check_owner(config.trust)
        https = stack.enter_context(listen(config.https, "--https"))
        page = stack.enter_context(listen(config.page, "--page"))
        mqtt = None if config.broker else stack.enter_context(listen(config.mqtt, "--mqtt"))

        for place in (config.data, config.data / "ca", config.data / "keys"):
            durable.sweep(place)
        now = datetime.now(UTC)
        authority = open_authority(config.data / "ca", now=now)
        bound = (a.host for a in (config.https, config.mqtt) if is_address(a.host))
        authority.keep_server((*config.names, *bound), config.data / "ca", now=now)
        stored = Places(config.database, config.database) if config.database else places(config.data)
        control_engine = open_control(stored.control)
        stack.callback(control_engine.dispose)
        hold = stack.enter_context(held(control_engine))
        telemetry_engine = open_telemetry(stored.telemetry)
        stack.callback(telemetry_engine.dispose)
        if config.database:  # both could be opened there
            move(config.data, config.database)
        vitals = Vitals(
            {
                "hub.db": (control_engine, sa.select(control.cursors).limit(1)),
                "telemetry.db": (telemetry_engine, sa.select(telemetry.spools).limit(1)),
            }
        )
        vitals.keep("its hold of the database, which another hub has now,", lambda: not hold.lost)
        registry = Registry(
            config.data / "repo", config.data / "keys", control_engine, require_approval=config.require_approval
        )
        registry.open(config.trust, now=now)

        broker = config.broker or Address(reachable(config.mqtt.host), config.mqtt.port)
        over_web: websocket.Connected | None = None
        noted = Noted()
        if mqtt is not None:
            outdated = partial(enrolment.outdated, control_engine)
            embedded = EmbeddedBroker(mqtt, authority.broker_context(), outdated, noted.add)
            await embedded.start()
            stack.push_async_callback(embedded.stop)
            vitals.keep("the embedded broker", lambda: embedded.serving)
            over_web = embedded.connected
            loop = asyncio.get_running_loop()
            expel = partial(_expel, embedded, control_engine, loop)
            await stack.enter_async_context(vitals.every("sending retired devices away", RETIRED_S, expel))
            broker = Address(reachable(config.mqtt.host), mqtt.getsockname()[1])
        consumer = Consumer(
            telemetry_engine,
            host=broker.host,
            port=broker.port,
            context=authority.client_context(),
            known=Known(Fleets(control_engine).of, Edges(control_engine, registry.blobs).of),
            desired=partial(retained, control_engine),
            noted=noted,
            ack_s=config.ack_s,
        )
        consumer.start()
        stack.push_async_callback(asyncio.to_thread, consumer.stop)
        vitals.ask(lambda: consumer.trouble)
        for name, thread in consumer.threads.items():
            vitals.keep(name, thread.is_alive)
        if not await asyncio.to_thread(consumer.ready.wait, CONNECT_S):
            if config.broker is None:
                raise Unavailable(f"the embedded broker at {broker} does not answer; the log says more")
            _LOG.warning("no answer from the broker at %s yet; trying on", broker)

        wanted = desired.Config(window_s=config.window_s)
        conductor = Conductor(
            control_engine, telemetry_engine, registry, consumer.publish, wanted, approvals=config.approvals
        )
        stores = (control_engine, telemetry_engine)
        sink = open_sink(config.influx, *stores, config.data, conductor.roster.read, _now_ms)
        name = config.names[0] if config.names else reachable(config.https.host)
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
            "websocket": (name, https.getsockname()[1]) if over_web else config.websocket and astuple(config.websocket),
            "ails": vitals.reasons,
            "samples": Samples(config.data / "samples"),
            "consumer": consumer,
            "sink": sink,
        }
        device_web = web(device_app(Hub(**common, open_to_read=False), over_web), https, config.data / "ca", stop)
        page_web = web(page_app(Hub(**common, open_to_read=True)), page, None, stop)
        for name, one in (("the listener of devices", device_web), ("the listener of the page", page_web)):
            vitals.keep_task(name, await stack.enter_async_context(one))
        sender = webhooks.Sender(control_engine, webhooks.post, _now_ms)
        sender.start()
        stack.callback(sender.stop)
        vitals.keep("the sender of webhooks", sender.is_alive)
        if sink is not None:
            sink.start()
            stack.push_async_callback(asyncio.to_thread, sink.stop, SINK_S)
            vitals.keep("the sink of InfluxDB", sink.is_alive)
        turns: tuple[Chore, ...] = (
            ("signing the registry", RESIGN_EVERY.total_seconds(), lambda: _resign(registry)),
            ("holding the database", HOLD_S, partial(_hold, hold, consumer)),
            ("the tick", config.tick_s, lambda: conductor.tick(_now_ms())),
            ("drift", config.tick_s, lambda: conductor.drift.tick(_now_ms())),
            ("sending orders", orders.EVERY_S, lambda: conductor.orders.tick(_now_ms())),
            ("adding up device hours", device_hours.EVERY_S, partial(device_hours.tick, telemetry_engine)),
            ("retention", retention.EVERY_S, lambda: retention.shorten(control_engine, telemetry_engine, _now_ms())),
            ("making deltas", deltas.EVERY_S, deltas.Deltas(registry, control_engine, stop.is_set).tick),
            *chores(control_engine, telemetry_engine, registry, config.data / "ca", common["samples"]),
        )
        for name, seconds, act in turns:
            await stack.enter_async_context(vitals.every(name, seconds, act))

        _admin_token(control_engine, config.data / "admin.token")
        durable.replace(config.data / "ca.pem", authority.ca_pem)
        running = Running(
            https=url,
            page=f"http://{Address(config.page.host, page.getsockname()[1])}/",
            broker={"host": told[0], "port": told[1]},
            pid=os.getpid(),
        )
        place = config.data / "hub.json"
        stack.callback(place.unlink, missing_ok=True)
        durable.replace(place, msgspec.json.format(msgspec.json.encode(running)) + b"\n")
        ready(running)
        await vitals.watch(stop)


def _now_ms() -> int:
    return int(time.time() * 1000)


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


def _hold(hold: Hold, consumer: Consumer) -> None:
    if hold.look():
        consumer.send_desired()


def _expel(broker: EmbeddedBroker, engine: sa.Engine, loop: asyncio.AbstractEventLoop) -> None:
    """Devices that were retired while they were connected."""
    loop.call_soon_threadsafe(broker.expel, enrolment.retired(engine))


def _resign(registry: Registry) -> None:
    now = datetime.now(UTC)
    registry.resign(now=now)
    if said := registry.warning(now=now):
        _LOG.warning("%s", said)


def _admin_token(engine: sa.Engine, place: Path) -> None:
    """Keep the token in the file if hub.db still knows it, else make one."""
    with outside(engine):
        known = place.exists() and tokens.holder(engine, place.read_text().strip()) is not None
    if not known:
        durable.replace(place, tokens.grant(engine, role="admin", name="admin").encode() + b"\n", mode=0o600)


def _check(config: Config) -> None:
    """Raises RequestError."""
    if not is_loopback(config.page.host):
        raise RequestError(f"--page: expected a loopback address, because the page asks no password; got {config.page}")
    if config.websocket and not config.broker:
        raise RequestError("--websocket is for a broker of its own (--broker); the embedded one is reached at --https")
    if not all(map(math.isfinite, (config.tick_s, config.ack_s, config.window_s))):
        raise RequestError("--tick-s, --ack-interval-s and --window-s: expected numbers of seconds, got nan")
    for option, address in (("--https", config.https), ("--mqtt", config.mqtt)):
        used = option == "--https" or config.broker is None
        if used and not config.names and not is_address(address.host):
            raise RequestError(
                f"{option} {address} listens on all interfaces, so devices must be told by which name or address they "
                "reach this machine: add --name HOST"
            )


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
