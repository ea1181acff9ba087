"""A hub that is killed in the middle of ingest, twice: every report is counted, none of them twice."""

from __future__ import annotations

import json
import queue
import random
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts import topics
from edgewright_contracts.desired import decode_ack
from edgewright_hub.fleet.ca import open_authority
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.places import places
from sim import wire
from sim.wire import WireClient

pytestmark = pytest.mark.process

REPORTS = 240
IN_FLIGHT = 16


class Hub:
    def __init__(self, data: Path, trust: Path, broker: list[str]) -> None:
        serve = "from edgewright.main import main; main()"
        ports = ["--https", "127.0.0.1:0", "--page", "127.0.0.1:0", *broker]
        self._command = [sys.executable, "-c", serve, "hub", "serve", "--data", str(data), "--trust", str(trust)]
        self._command += [*ports, "--ack-interval-s", "0", "--json"]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        self.said = json.loads(self._process.stdout.readline())

    def end(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._process.communicate(timeout=60)


class Device:
    """At most 16 numbered reports are out; those without an acknowledgement go out again after each reconnect."""

    def __init__(self, name: str, port: int, context: ssl.SSLContext) -> None:
        self.name = name
        self.client = WireClient(port, context, name)
        self.client.mqtt.reconnect_delay_set(1, 1)
        self.client.mqtt.on_connect = self._on_connect
        self.client.subscribe(topics.all_down(name))
        self.waiting: dict[int, bytes] = {}
        self.next = 1
        self._again = True

    def _on_connect(self, client: Any, *_: Any) -> None:
        client.subscribe(topics.all_down(self.name), qos=1)
        self._again = True

    def work(self) -> None:
        new = []
        # As the agent does: one that is lost on the way holds those behind it up before the hub gives it up.
        while len(self.waiting) < IN_FLIGHT and self.next <= min(REPORTS, min(self.waiting, default=self.next) + 63):
            self.waiting[self.next] = wire.report_bytes(self.next, n=self.next, n_monitored=0)
            new.append(self.next)
            self.next += 1
        if self._again:
            self._again, new = False, list(self.waiting)
        for seq in new:
            self.client.mqtt.publish(topics.topic(self.name, "report"), self.waiting[seq], qos=0)
        try:
            ack = decode_ack(self.client.next("ack", timeout=0.5))
        except queue.Empty:
            self._again = True
            return
        for seq in [s for s in self.waiting if s in ack]:
            del self.waiting[seq]


@pytest.fixture(params=["amqtt", "mosquitto", "amqtt and postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, unused_port: int) -> Iterator[list[str]]:
    """The hub's options for its broker and databases."""
    if request.param.startswith("amqtt"):
        there = ["--database", request.getfixturevalue("database_url")] if "postgresql" in request.param else []
        yield ["--mqtt", f"127.0.0.1:{unused_port}", *there]
        return
    authority = open_authority(tmp_path / "data" / "ca", now=datetime.now(UTC))
    mosquitto = request.getfixturevalue("mosquitto_of")(authority, tmp_path / "mosquitto")
    yield ["--broker", f"mqtts://127.0.0.1:{mosquitto.port}"]
    mosquitto.close()


def test_a_hub_killed_in_the_middle_of_ingest_counts_every_report_once(
    tmp_path: Path, owner: Path, place: list[str], until: Callable[..., None]
) -> None:
    hub = Hub(tmp_path / "data", owner / "hub", place)
    authority = open_authority(tmp_path / "data" / "ca", now=datetime.now(UTC))
    request, key = wire.signing_request("dev-1")
    signed = authority.sign(request, "dev-1", now=datetime.now(UTC))
    context = wire.client_context(authority.folder / "ca.pem", signed.certificate, key, tmp_path / "device")
    device = Device("dev-1", hub.said["broker"]["port"], context)
    rng = random.Random(len(place))
    kills = sorted(rng.sample(range(IN_FLIGHT, REPORTS - IN_FLIGHT), 2))
    end = time.monotonic() + 90
    while device.next <= REPORTS or device.waiting:
        assert time.monotonic() < end, f"{len(device.waiting)} waiting, next is {device.next}"
        device.work()
        if kills and device.next > kills[0]:
            kills.pop(0)
            hub.end(signal.SIGKILL)
            hub.start()
    device.client.close()
    hub.end(signal.SIGTERM)
    engine = telemetry.open_telemetry(places(tmp_path / "data").telemetry)
    w, r = telemetry.windows.c, telemetry.rollups.c
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count(w.id), sa.func.sum(w.n))).one() == (
            REPORTS,
            REPORTS * (REPORTS + 1) // 2,
        )
        sums = connection.execute(
            sa.select(r.tier_s, sa.func.sum(r.n), sa.func.sum(r.windows)).group_by(r.tier_s)
        ).all()
        assert {tuple(row)[1:] for row in sums} == {(REPORTS * (REPORTS + 1) // 2, REPORTS)}
        spool = connection.execute(sa.select(telemetry.spools)).one()
        assert (spool.high_water, int(spool.mask, 16), spool.lost) == (REPORTS, 0, 0)
    engine.dispose()
