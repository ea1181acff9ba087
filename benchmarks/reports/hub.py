"""The hub's side: the real consumer on a new database, and the CPU that each report costs its process."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from edgewright_contracts.desired import ACK_S
from edgewright_hub.fleet.ca import HUB_NAME, Authority, open_authority
from edgewright_hub.ingest.consumer import Consumer, settle
from edgewright_hub.ingest.refusals import Noted
from edgewright_hub.mqtt.broker import EmbeddedBroker
from edgewright_hub.storage.telemetry import open_telemetry

from .fleet import fleets
from .traffic import WARM, tls


def hub(folder: Path, database: Path, port: int, reports: int, devices: int) -> None:
    """The consumer as the hub runs it, until the reports are in its database, which is new."""
    settle()
    engine = open_telemetry(database)
    consumer = Consumer(
        engine,
        host="127.0.0.1",
        port=port,
        context=tls(folder, HUB_NAME),
        known=fleets(devices),
        desired=list,
        noted=Noted(),
        ack_s=ACK_S,
    )
    consumer.start()
    assert consumer.ready.wait(20)
    time.sleep(0.3)
    print("ready", flush=True)
    print(json.dumps({"us": spent_us(engine, reports)}), flush=True)
    sys.stdin.readline()
    consumer.stop()
    engine.dispose()


def embedded(folder: Path, database: Path, reports: int, devices: int) -> None:
    """As `hub` with a broker in the same process; counts from the first line on stdin, when all are connected."""
    settle()
    authority = open_authority(folder / "ca", now=datetime.now(UTC))
    authority.keep_server((), authority.folder, now=datetime.now(UTC))
    engine = open_telemetry(database)
    with running_broker(authority) as port:
        consumer = Consumer(
            engine, host="127.0.0.1", port=port, context=authority.client_context(), known=fleets(devices),
            desired=list, noted=Noted(), ack_s=ACK_S,
        )  # fmt: skip
        consumer.start()
        assert consumer.ready.wait(20)
        print("ready", flush=True)
        print(json.dumps({"port": port}), flush=True)
        sys.stdin.readline()
        print(json.dumps({"us": spent_us(engine, reports)}), flush=True)
        sys.stdin.readline()
        consumer.stop()
    engine.dispose()


@contextmanager
def running_broker(authority: Authority) -> Iterator[int]:
    """The embedded broker, in a loop and a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    broker = EmbeddedBroker(listener, authority.broker_context(), lambda *_: None, Noted().add)
    asyncio.run_coroutine_threadsafe(broker.start(), loop).result(10)
    yield int(listener.getsockname()[1])
    asyncio.run_coroutine_threadsafe(broker.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


def spent_us(engine: sa.Engine, reports: int) -> float:
    """CPU of this process for each report, behind the first few, until all are in the database, which was empty."""
    begun, first = 0.0, 0
    with engine.connect() as connection:
        raw = connection.connection.cursor()
        while True:
            time.sleep(0.1)
            ((done,),) = raw.execute("SELECT coalesce(max(id), 0) FROM windows").fetchall()
            if not first and done >= reports // WARM:
                begun, first = time.process_time(), done
            if done >= reports:
                return (time.process_time() - begun) / (done - first) * 1e6
