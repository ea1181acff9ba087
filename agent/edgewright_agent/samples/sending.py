"""Sending: one sample to the hub, by HTTPS PUT to samples/<device>/<id>, as the device that its certificate names."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from edgewright_contracts.errors import Refused, Unavailable

from ..tcp import Bytes, Wire

TIMEOUT_S: Final = 30.0
ANSWER_BYTES: Final = 4096
NEVER: Final = (400, 413, 422)  # another try changes nothing


class Sender:
    """`pool` makes connections with the device's certificate (tls.connections). `traffic` may be read by any thread."""

    def __init__(self, pool: Callable[..., Any], api: str, device: str) -> None:
        self._connect = pool
        self._pool: Any = None
        self._base = f"{api.rstrip('/')}/samples/{device}/"
        self._wire = Wire()
        self.traffic = (0, 0)  # bytes sent and received, with TLS and headers where the kernel tells

    def __call__(self, identifier: str, data: bytes) -> None:
        """Raises Unavailable, and Refused for what the hub will never take."""
        import urllib3

        url = self._base + identifier
        self._pool = self._pool or self._connect(retries=False, timeout=TIMEOUT_S, maxsize=1)
        try:
            headers = {"Content-Type": "application/zip"}
            answer = self._pool.request("PUT", url, body=data, headers=headers, preload_content=False)
            connection = getattr(answer.connection, "sock", None)
            said = answer.read(ANSWER_BYTES)
        except urllib3.exceptions.HTTPError as error:
            self._pool = None  # the next one reads the certificate anew, which a renewal may have replaced
            raise Unavailable(f"{url}: {error}") from error
        came = self._wire.since_last(connection) or Bytes(len(data), len(said))
        answer.release_conn()
        self.traffic = self.traffic[0] + came.sent, self.traffic[1] + came.received
        if answer.status not in (200, 201, 204):
            kind = Refused if answer.status in NEVER else Unavailable
            raise kind(f"{url}: expected it to be taken, got HTTP {answer.status} {_reason(said)}".rstrip())


def _reason(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return ""
