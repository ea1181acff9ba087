"""Who a device is on HTTPS: by the certificate that it proved to hold, if it showed one.

The listener asks every client for a certificate of this hub's authority and needs none: the repository, enrolment and
the API of people work without. What only a device may do takes `Device` as a parameter: 401 without a certificate, 403
for one that is not in force any more, because its device was retired or was enrolled anew with another key. A server
that ends TLS in front of the hub ends this too: devices must reach the hub itself.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..fleet import enrolment
from ..fleet.ca import HUB_NAME
from ..mqtt.broker import common_name, public_key_sha256


class Protocol(HttpToolsProtocol):
    """uvicorn tells an application nothing of TLS: this one puts the connection's into the state of each request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "tls": transport.get_extra_info("ssl_object")}


def tls_of(scope: Any) -> ssl.SSLObject | None:
    found: ssl.SSLObject | None = scope.get("state", {}).get("tls")
    return found


def device_of(request: Request) -> str:
    """The id of the device that asks. Raises HTTPException."""
    peer = tls_of(request.scope)
    name = common_name(peer)
    if name is None or name == HUB_NAME:
        raise HTTPException(401, "expected the client certificate of a device that is enrolled here")
    why_not = enrolment.outdated(request.app.state.hub.control, name, public_key_sha256(peer))
    if why_not:
        raise HTTPException(403, f"the certificate of {name} is not in force: {why_not}")
    return name


Device = Annotated[str, Depends(device_of)]
