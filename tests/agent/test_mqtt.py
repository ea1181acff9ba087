"""The real transport against a real broker: TLS with a client certificate, birth, will, and reconnecting."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewright_agent import identity
from edgewright_agent.delivery import mqtt
from edgewright_agent.delivery.mqtt import MqttTransport
from edgewright_contracts import birth, topics

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs the broker mosquitto: apt-get install mosquitto"),
]


def certificate(name: str, issuer=None):
    """(key, certificate) for loopback, self-signed without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, by = (key, subject) if issuer is None else (issuer[0], issuer[1].subject)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return key, builder.sign(signer, hashes.SHA256())


def pem(thing) -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM)
    return thing.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Broker:
    def __init__(self, folder: Path) -> None:
        self.ca = certificate("test CA")
        key, own = certificate("broker", self.ca)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        for name, data in (("ca.pem", pem(self.ca[1])), ("b.key", pem(key)), ("b.crt", pem(own))):
            (folder / name).write_bytes(data)
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/b.crt\nkeyfile {folder}/b.key\n"
            "require_certificate true\nuse_identity_as_username true\nallow_anonymous false\nuser root\n"
        )
        self._command = [MOSQUITTO, "-c", str(folder / "mosquitto.conf")]
        self._process = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError("mosquitto did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def identity(self, home: Path, device: str) -> identity.Identity:
        key, own = certificate(device, self.ca)
        folder = home / "identity"
        folder.mkdir(parents=True)
        hub = {"device": device, "broker": {"host": "127.0.0.1", "port": self.port}, "repo": "https://127.0.0.1/"}
        for name, data in (
            ("device.key", pem(key)), ("device.crt", pem(own)), ("ca.pem", pem(self.ca[1])),
            ("hub.json", msgspec.json.encode(hub)), ("root.json", b"{}"),
        ):  # fmt: skip
            (folder / name).write_bytes(data)
        return identity.load(home)


class Ear:
    """A listener that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.heard: list[tuple] = []
        self._changed = threading.Condition()

    def connected(self, connection):
        self._add(("connected", connection))

    def disconnected(self, reason):
        self._add(("disconnected",))

    def received(self, kind, payload):
        self._add((kind, payload))

    def wait(self, what, timeout=20) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: what in self.heard, timeout)

    def _add(self, one):
        with self._changed:
            self.heard.append(one)
            self._changed.notify_all()


@pytest.fixture
def broker(tmp_path):
    folder = tmp_path / "broker"
    folder.mkdir()
    one = Broker(folder)
    one.start()
    yield one
    one.kill()


def listen(broker, home, device, name):
    """A second client under the same rules that hears one topic."""
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    who = broker.identity(home, device)
    got, changed = [], threading.Condition()

    def on_message(_client, _data, message):
        with changed:
            got.append(message.payload)
            changed.notify_all()

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=device)
    client.tls_set(str(who.ca), str(who.certificate), str(who.key))
    client.on_message = on_message
    client.on_connect = lambda c, *_: c.subscribe(name, 1)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    return client, lambda rule: _wait(changed, lambda: any(rule(p) for p in got))


def _until(rule, seconds=20):
    end = time.monotonic() + seconds
    while not rule():
        assert time.monotonic() < end
        time.sleep(0.01)


def _wait(changed, rule):
    with changed:
        return changed.wait_for(rule, 20)


def test_a_device_connects_says_so_hears_its_down_topics_and_says_goodbye(broker, tmp_path):
    ear, link = Ear(), MqttTransport(broker.identity(tmp_path / "d", "dev-1"), "b" * 16)
    hub, heard = listen(broker, tmp_path / "h", "edgewright-hub", topics.topic("dev-1", "status"))
    try:
        assert not link.publish("report", b"x")
        link.start(ear)
        assert ear.wait(("connected", 1))
        assert heard(lambda p: birth.decode_status(p) == birth.Status(online=True, boot_id="b" * 16, connection=1))
        hub.publish(topics.topic("dev-1", "ack"), b"yes", 1)
        assert ear.wait(("ack", b"yes"))
        assert link.publish("report", b"12345")
        heard_bytes = 4 + 5 + 4 + (2 + 2 + len(topics.topic("dev-1", "ack")) + 2 + 3) + 4  # CONNACK, SUBACK, PUBACKs
        _until(lambda: link.traffic()[1] >= heard_bytes)
        assert link.traffic()[1] == heard_bytes
        before = link.traffic()[0]
        assert link.publish("report", b"12345")
        _until(lambda: link.traffic()[1] == heard_bytes + 4)
        assert link.traffic()[0] - before == 2 + 2 + len(topics.topic("dev-1", "report")) + 2 + 5
        sent, received = link.overhead()
        assert sent > 1000  # the handshake of TLS with the device's certificate
        assert received > 1000
    finally:
        link.stop()
        said = heard(lambda p: not birth.decode_status(p).online)
        hub.disconnect()
        hub.loop_stop()
    assert said


def test_a_broker_that_dies_is_found_again_and_a_bug_in_a_callback_ends_nothing(broker, tmp_path):
    class Clumsy(Ear):
        def connected(self, connection):
            super().connected(connection)
            raise ValueError("a bug")

    ear = Clumsy()
    link = MqttTransport(broker.identity(tmp_path / "d", "dev-1"), "b" * 16, uniform=lambda: 0.0)
    try:
        link.start(ear)
        assert ear.wait(("connected", 1))
        broker.kill()
        assert ear.wait(("disconnected",))
        assert not link.online
        broker.start()
        with ear._changed:
            assert ear._changed.wait_for(lambda: sum(h[0] == "connected" for h in ear.heard) == 2, 30)
        assert [h[1] for h in ear.heard if h[0] == "connected"][1] > 1
    finally:
        link.stop()


class Mute:
    """A broker that takes connections and messages, acknowledges none, and breaks each off after a while."""

    def __init__(self, broker: Broker, folder: Path, messages: int) -> None:
        self.published: list[int] = []  # on each connection
        self.changed = threading.Condition()
        self._messages = messages
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "b.crt", folder / "b.key")
        self._socket = socket.create_server(("127.0.0.1", broker.port))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._socket.accept()
                with raw:
                    raw.settimeout(1)  # behind the last message: what else would have come, has
                    count = self._talk(raw)
                with self.changed:
                    self.published.append(count)
                    self.changed.notify_all()

    def _talk(self, raw: socket.socket) -> int:
        count = 0
        with contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as link:
            while (head := link.recv(1)) and count < self._messages:
                length, shift = 0, 0
                while (byte := link.recv(1)[0]) & 128:
                    length, shift = length | (byte & 127) << shift, shift + 7
                length |= byte << shift
                body = b""
                while len(body) < length:
                    body += link.recv(length - len(body))
                if head[0] >> 4 == 1:
                    link.sendall(b"\x20\x02\x00\x00")
                elif head[0] >> 4 == 8:
                    link.sendall(b"\x90\x03" + body[:2] + b"\x01")
                elif head[0] >> 4 == 3:
                    count += 1
        return count


def test_a_connection_sends_nothing_that_an_earlier_one_left_unacknowledged(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(mqtt, "BACKOFF_S", (0.01, 0.02))
    who = broker.identity(tmp_path / "d", "dev-1")
    broker.kill()
    link = MqttTransport(who, "b" * 16)

    class Offers(Ear):
        def connected(self, connection):
            for _ in range(17):
                link.publish("report", b"x" * 500)

    mute = Mute(broker, tmp_path / "broker", messages=1000)
    try:
        link.start(Offers())
        with mute.changed:
            assert mute.changed.wait_for(lambda: len(mute.published) >= 3, 20)
        assert set(mute.published) == {18}  # its status, and what was offered
    finally:
        link.stop()
        mute.close()


def test_a_clean_end_logs_no_error(broker, tmp_path, caplog):
    ear, link = Ear(), MqttTransport(broker.identity(tmp_path / "d", "dev-1"), "b" * 16)
    link.start(ear)
    assert ear.wait(("connected", 1))
    link.stop()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_another_profile_is_told_to_the_broker_without_a_restart_and_pings_follow_it(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(mqtt, "LOOK_S", 0.02)
    monkeypatch.setattr(mqtt, "BACKOFF_S", (0.01, 0.02))
    metered = threading.Event()
    ear = Ear()
    link = MqttTransport(broker.identity(tmp_path / "d", "dev-1"), "b" * 16, metered=metered.is_set)
    told = []
    opened = mqtt.Wire.open
    monkeypatch.setattr(mqtt.Wire, "open", lambda self, tell_s: (told.append(tell_s), opened(self, tell_s))[1])
    try:
        link.start(ear)
        assert ear.wait(("connected", 1))
        first = link.traffic()
        metered.set()
        assert ear.wait(("connected", 2))
        assert told == [120.0, 1200.0]
        assert link.condition().connections == 2
        assert link.traffic()[0] > first[0]  # what the first connection carried stays counted
    finally:
        link.stop()
