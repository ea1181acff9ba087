"""Who this device is: what enrolment wrote to `identity/` and `trust/`, read once at the start.

identity/device.key  device.crt   the certificate whose name is the device's id, for MQTT
identity/ca.pem                   the hub's CA, pinned by the enrolment token
identity/hub.json                 {"device", "broker": {"host", "port"}, "repo"}
identity/root.json                the owner's first root metadata, pinned by the enrolment token
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from edgewright_contracts.codec import KIB, DeviceId, Text, decode
from edgewright_contracts.errors import ContractError, RequestError

HUB_BYTES = 4 * KIB
ROOT_BYTES = 512 * KIB


class Endpoint(msgspec.Struct, frozen=True):
    host: Text
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Hub(msgspec.Struct, frozen=True):
    """`repo` is the base URL of the TUF repository, with its slash at the end."""

    device: DeviceId
    broker: Endpoint
    repo: Text


class Identity(msgspec.Struct, frozen=True):
    home: Path
    hub: Hub
    root: bytes  # root.json, the trust anchor

    @property
    def device(self) -> str:
        return self.hub.device

    @property
    def key(self) -> Path:
        return self.home / "identity" / "device.key"

    @property
    def certificate(self) -> Path:
        return self.home / "identity" / "device.crt"

    @property
    def ca(self) -> Path:
        return self.home / "identity" / "ca.pem"


def load(home: Path) -> Identity:
    """Raises RequestError when `home` was never enrolled, ContractError when what it holds is damaged."""
    folder = home / "identity"
    try:
        hub = (folder / "hub.json").read_bytes()
        root = (folder / "root.json").read_bytes()
    except FileNotFoundError:
        raise RequestError(
            f"expected an enrolled device in {home}, found no identity; "
            f"`edgewright agent enroll --hub URL --token TOKEN --device ID --home {home}` makes one"
        ) from None
    if len(root) > ROOT_BYTES:
        raise ContractError("root.json", f"at most {ROOT_BYTES} bytes", f"{len(root)} bytes")
    return Identity(home, decode(Hub, hub, name="hub.json", limit=HUB_BYTES, wire="json"), root)


def is_enrolled(home: Path) -> bool:
    return (home / "identity" / "hub.json").is_file()
