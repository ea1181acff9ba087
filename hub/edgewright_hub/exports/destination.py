"""Where windows are exported to, as `hub serve` was told: a bucket on a server, and where its token is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import sqlalchemy as sa

from edgewright_contracts.errors import RequestError

from ..alerts.alerts import close_alert
from ..fleet.selectors import Device
from . import progress

if TYPE_CHECKING:
    from .sink import Sink

TOKEN: Final = "EDGEWRIGHT_INFLUX_TOKEN"  # noqa: S105 (its name)
ASIDE: Final = "influx-refused.lp"  # in the data directory


@dataclass(frozen=True, slots=True)
class Destination:
    """Raises RequestError for an address that is none, or a token that cannot be read."""

    url: str
    org: str
    bucket: str
    token_file: Path | None = None  # else the environment's EDGEWRIGHT_INFLUX_TOKEN; a server may need none

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise RequestError(f"--influx: expected https://HOST:PORT, got {self.url[:100]!r}")
        if parts.username is not None:
            raise RequestError(f"--influx: expected an address without a password; put the token into {TOKEN}")
        if not self.org or not self.bucket:
            raise RequestError("--influx-org and --influx-bucket: expected a name, got none")
        try:
            self.token()
        except (OSError, ValueError) as error:
            raise RequestError(f"--influx-token-file {self.token_file} cannot be read: {error}") from None

    def token(self) -> str:
        """As it is now. Raises OSError or UnicodeDecodeError."""
        return (self.token_file.read_text() if self.token_file else os.environ.get(TOKEN, "")).strip()


def open_sink(
    destination: Destination | None,
    control_engine: sa.Engine,
    telemetry_engine: sa.Engine,
    data: Path,
    fleet: Callable[[sa.Connection], Mapping[str, Device]],
    now_ms: Callable[[], int],
) -> Sink | None:
    """A sink that is not started; None, and nothing waits to be exported, when there is no destination."""
    if destination is None:
        progress.end(telemetry_engine)
        with control_engine.begin() as connection:
            close_alert(connection, progress.ALERT, now_ms=now_ms())
        return None
    from .influx import Influx  # 0.4 s and 39 MB
    from .sink import Sink

    progress.begin(telemetry_engine)
    target = Influx(destination)
    return Sink(control_engine, telemetry_engine, target, data / ASIDE, fleet, now_ms)
