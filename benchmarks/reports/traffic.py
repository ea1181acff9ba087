"""Both ends of the broker that are not ours: devices that send, and a callback that does nothing.

Each runs in a process of its own (`processes.Child`): it says "ready", and goes on at the next line on its stdin.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgewright_contracts import topics
from edgewright_hub.fleet.ca import HUB_NAME, open_authority
from sim import wire

from .fleet import MINUTE_MS, Bodies, name

WARM: Final = 5  # the first fifth is not measured: statements are compiled, pages made
PUMP: Final = "pump"


def client(folder: Path, port: int, who: str, *, manual: bool) -> mqtt.Client:
    one = mqtt.Client(
        CallbackAPIVersion.VERSION2, client_id=who, clean_session=not manual, protocol=mqtt.MQTTv311, manual_ack=manual
    )
    one.tls_set_context(tls(folder, who))
    one.max_inflight_messages_set(1000)
    one.connect("127.0.0.1", port, 60)
    return one


def tls(folder: Path, who: str) -> ssl.SSLContext:
    authority = open_authority(folder / "ca", now=datetime.now(UTC))
    if who == HUB_NAME:
        return authority.client_context()
    request, key = wire.signing_request(who)
    signed = authority.sign(request, who, now=datetime.now(UTC))
    return wire.client_context(authority.folder / "ca.pem", signed.certificate, key, folder / "keys" / who)


def pump(folder: Path, ports: list[int], reports: int, devices: int, rate: float, packed: bool) -> None:
    """Send `reports`, one device after another, evenly over the connections; at `rate` a second if it is not 0."""
    bodies = Bodies(packed=packed)
    own = len(ports) > 1  # each connection is a device: the embedded broker lets nobody speak for another
    clients = [client(folder, port, name(i) if own else PUMP, manual=False) for i, port in enumerate(ports)]
    for one in clients:
        one.loop_start()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    for i in range(reports):
        device, seq = i % devices, i // devices + 1
        body = bodies.of(device, seq, int(time.time() * 1000) - MINUTE_MS)
        one = clients[device % len(clients)]
        info = one.publish(topics.topic(name(device), "report"), body, qos=1)
        if rate:
            time.sleep(max(0.0, start + (i + 1) / rate - time.monotonic()))
        elif i % 500 == 499:
            info.wait_for_publish(60)
    info.wait_for_publish(60)
    print("sent", flush=True)
    sys.stdin.readline()


def noop(folder: Path, port: int, reports: int) -> None:
    """The least that a consumer can do and lose nothing."""
    one = client(folder, port, HUB_NAME, manual=True)
    seen = 0
    begun = 0.0
    done = threading.Event()

    def on_message(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        nonlocal seen, begun
        seen += 1
        one.ack(message.mid, message.qos)
        if seen == reports // WARM:
            begun = time.process_time()
        if seen == reports:
            print(json.dumps({"us": (time.process_time() - begun) / (reports - reports // WARM) * 1e6}), flush=True)
            done.set()

    one.on_message = on_message
    one.subscribe(topics.ALL_UP, qos=1)
    one.on_subscribe = lambda *_: print("ready", flush=True)
    one.loop_start()
    done.wait()
    sys.stdin.readline()
    one.disconnect()
