"""One write to InfluxDB, or to another server that speaks its API (/api/v2/write), and what its answer means.

    204                         taken
    400, 422                    `Unfit`: something in it can never be stored, perhaps not all of it
    413                         `TooLarge`: less at a time
    401, 403, 404, 405          `Misled`: token, organisation, bucket or address are wrong; a person must act
    all else, and no answer     `Away`: again later, not before the server's own Retry-After

Anything but 204 leaves open what was stored; giving the same lines again changes nothing (`points`). A redirect is not
followed, and a page that answers 200 has stored nothing. The token is read anew after each failure, so that one that is
replaced works without a restart. Import this only where it is needed: influxdb_client takes 0.4 s and 39 MB.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService

from .destination import Destination

TIMEOUT_MS: Final = 10_000
SAID_CHARS: Final = 300
_MISLED: Final = {
    401: "it knows no such token: set EDGEWRIGHT_INFLUX_TOKEN or --influx-token-file",
    403: "the token may not write to this bucket: give it that right",
    404: "it has no such organisation or bucket: make them, or name others with --influx-org and --influx-bucket",
    405: "nothing takes points at this address: see --influx",
}


class Failure(Exception):
    """The text is for the operator: what the server said."""


class Away(Failure):
    def __init__(self, said: str, wait_s: float = 0.0) -> None:
        super().__init__(said)
        self.wait_s = wait_s  # that the server asks for


class Misled(Failure):
    pass


class TooLarge(Failure):
    pass


class Unfit(Failure):
    @property
    def too_old(self) -> bool:
        """The bucket keeps nothing from so long ago: no change of the hub can make it."""
        return "retention" in str(self)


class Influx:
    """For one thread."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._client: InfluxDBClient | None = None

    def write(self, lines: Sequence[str]) -> None:
        """All of them, or a Failure; the server has 10 s to answer."""
        try:
            status, said = self._post("\n".join(lines).encode())
        except ApiException as error:
            self.close()
            raise _failure(error) from None
        except Exception as error:  # of urllib3, of sockets, of the client's own reading of an answer
            self.close()
            raise Away(f"{type(error).__name__}: {error}"[:SAID_CHARS]) from None
        if status != 204:
            self.close()
            raise Away(f"expected it to answer 204, it answered {status}: {said}"[:SAID_CHARS])

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _post(self, body: bytes) -> tuple[int, str]:
        to = self._destination
        if self._client is None:
            self._client = InfluxDBClient(to.url, to.token(), org=to.org, timeout=TIMEOUT_MS, enable_gzip=True)
        answer = WriteService(self._client.api_client).post_write_with_http_info(
            org=to.org,
            bucket=to.bucket,
            body=body,
            precision="ns",
            content_type="text/plain; charset=utf-8",
            accept="application/json",
        )
        return int(answer[1]), str(answer[0] or "")


def _failure(error: ApiException) -> Failure:
    status = int(error.status or 0)
    said = (f"it answered {status}: {_message(error)}" if status else _message(error))[:SAID_CHARS]
    if status in (400, 422):
        return Unfit(said)
    if status == 413:
        return TooLarge(said)
    if status in _MISLED:
        return Misled(f"{said}; {_MISLED[status]}")
    return Away(said, _retry_after(error))


def _message(error: ApiException) -> str:
    said = error.message if error.response is not None else error.reason
    return " ".join(str(said or "no reason").split())


def _retry_after(error: ApiException) -> float:
    """Seconds; 0 when the server says none, or nothing that can be read."""
    value = str(error.retry_after or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0


logging.getLogger("influxdb_client").setLevel(logging.ERROR)  # what fails is told by the sink, once
