"""The hub's real process in a thread: what devices reach of it, on free ports of loopback."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import sqlalchemy as sa

from edgewright_compiler.keys import init_keys
from edgewright_hub.fleet import enrolment, tokens
from edgewright_hub.fleet.ca import open_authority
from edgewright_hub.serve import Config, serve
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.store import open_engine
from edgewright_hub.web.listeners import Address


class DeviceHub:
    def __init__(self, folder: Path) -> None:
        init_keys(folder / "owner", now=datetime.now(UTC))
        self.data = folder / "data"
        self._config = Config(
            data=self.data,
            trust=folder / "owner" / "hub",
            https=Address("127.0.0.1", 0),
            page=Address("127.0.0.1", 0),
            mqtt=Address("127.0.0.1", 0),
        )
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        self.control = open_engine(self._config.data / "hub.db", schema="control")
        self.telemetry = open_engine(self._config.data / "telemetry.db", schema="telemetry")
        self.authority = open_authority(self._config.data / "ca", now=datetime.now(UTC))
        return self

    def __exit__(self, *_: object) -> None:
        self.control.dispose()
        self.telemetry.dispose()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(serve(self._config, stop=self._stop, ready=self._began))
        finally:
            self._loop.close()

    def _began(self, running) -> None:
        self.url, self.broker = running.https, running.broker
        self.port = int(running.https.rpartition(":")[2])
        self._ready.set()

    def token(self, pattern: str = ".*", *, uses: int = 1, kind: tokens.Kind = "open") -> str:
        root = (self._config.data / "repo" / "metadata" / "1.root.json").read_bytes()
        return tokens.issue(
            self.control,
            uses=uses,
            expires_s=3600,
            pattern=pattern,
            fleet="default",
            root_sha256=hashlib.sha256(root).hexdigest(),
            ca_sha256=self.authority.ca_sha256,
            now_ms=int(time.time() * 1000),
            kind=kind,
        )

    def retire(self, device: str) -> None:
        enrolment.retire(self.control, device, who="test", now_ms=int(time.time() * 1000))

    def counted(self, device: str) -> int:
        """Reports of this device that came whole."""
        w = telemetry.windows.c
        with self.telemetry.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).where(w.device == device)).scalar_one()

    def until(self, done: Callable[[], object], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end
            time.sleep(0.01)

    def spend(self, token: str) -> None:
        with self.control.begin() as connection:
            tokens.spend(connection, tokens.hash_of(tokens.parse(token).secret))
