"""The hub's side: the real consumer on a new database, and the CPU that each report costs its process."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from edgewright_contracts.desired import ACK_S
from edgewright_hub.fleet.ca import HUB_NAME, open_authority
from edgewright_hub.ingest.consumer import Consumer, settle
from edgewright_hub.ingest.refusals import Noted
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
    from hub.conftest import Amqtt

    settle()
    authority = open_authority(folder / "ca", now=datetime.now(UTC))
    authority.keep_server((), authority.folder, now=datetime.now(UTC))
    broker = Amqtt(authority)
    engine = open_telemetry(database)
    consumer = Consumer(
        engine, host="127.0.0.1", port=broker.port, context=authority.client_context(), known=fleets(devices),
        desired=list, noted=Noted(), ack_s=ACK_S,
    )  # fmt: skip
    consumer.start()
    assert consumer.ready.wait(20)
    print("ready", flush=True)
    print(json.dumps({"port": broker.port}), flush=True)
    sys.stdin.readline()
    print(json.dumps({"us": spent_us(engine, reports)}), flush=True)
    sys.stdin.readline()
    consumer.stop()
    broker.close()
    engine.dispose()


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
