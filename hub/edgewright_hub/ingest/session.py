"""The hub's session on a broker: paho, made to share what each message would cost alone.

Paho is woken for every message, asks the socket four times for the parts of it and writes every acknowledgement by
itself; at a few hundred messages a second that is dearer than counting them. Here the socket is read at most every
`REST_S`, and then until it is empty, a TLS record at a time; acknowledgements go out together. So what comes after a
silence is read at once, and nothing waits for longer than `REST_S`.

It overrides `loop_read`, `reconnect` (public) and `_sock_recv` (paho's one place that reads the socket).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

REST_S: Final = 0.1
RECORD_BYTES: Final = 16_384  # more than that is never in a TLS record
TURN_RECORDS: Final = 500  # read before acknowledgements and keep-alives have their turn


class Session(mqtt.Client):
    _ahead = b""  # what was read and paho has not asked for yet, from `_at`
    _at = 0
    _records = 0  # that may still be read in this turn
    _over = True  # this turn: the socket is empty, or it is time to write
    _empty_s = 0.0  # when the socket was last empty; 0 while it is not

    def reconnect(self) -> MQTTErrorCode:
        self._ahead, self._at = b"", 0
        return super().reconnect()

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        time.sleep(max(0.0, self._empty_s + REST_S - time.monotonic()))
        self._records, self._over, self._empty_s = TURN_RECORDS, False, 0.0
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        while code == MQTTErrorCode.MQTT_ERR_SUCCESS and not self._over:
            code = super().loop_read(max_packets)
        return code

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._at == len(self._ahead):
            self._over = self._records == 0
            if self._over:
                raise BlockingIOError  # as if nothing more had come; the socket says otherwise when it is asked
            try:
                self._ahead, self._at = super()._sock_recv(RECORD_BYTES), 0
            except BlockingIOError:
                self._over, self._empty_s = True, time.monotonic()
                raise
            self._records -= 1
        data = self._ahead[self._at : self._at + bufsize]
        self._at += len(data)
        return data

    def ack_all(self, mids: Sequence[int]) -> None:
        """Acknowledge them in one write: `ack` wakes paho's thread, and writes a TLS record, for each."""
        if mids:
            packets = b"".join(struct.pack("!BBH", mqtt.PUBACK, 2, mid) for mid in mids)
            self._packet_queue(mqtt.PUBACK, packets, mids[0], 1)
