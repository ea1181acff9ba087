"""Sending: one sample to the hub, by HTTPS PUT to samples/<device>/<id>, as the device that its certificate names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import urllib3

from edgewright_contracts.errors import Unavailable

TIMEOUT = urllib3.Timeout(connect=10, read=30)


def sender(pool: Callable[..., Any], api: str, device: str) -> Callable[[str, bytes], None]:
    """`pool` makes connections with the device's certificate (tls.connections). The result raises Unavailable."""
    made = pool(retries=False, timeout=TIMEOUT, maxsize=1)

    def send(identifier: str, data: bytes) -> None:
        url = f"{api.rstrip('/')}/samples/{device}/{identifier}"
        try:
            answer = made.request("PUT", url, body=data, headers={"Content-Type": "application/zip"})
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"{url}: {error}") from error
        if answer.status not in (200, 201, 204):
            raise Unavailable(f"{url}: expected it to be taken, got HTTP {answer.status}")

    return send
