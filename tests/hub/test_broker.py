"""Who may connect and who may say and hear what: the same on the embedded broker and on mosquitto."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import ssl
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts import topics
from edgewright_hub.fleet import enrolment, tokens
from edgewright_hub.fleet.ca import HUB_NAME, Authority, open_authority
from edgewright_hub.mqtt.packets import read_connect
from edgewright_hub.storage import control
from sim import wire
from sim.wire import WireClient

Contexts = Callable[[str], ssl.SSLContext]

pytestmark = pytest.mark.process


@pytest.fixture
def hub(broker: Any, authority: Authority) -> Any:
    with WireClient(broker.port, authority.client_context(), HUB_NAME) as client:
        client.subscribe(topics.ALL_UP)
        yield client


def fence(sender: WireClient, device: str, receiver: WireClient) -> None:
    """What `sender` published before has been delivered to `receiver`, or never will be; nothing of it was forged."""
    sender.publish(f"ew/1/{device}/up/event", b"fence")
    body = b""
    while body != b"fence":
        _, body = receiver.received.get(timeout=60)
        assert body != b"forged"


def test_the_hub_hears_every_device_and_each_device_hears_the_hub(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any
) -> None:
    name = new_device()
    with WireClient(broker.port, context_of(name), name, username=name) as device:
        device.subscribe(topics.all_down(name))
        device.up(name, "report", b"counts")
        assert hub.next("report") == b"counts"
        hub.publish(topics.topic(name, "ack"), b"ack")
        assert device.next("ack") == b"ack"


def test_a_device_cannot_publish_as_another(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any
) -> None:
    a, b = new_device(), new_device()
    with WireClient(broker.port, context_of(a), a) as device, WireClient(broker.port, context_of(b), b) as other:
        other.subscribe(topics.all_down(b))
        for topic in (f"ew/1/{b}/up/report", f"ew/1/{b}/down/desired", f"ew/1/{a}/down/desired", "ew/1/x", "other"):
            device.publish(topic, b"forged", retain=True)
        fence(device, a, hub)  # nothing forged came before it
        hub.publish(topics.topic(b, "ack"), b"last")
        assert other.received.get(timeout=60) == (topics.topic(b, "ack"), b"last")
    with WireClient(broker.port, context_of(b), b) as other:  # nor was anything kept
        other.subscribe(topics.all_down(b))
        hub.publish(topics.topic(b, "ack"), b"last")
        assert other.received.get(timeout=60)[1] == b"last"


@pytest.mark.parametrize(
    "pattern", ["ew/1/{b}/down/+", "ew/1/{b}/up/+", "#", "ew/1/+/up/+", "ew/1/+/down/+", "+/+/+/+/+"]
)
def test_a_device_cannot_read_what_is_for_another(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any, pattern: str
) -> None:
    a, b = new_device(), new_device()
    hub.publish(topics.topic(b, "desired"), b"kept secret", retain=True)
    with WireClient(broker.port, context_of(a), a) as device:
        device.subscribe(pattern.format(b=b))
        device.subscribe(topics.all_down(a))
        hub.publish(topics.topic(b, "ack"), b"secret")
        hub.publish(topics.topic(a, "ack"), b"mine")
        heard = []
        while not heard or heard[-1][1] != b"mine":
            heard.append(device.received.get(timeout=60))
        assert {topic.split("/")[2] for topic, _ in heard} == {a}


def test_a_device_that_connects_again_is_not_sent_what_others_subscribed_to(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any
) -> None:
    a, b = new_device(), new_device()
    with WireClient(broker.port, context_of(b), b) as other:
        other.subscribe(topics.all_down(b))
        hub.publish(topics.topic(b, "desired"), b"secret", retain=True)
        for _ in range(2):
            with WireClient(broker.port, context_of(a), a, clean=False) as device:
                device.subscribe(topics.all_down(a))
                hub.publish(topics.topic(a, "ack"), b"mine")
                assert device.received.get(timeout=60) == (topics.topic(a, "ack"), b"mine")


def test_nobody_connects_without_a_certificate_of_this_hub(
    broker: Any, authority: Authority, tmp_path: Any, new_device: Any
) -> None:
    name = new_device()
    anonymous = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
    assert WireClient(broker.port, anonymous, name).connected is False
    assert WireClient(broker.port, anonymous, name, username=HUB_NAME).connected is False
    foreign = open_authority(tmp_path / "ca", now=datetime.now(UTC))
    request, key = wire.signing_request(name)
    signed = foreign.sign(request, name, now=datetime.now(UTC))
    context = wire.client_context(authority.folder / "ca.pem", signed.certificate, key, tmp_path / "device")
    assert WireClient(broker.port, context, name).connected is False


def test_the_hubs_certificate_serves_nobody_else(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any
) -> None:
    """A client that calls itself the hub, or another device, gets nothing of theirs and does not disturb them."""
    a, b = new_device(), new_device()
    with WireClient(broker.port, context_of(b), b) as victim:
        victim.subscribe(topics.all_down(b))
        for claimed in (HUB_NAME, b):
            for clean in (True, False):
                with WireClient(broker.port, context_of(a), claimed, clean=clean) as thief:
                    if thief.connected:  # mosquitto lets it in as what its certificate says
                        thief.subscribe(topics.all_down(b))
                        thief.subscribe(topics.ALL_UP)
                        thief.publish(topics.topic(b, "report"), b"forged")
                        hub.publish(topics.topic(b, "ack"), b"secret")
                        assert victim.next("ack") == b"secret"
                        with pytest.raises(queue.Empty):
                            thief.received.get(timeout=0.2)
        hub.publish(topics.topic(b, "ack"), b"still here")
        assert victim.next("ack") == b"still here"
        victim.up(b, "report", b"hub still here")
        assert hub.next("report") == b"hub still here"
        assert not victim.gone.is_set()
        assert not hub.gone.is_set()


def test_a_will_is_published_when_a_device_is_cut_off(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any
) -> None:
    name = new_device()
    device = WireClient(broker.port, context_of(name), name, will=(topics.topic(name, "status"), b"gone"))
    assert device.connected
    sock = device.mqtt.socket()
    assert sock is not None
    sock.shutdown(socket.SHUT_RDWR)
    device.mqtt.loop_stop()
    while hub.next("status") != b"gone":
        pass
    device.close()


def test_a_will_for_another_device_is_never_published(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any
) -> None:
    a, b = new_device(), new_device()
    with WireClient(broker.port, context_of(b), b) as victim:
        victim.subscribe(topics.all_down(b))
        for topic in (topics.topic(b, "desired"), topics.topic(b, "status")):
            device = WireClient(broker.port, context_of(a), a, will=(topic, b"forged"))
            if device.connected:
                sock = device.mqtt.socket()
                assert sock is not None
                sock.shutdown(socket.SHUT_RDWR)
            device.mqtt.loop_stop()
            device.close()
        with WireClient(broker.port, context_of(a), a) as device:
            fence(device, a, hub)
        hub.publish(topics.topic(b, "ack"), b"last")
        assert victim.received.get(timeout=60)[1] == b"last"


def test_a_second_connection_of_a_device_ends_the_first(broker: Any, context_of: Contexts, new_device: Any) -> None:
    name = new_device()
    first = WireClient(broker.port, context_of(name), name)
    first.mqtt.reconnect_delay_set(60, 60)
    with WireClient(broker.port, context_of(name), name) as second:
        assert first.gone.wait(60)
        assert second.mqtt.is_connected()
    first.close()


def test_a_packet_that_is_too_large_ends_the_connection(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any
) -> None:
    name = new_device()
    with WireClient(broker.port, context_of(name), name) as device:
        device.mqtt.reconnect_delay_set(60, 60)
        device.mqtt.publish(topics.topic(name, "report"), b"x" * 200_000, qos=0)
        if broker.__class__.__name__ == "Amqtt":
            assert device.gone.wait(60)
        else:  # mosquitto drops the message and keeps the connection
            fence(device, name, hub)


def test_silence_beyond_the_keep_alive_is_noticed(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any
) -> None:
    if type(broker).__name__ == "Mosquitto":
        pytest.skip("mosquitto looks at most every 5 seconds, and is not ours to test")
    name = new_device()
    sock = context_of(name).wrap_socket(
        socket.create_connection(("127.0.0.1", broker.port)), server_hostname="localhost"
    )
    will = _field(topics.topic(name, "status").encode()) + _field(b"silent")
    body = _field(b"MQTT") + b"\x04\x2e" + struct.pack("!H", 1) + _field(name.encode()) + will
    sock.sendall(b"\x10" + bytes([len(body)]) + body)
    with sock:
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        while hub.next("status", timeout=5) != b"silent":  # the broker kept those of other tests
            pass


def _field(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_truncated_first_packet_is_no_connection(cut: int) -> None:
    body = _field(b"MQTT") + b"\x04\x86\x00\x3c" + _field(b"dev") + _field(b"a/b") + _field(b"w") + _field(b"dev")
    whole = b"\x10" + bytes([len(body)]) + body
    connect = read_connect(whole)
    assert connect is not None
    assert (connect.client, connect.username, connect.will_topic, connect.keep_alive_s) == ("dev", "dev", "a/b", 60)
    assert connect.cleaned[9] & 2
    if cut < len(whole):
        assert read_connect(whole[:cut]) is None


@pytest.mark.parametrize("seed", range(8))
def test_garbage_before_or_after_the_first_packet_disturbs_nobody(
    broker: Any, hub: WireClient, context_of: Contexts, new_device: Any, seed: int
) -> None:
    if type(broker).__name__ == "Mosquitto":
        pytest.skip("mosquitto's parser is not ours to test")
    rng = random.Random(seed)
    a, b = new_device(), new_device()
    with WireClient(broker.port, context_of(b), b) as other:
        for attempt in range(6):
            raw = socket.create_connection(("127.0.0.1", broker.port), timeout=60)
            with context_of(a).wrap_socket(raw, server_hostname="localhost") as sock:
                if attempt % 2:
                    body = _field(b"MQTT") + b"\x04\x02" + struct.pack("!H", 30) + _field(a.encode())
                    sock.sendall(b"\x10" + bytes([len(body)]) + body)
                    assert sock.recv(4) == b"\x20\x02\x00\x00"
                kind = rng.choice([0x30, 0x32, 0x62, 0x82, 0xA2, 0x10, 0x00, 0xF0, 0xC0])
                rest = rng.randbytes(rng.randint(0, 120))
                with contextlib.suppress(OSError):
                    sock.sendall(bytes([kind, len(rest)]) + rest + rng.randbytes(rng.randint(0, 400)))
        fence(other, b, hub)
        assert not other.gone.is_set()
        assert not hub.gone.is_set()


def test_a_key_that_a_later_enrolment_replaced_and_a_retired_device_are_refused(
    authority: Authority, control_engine: sa.Engine, amqtt_of: Any, tmp_path: Path
) -> None:
    now = int(datetime.now(UTC).timestamp() * 1000)

    def enrolled(folder: str) -> ssl.SSLContext:
        text = tokens.issue(
            control_engine, uses=1, expires_s=60, pattern="dev-1", fleet="lab", root_sha256="", ca_sha256="", now_ms=now
        )
        csr, key = wire.signing_request("dev-1")
        request = enrolment.Request(token=text, device="dev-1", csr=csr)
        certificate = enrolment.enrol(control_engine, authority, request, now_ms=now)
        return wire.client_context(authority.folder / "ca.pem", certificate, key, tmp_path / folder)

    def admitted(context: ssl.SSLContext, name: str = "dev-1") -> bool:
        with WireClient(broker.port, context, name) as client:
            return client.connected is True

    broker = amqtt_of(authority, partial(enrolment.outdated, control_engine))
    try:
        first = enrolled("first")
        assert admitted(first)
        second = enrolled("second")
        assert not admitted(first)
        assert admitted(second)
        with control_engine.begin() as connection:
            connection.execute(control.devices.update().values(state="retired"))
        assert not admitted(second)
        assert admitted(authority.client_context(), HUB_NAME)
    finally:
        broker.close()


def test_a_device_that_a_restored_hub_does_not_know_is_let_in(control_engine: sa.Engine) -> None:
    assert enrolment.outdated(control_engine, "dev-9", "f" * 64) is None
