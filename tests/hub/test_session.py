"""The hub's session reads what came while it rested in one turn, and nothing of it twice or never."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edgewright_hub.ingest import session as module
from edgewright_hub.ingest.session import Session

Both = tuple[Session, socket.socket, list[mqtt.MQTTMessage]]


def publish(mid: int, body: bytes) -> bytes:
    rest = struct.pack("!H", 3) + b"a/b" + struct.pack("!H", mid) + body
    return b"\x32" + bytes([len(rest) & 0x7F | 0x80, len(rest) >> 7]) + rest


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    """A session, the other end of its socket and what it has heard."""
    monkeypatch.setattr(module, "REST_S", 0.0)
    session = Session(CallbackAPIVersion.VERSION2, client_id="hub", protocol=mqtt.MQTTv311, manual_ack=True)
    heard: list[mqtt.MQTTMessage] = []
    session.on_message = lambda _client, _data, message: heard.append(message)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    session._sock = ours
    with ours, theirs:
        yield session, theirs, heard
        session._sock = None


def test_all_that_has_come_is_read_in_one_turn_and_a_message_may_come_in_pieces(both: Both) -> None:
    session, broker, heard = both
    sent = [publish(mid, bytes(200 + mid)) for mid in range(1, 101)]  # more than one reading of the socket
    stream = b"".join(sent)
    for start, end in ((0, 1), (1, 3), (3, 20_100), (20_100, len(stream) - 1)):
        broker.sendall(stream[start:end])
        assert session.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert [message.mid for message in heard] == list(range(1, 100))
    broker.sendall(stream[-1:])
    session.loop_read()
    assert [len(message.payload) for message in heard] == [200 + mid for mid in range(1, 101)]
    session.loop_read()
    assert len(heard) == 100


def test_a_broker_that_never_pauses_does_not_keep_the_session_from_writing(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN_RECORDS", 2)
    monkeypatch.setattr(module, "RECORD_BYTES", 500)
    session, broker, heard = both
    broker.sendall(b"".join(publish(mid, bytes(243)) for mid in range(1, 21)))  # 253 bytes each
    session.loop_read()
    assert len(heard) < 20
    for _ in range(20):
        session.loop_read()
    assert len(heard) == 20


def test_a_broker_that_left_is_noticed_after_what_it_said_last(both: Both) -> None:
    session, broker, heard = both
    broker.sendall(publish(1, b"last"))
    broker.close()
    assert session.loop_read() == MQTTErrorCode.MQTT_ERR_CONN_LOST
    assert [message.payload for message in heard] == [b"last"]


def test_acknowledgements_go_out_in_one_write(both: Both) -> None:
    session, broker, _ = both
    session.ack_all([])
    session.ack_all([1, 2, 258])
    assert broker.recv(100) == b"\x40\x02\x00\x01\x40\x02\x00\x02\x40\x02\x01\x02"
