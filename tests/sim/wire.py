"""What a device puts on the wire, made by hand, and a bare MQTT client that is one."""

from __future__ import annotations

import queue
import ssl
import threading
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion

from edgewright_contracts import birth, event, report, topics
from edgewright_contracts.binning import pack
from edgewright_hub.ingest.messages import Message

from .reports import encode_report

SPOOL = "5" * 16
BOOT = "b" * 16
DIGEST = "d" * 16
EDGES = "e" * 16


def window(**changes: Any) -> report.Window:
    base: dict[str, Any] = {
        "boot_id": BOOT,
        "mono_start_ms": 0,
        "mono_end_ms": 60_000,
        "wall_start_ms": None,  # so that it is placed at arrival, whenever the test runs
        "clock": "synced",
        "span": 1,
        "next_due_s": 60,
        "digest": DIGEST,
        "variant": "onnx-fp32",
        "edge_hash": EDGES,
        "n": 10,
        "n_monitored": 10,
        "cells": pack([1, 2, 7]),
    }
    return report.Window(**{**base, **changes})


def report_bytes(seq: int, *, spool: str = SPOOL, **changes: Any) -> bytes:
    return encode_report(report.Report(spool_id=spool, seq=seq, window=window(**changes)))


def event_bytes(seq: int, *, spool: str = SPOOL, **changes: Any) -> bytes:
    base: dict[str, Any] = {"boot_id": BOOT, "mono_ms": 5, "wall_ms": None, "before": "fetch", "after": "stage"}
    return event.encode_event(event.Event(spool_id=spool, seq=seq, **{**base, **changes}))


def birth_bytes(device: str, *, spool: str = SPOOL, next_seq: int = 1, boot: str = BOOT, connection: int = 1) -> bytes:
    return birth.encode(
        birth.Birth(
            device=device,
            boot_id=boot,
            connection=connection,
            agent="0.1.0",
            hardware=birth.Hardware(arch="x86_64"),
            runtimes={},
            clock="synced",
            uptime_ms=1,
            window_s=60,
            spool=birth.Spool(id=spool, next_seq=next_seq),
        )
    )


def status_bytes(*, online: bool, boot: str = BOOT, connection: int = 1) -> bytes:
    return birth.encode(birth.Status(online=online, boot_id=boot, connection=connection))


def message(device: str, kind: topics.Kind, body: bytes, arrived_ms: int) -> Message:
    """As the hub receives it."""
    return Message(topics.topic(device, kind), body, arrived_ms)


def signing_request(name: str, key: ec.EllipticCurvePrivateKey | None = None) -> tuple[str, bytes]:
    """(request, key), both PEM."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return request.public_bytes(serialization.Encoding.PEM).decode(), secret


def client_context(ca: Path, certificate: str, key: bytes, folder: Path) -> ssl.SSLContext:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "device.crt").write_text(certificate)
    (folder / "device.key").write_bytes(key)
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(folder / "device.crt", folder / "device.key")
    return context


class WireClient:
    """A connected MQTT client. `connected` is None until the broker answered; `received` has (topic, body) pairs."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext | None,  # None: without TLS
        client_id: str,
        *,
        username: str | None = None,
        password: str | None = None,
        clean: bool = True,
        will: tuple[str, bytes] | None = None,
        keep_alive_s: int = 60,
    ) -> None:
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.granted: queue.Queue[list[int]] = queue.Queue()
        self.gone = threading.Event()
        self.connected: bool | None = None
        self._answered = threading.Event()
        self.mqtt = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean)
        if context is not None:
            self.mqtt.tls_set_context(context)
        if username is not None:
            self.mqtt.username_pw_set(username, password)
        if will:
            self.mqtt.will_set(will[0], will[1], qos=1, retain=True)
        self.mqtt.on_connect = self._on_connect
        self.mqtt.on_disconnect = lambda *_: (self.gone.set(), self._answered.set())
        self.mqtt.on_message = lambda _c, _u, m: self.received.put((m.topic, m.payload))
        self.mqtt.on_subscribe = lambda _c, _u, _m, reasons, _p: self.granted.put([r.value for r in reasons])
        try:
            self.mqtt.connect("127.0.0.1", port, keepalive=keep_alive_s)
        except (OSError, ssl.SSLError):
            self.connected = False
            return
        self.mqtt.loop_start()
        assert self._answered.wait(60)
        if not self.connected:
            self.connected = False

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.connected = not reason.is_failure
        self._answered.set()

    def subscribe(self, topic: str) -> list[int]:
        self.mqtt.subscribe(topic, qos=1)
        return self.granted.get(timeout=60)

    def publish(self, topic: str, body: bytes, *, retain: bool = False) -> None:
        self.mqtt.publish(topic, body, qos=1, retain=retain).wait_for_publish(10)

    def up(self, device: str, kind: topics.Kind, body: bytes) -> None:
        self.publish(topics.topic(device, kind), body, retain=topics.RULES[kind].retain)

    def next(self, kind: str, timeout: float = 10) -> bytes:
        """The body of the next message whose topic ends in `kind`."""
        while True:
            topic, body = self.received.get(timeout=timeout)
            if topic.endswith("/" + kind):
                return body

    def close(self) -> None:
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
