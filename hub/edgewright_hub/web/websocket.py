"""MQTT over WebSocket (MQTT 3.1.1, section 6) at /mqtt of the listener of devices: one port is all that they need.

A connection becomes the same pair of reader and writer that the broker's own port makes, so the same door decides who
comes in: the certificate was verified by the same authority in the handshake of TLS. Backpressure holds both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from .peers import tls_of

PATH: Final = "/mqtt"
MESSAGE_BYTES: Final = 256 * 1024  # of one WebSocket message; a packet may come in several
AHEAD_BYTES: Final = 64 * 1024  # that a slow client may leave unread before the broker waits for it

Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def route(connected: Connected) -> WebSocketRoute:
    """`connected` serves one connection of MQTT until it ends."""

    async def endpoint(websocket: WebSocket) -> None:
        if "mqtt" not in websocket.scope["subprotocols"]:
            await websocket.close(1002, "expected the subprotocol mqtt")
            return
        await websocket.accept(subprotocol="mqtt")
        reader = asyncio.StreamReader(AHEAD_BYTES)
        stream = Stream(websocket, reader)
        tasks = [asyncio.create_task(stream.pull()), asyncio.create_task(stream.push())]
        try:
            await connected(reader, cast("asyncio.StreamWriter", stream))
            stream.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(tasks[1], 2.0)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return WebSocketRoute(PATH, endpoint)


class Stream:
    """What the broker uses of an asyncio.StreamWriter and its transport, over a WebSocket."""

    def __init__(self, websocket: WebSocket, reader: asyncio.StreamReader) -> None:
        self._websocket, self._reader = websocket, reader
        self._out = bytearray()
        self._changed = asyncio.Condition()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._closing = self._gone = False
        reader.set_transport(cast("asyncio.Transport", self))
        self.transport = self

    async def pull(self) -> None:
        """From the client into the reader, until the client leaves."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, KeyError):  # KeyError: text, which is no MQTT
            while not self._gone:
                await self._may_read.wait()
                self._reader.feed_data(await self._websocket.receive_bytes())
        self._left()

    async def push(self) -> None:
        """From the writer to the client, until it is closed and all is sent."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while not self._gone:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._out or self._closing or self._gone)
                    data, self._out = bytes(self._out), bytearray()
                    self._changed.notify_all()
                if data:
                    await self._websocket.send_bytes(data)
                elif self._closing:
                    break
            if self._websocket.application_state is WebSocketState.CONNECTED:
                await self._websocket.close()
        self._left()

    def _left(self) -> None:
        self._gone = True
        self._reader.feed_eof()
        self._wake()

    def _wake(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._telling = asyncio.ensure_future(tell())

    # Of a StreamWriter.

    def write(self, data: bytes) -> None:
        self._out += data
        self._wake()

    async def drain(self) -> None:
        if self._gone:
            raise ConnectionResetError
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._out) <= AHEAD_BYTES or self._gone)

    def get_extra_info(self, name: str) -> Any:
        known = {"ssl_object": tls_of(self._websocket.scope), "peername": self._websocket.scope.get("client")}
        return known.get(name)

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._closing or self._gone

    def close(self) -> None:
        self._closing = True
        self._wake()

    async def wait_closed(self) -> None:
        return

    # Of its transport.

    def abort(self) -> None:
        self._left()

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()
