"""MQTT over WebSocket at a real mosquitto that the hub configured, straight and through a proxy."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from datetime import UTC, datetime

import msgspec
import pytest

from edgewright_agent import identity
from edgewright_agent.delivery.mqtt import MqttTransport
from edgewright_agent.identity import Endpoint, Hub, Websocket
from edgewright_contracts import birth, topics
from edgewright_hub.fleet.ca import open_authority
from edgewright_hub.mqtt.mosquitto import write_configuration
from sim import wire
from sim.connect_proxy import ConnectProxy

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs the broker mosquitto: apt-get install mosquitto"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def mosquitto(tmp_path):
    """(authority, port of TCP, port of WebSocket)"""
    now, ports = datetime.now(UTC), (free_port(), free_port())
    authority = open_authority(tmp_path / "ca", now=now)
    conf = write_configuration(
        authority, tmp_path / "mosquitto", port=ports[0], bind="127.0.0.1", now=now,
        user="root" if os.geteuid() == 0 else None, websocket_port=ports[1],
    )  # fmt: skip
    process = subprocess.Popen([MOSQUITTO, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for port in ports:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            threading.Event().wait(0.01)
    yield authority, *ports
    process.terminate()
    process.wait(60)


def device(authority, home, name, hub: Hub) -> identity.Identity:
    request, key = wire.signing_request(name)
    folder = home / "identity"
    folder.mkdir(parents=True)
    signed = authority.sign(request, name, now=datetime.now(UTC))
    for file, data in (
        ("device.key", key), ("device.crt", signed.certificate.encode()), ("ca.pem", authority.ca_pem),
        ("hub.json", msgspec.json.encode(hub)), ("root.json", b"{}"),
    ):  # fmt: skip
        (folder / file).write_bytes(data)
    return identity.load(home)


class Heard:
    def __init__(self) -> None:
        self.online, self.message = threading.Event(), threading.Event()

    def connected(self, connection):
        self.online.set()

    def disconnected(self, reason):
        pass

    def received(self, kind, payload):
        self.last = (kind, payload)
        self.message.set()


def test_a_device_is_who_its_certificate_says_over_websocket_too_and_through_a_proxy(mosquitto, tmp_path):
    authority, tcp, web = mosquitto
    with ConnectProxy(ports={web}) as proxy:
        hub = Hub(
            "cam-1", Endpoint("127.0.0.1", tcp), "https://127.0.0.1/", websocket=Websocket("127.0.0.1", web),
            proxy=proxy.url(),
        )  # fmt: skip
        who, heard = device(authority, tmp_path / "d", "cam-1", hub), Heard()
        link = MqttTransport(who, "b" * 16)
        with wire.WireClient(tcp, authority.client_context(), "edgewright-hub") as operator:
            operator.subscribe(topics.ALL_UP)
            try:
                link.start(heard)
                assert heard.online.wait(60)
                assert link.condition().way == f"wss://127.0.0.1:{web}/mqtt"
                assert birth.decode_status(operator.next("status")).online
                large = bytes(range(256)) * 200
                assert link.publish("report", large)
                assert operator.next("report") == large
                operator.publish(topics.topic("cam-1", "command"), large)
                assert heard.message.wait(60)
                assert heard.last == ("command", large)
            finally:
                link.stop()
            assert not birth.decode_status(operator.next("status")).online
    assert set(proxy.asked) == {("127.0.0.1", web)}
