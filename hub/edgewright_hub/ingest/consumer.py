"""The hub on MQTT: what devices publish goes to the writer; acks, commands and desired documents go out.

Threads: paho's reads the socket and puts into a bounded queue (a full queue stops the socket, so memory stays bounded);
one writer thread commits a batch when nothing more comes, when it has `BATCH` messages or a birth, or after a second,
then acknowledges to the broker, then to the devices. A birth is acknowledged at once; all else when half of what a
device may have in flight waits for it, or after `ack_s`: what is acknowledged is only what a device need not keep any
longer.

If the database fails, the batch waits and is tried again for ever, unacknowledged. If the broker is gone, paho
reconnects for ever (1 to 30 s apart); after each connection all desired documents are published again, because a
broker may have lost what it retained.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec
import paho.mqtt.client as mqtt
import sqlalchemy as sa
from paho.mqtt.enums import CallbackAPIVersion

from edgewright_contracts import topics
from edgewright_contracts.built import built
from edgewright_contracts.codec import Hex64
from edgewright_contracts.desired import Command, encode, encode_ack

from ..fleet.ca import HUB_NAME
from .ingest import Known
from .messages import Message
from .refusals import Noted
from .session import Session
from .turns import Answer, Turns
from .writer import commit, tell

BATCH: Final = 500
BATCH_S: Final = 1.0
LULL_S: Final = 0.02
STEP_S: Final = 0.2  # more than a session rests, so that a steady flow is not taken for its end
IDLE_S: Final = 0.5  # between two looks at what else is due
QUEUE: Final = 2000
_BIRTH: Final = "/up/birth"
KEEP_ALIVE_S: Final = 30
COLLECT: Final = (20_000, 20, 20)  # objects of each generation before the collector looks at them
COMMAND_LIFE_MS: Final = 3600_000
RETRY_S: Final = 1.0
_LOG = logging.getLogger(__name__)


class _Arrived(NamedTuple):
    message: Message
    mid: int
    qos: int
    connection: int  # a packet id means nothing in another connection


class Flow(NamedTuple):
    """What was counted since the hub started."""

    batches: int = 0
    messages: int = 0
    seconds: float = 0.0  # of the transactions


class _Revision(msgspec.Struct):
    rev: int


def settle() -> None:
    """For a process that is loaded and will count: Python shall not look for garbage after every few hundred objects. A
    batch makes thousands that no cycle holds, and the search costs a quarter of what counting them does."""
    gc.freeze()
    gc.set_threshold(*COLLECT)


class Consumer:
    """`start()`, `stop()`; `publish` may be called from any thread."""

    def __init__(
        self,
        engine: sa.Engine,
        *,
        host: str,
        port: int,
        context: ssl.SSLContext,
        known: Known,
        desired: Callable[[], Iterable[tuple[str, bytes]]],
        noted: Noted,
        ack_s: float,
    ) -> None:
        self._engine = engine
        self._place = (host, port)
        self._known = known
        self._noted = noted
        self._desired = desired
        self._turns = Turns(ack_s)
        self._queue: queue.Queue[_Arrived] = queue.Queue(QUEUE)
        self._publishing = threading.Lock()
        self._revisions: dict[str, int] = {}  # of the newest desired document that went out, by device
        self._stopping = threading.Event()
        self._hurry = threading.Event()  # a device was born, and waits; or we are stopping
        self._connections = 0
        self._republish = threading.Event()
        self.ready = threading.Event()  # connected and subscribed, at least once
        self._client = Session(
            CallbackAPIVersion.VERSION2,
            client_id=HUB_NAME,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            manual_ack=True,
        )
        self._client.tls_set_context(context)
        self._client.reconnect_delay_set(1, 30)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._writer = threading.Thread(target=self._write, name="ingest", daemon=True)
        self._failing = False  # a database, since it was last tried
        self.flow = Flow()
        self.threads: dict[str, threading.Thread] = {}  # none of them ends before `stop`

    def start(self) -> None:
        self._client.connect_async(*self._place, keepalive=KEEP_ALIVE_S)
        self._client.loop_start()
        self._writer.start()
        network = self._client._thread  # paho forgets it when it dies
        assert network is not None
        self.threads = {"the thread of the broker's connection": network, "the thread of ingest": self._writer}

    def stop(self) -> None:
        """Ends after the batch in hand; what is not acknowledged comes again. At most about 2 s."""
        self._stopping.set()
        self._hurry.set()
        self._writer.join(2.0)
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def trouble(self) -> str:
        """Why nothing is counted at present, or nothing."""
        if self._failing:
            return "a database cannot be written or read by ingest, which tries again"
        return "" if self.connected else "the broker is not connected"

    @property
    def waiting(self) -> tuple[int, int]:
        """Messages that came and are not counted yet; how many may be, before the socket is not read."""
        return self._queue.qsize(), QUEUE

    @property
    def connected(self) -> bool:
        return self._client.is_connected()

    def publish(self, device: str, kind: topics.Kind, body: bytes, retain: bool) -> None:
        """Send to a device. Nothing is sent while the broker is away: desired documents follow when it is back, and
        devices ask again for the rest."""
        if not self._client.is_connected():
            return
        with self._publishing:
            if kind == "desired":
                rev = msgspec.json.decode(body, type=built(_Revision)).rev
                if rev < self._revisions.get(device, 0):
                    return  # read from hub.db before a newer one went out; the broker would keep it for ever
                self._revisions[device] = rev
            self._client.publish(topics.topic(device, kind), body, qos=topics.RULES[kind].qos, retain=retain)

    def send_desired(self) -> None:
        """All documents, again: one may have been written and not sent."""
        self._republish.set()

    # Paho's thread.

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _LOG.warning("the broker at %s:%d refused the hub: %s", *self._place, reason)
            return
        self._connections += 1
        client.subscribe(topics.ALL_UP, qos=1)

    def _on_subscribe(self, _client: mqtt.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            _LOG.error("the broker does not let %s read %s: check its ACL", HUB_NAME, topics.ALL_UP)
            return
        self._republish.set()
        self.ready.set()

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._stopping.is_set():
            _LOG.warning("the broker at %s:%d is gone (%s); trying again", *self._place, reason)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "(not UTF-8)"
        arrived = _Arrived(
            Message(topic, bytes(message.payload), int(time.time() * 1000), bool(message.retain), bool(message.dup)),
            message.mid,
            message.qos,
            self._connections,
        )
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(arrived, timeout=0.5)
                break
        if topic.endswith(_BIRTH):
            self._hurry.set()

    # The writer's thread.

    def _write(self) -> None:
        while not self._stopping.is_set():
            batch = self._gather()
            try:
                if batch:
                    self._count(batch)
                if noted := self._noted.all():
                    tell(self._engine, noted)
                    self._noted.counted(len(noted))
                if self._republish.is_set():
                    self._republish.clear()
                    self._send_desired()
                for answer in self._turns.due(time.monotonic()):
                    self._answer(answer)
                self._failing = False
            except sa.exc.SQLAlchemyError:
                self._failing = True
                self._republish.set()
                _LOG.exception("a database failed; trying again")
                self._stopping.wait(RETRY_S)
            except Exception:
                _LOG.exception("the writer failed; going on")

    def _gather(self) -> list[_Arrived]:
        """What has come, once nothing more comes (for `LULL_S` at first, then for `STEP_S`), it is enough or urgent, or
        it has waited for `BATCH_S`.

        It sleeps instead of waiting for each message: being woken costs as much as reading one. And the larger a batch
        is the less each message of it costs: 130 µs of 83, 100 µs of 167, 76 µs of 333.
        """
        try:
            batch = [self._queue.get(timeout=IDLE_S)]
        except queue.Empty:
            return []
        end, seen = time.monotonic() + BATCH_S, 0
        self._stopping.wait(LULL_S)
        while seen < self._queue.qsize() < BATCH - 1 and time.monotonic() < end and not self._hurry.is_set():
            seen = self._queue.qsize()
            self._hurry.wait(STEP_S)
        self._hurry.clear()
        with contextlib.suppress(queue.Empty):
            while len(batch) < BATCH:
                batch.append(self._queue.get_nowait())
        return batch

    def _count(self, batch: list[_Arrived]) -> None:
        while True:
            began = time.monotonic()
            try:
                answers = commit(self._engine, [a.message for a in batch], self._known)
                break
            except sa.exc.SQLAlchemyError as error:
                self._failing = True
                _LOG.error("telemetry.db refuses %d messages, trying again: %s", len(batch), error)
                if self._stopping.wait(RETRY_S):
                    return
        batches, messages, seconds = self.flow
        self.flow = Flow(batches + 1, messages + len(batch), seconds + time.monotonic() - began)
        self._client.ack_all([a.mid for a in batch if a.connection == self._connections and a.qos == 1])
        self._turns.add(answers, time.monotonic())

    def _send_desired(self) -> None:
        for device, body in self._desired():
            self.publish(device, "desired", body, retain=True)

    def _answer(self, answer: Answer) -> None:
        if not answer.renew:
            self.publish(answer.device, "ack", encode_ack(answer.ack), retain=False)
            return
        identifier: Hex64 = secrets.token_hex(8)
        _LOG.warning("the spool %s of %s was restored or cloned: asking for a new one", answer.spool_id, answer.device)
        expires_at = int(time.time() * 1000) + COMMAND_LIFE_MS
        command = Command(id=identifier, verb="new_spool", expires_at=expires_at, argument=answer.spool_id)
        self.publish(answer.device, "command", encode(command), retain=False)
