"""Who this device is: what enrolment wrote to `identity/` and `trust/`, read once at the start.

identity/device.key  device.crt   the certificate whose name is the device's id, for MQTT and HTTPS
identity/ca.pem                   the hub's CA, pinned by the enrolment token
identity/hub.json                 `Hub`: who this is and how the hub is reached
identity/root.json                the owner's first root metadata, pinned by the enrolment token

A renewal replaces device.crt alone and keeps the key, so that no power cut can leave a key beside a certificate of
another one (docs/adr/0013).
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from edgewright_contracts.codec import KIB, DeviceId, Text, decode
from edgewright_contracts.errors import ContractError, RequestError

HUB_BYTES = 4 * KIB
ROOT_BYTES = 512 * KIB

# Validity of X.509 (RFC 5280, 4.1.2.5): two times in a row, UTCTime or GeneralizedTime, both in UTC.
_VALIDITY: Final = re.compile(rb"(?:\x17\x0d|\x18\x0f)(\d{12,14})Z(?:\x17\x0d|\x18\x0f)(\d{12,14})Z")
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


class Endpoint(msgspec.Struct, frozen=True):
    host: Text
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Websocket(msgspec.Struct, frozen=True):
    """Where MQTT is spoken over WebSocket and TLS."""

    host: Text
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    path: Text = "/mqtt"


class Hub(msgspec.Struct, frozen=True):
    """`repo` is the base URL of the TUF repository, with its slash at the end."""

    device: DeviceId
    broker: Endpoint
    repo: Text
    api: Text = ""  # https://HOST:PORT where certificates are renewed; "": enrolled before that existed
    websocket: Websocket | None = None
    link: Literal["auto", "websocket"] = "auto"  # auto: TCP, and WebSocket where that is blocked
    proxy: Text = ""  # http://[USER:PASSWORD@]HOST:PORT, for MQTT and HTTPS alike


class Validity(NamedTuple):
    """Unix seconds."""

    begins: float
    ends: float

    def days_left(self, now_s: float) -> float:
        return (self.ends - now_s) / 86400


class Identity(msgspec.Struct, frozen=True):
    home: Path
    hub: Hub
    root: bytes  # root.json, the trust anchor
    damage: str = ""  # why this device knows no hub although it was enrolled at one

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

    def validity(self) -> Validity | None:
        """Of the certificate that lies there now; None when it cannot be read."""
        try:
            return validity(self.certificate.read_bytes())
        except (OSError, ContractError):
            return None

    @property
    def alone(self) -> bool:
        """Not enrolled: there is no hub to report to."""
        return not self.hub.repo


def alone(home: Path) -> Identity:
    """Of a device without a hub: nothing is sent, and nobody is trusted by it."""
    return Identity(home, Hub("not-enrolled", Endpoint("none", 1), ""), b"")


def load(home: Path) -> Identity:
    """Raises RequestError when `home` was never enrolled, ContractError when a file of its identity is damaged or
    lost."""
    if not is_enrolled(home):
        raise RequestError(
            f"expected an enrolled device in {home}, found no identity; "
            f"`edgewright agent enroll --hub URL --token TOKEN --home {home}` makes one. "
            f"Without a hub: `edgewright agent sideload FILE.ewp --home {home}`"
        )
    return Identity(home, hub(home), _file(home, "root.json", ROOT_BYTES))


def hub(home: Path) -> Hub:
    """Of an enrolled device. Raises ContractError."""
    data = _file(home, "hub.json", HUB_BYTES)
    try:
        return decode(Hub, data, name="hub.json", limit=HUB_BYTES, wire="json")
    except ContractError as error:
        raise _damaged(home, "hub.json", str(error)) from None


def is_enrolled(home: Path) -> bool:
    """Whether it ever was: one file of an identity that is lost does not undo that."""
    return any((home / "identity" / name).exists() for name in ("hub.json", "root.json"))


def _file(home: Path, name: str, limit: int) -> bytes:
    try:
        data = (home / "identity" / name).read_bytes()
    except FileNotFoundError:
        raise _damaged(home, name, "none") from None
    except OSError as error:
        raise _damaged(home, name, str(error)) from error
    if len(data) > limit:
        raise _damaged(home, name, f"{len(data)} bytes, where {limit} are the most")
    return data


def _damaged(home: Path, name: str, got: str) -> ContractError:
    mended = "which `edgewright agent enroll --again` with a new token makes again (models and reports stay)"
    return ContractError(str(home / "identity" / name), f"a file of this device's identity, {mended}", got)


def validity(pem: bytes) -> Validity:
    """From when until when the first certificate in `pem` is valid, without a library of certificates, which would
    cost the agent 8 MB. Raises ContractError."""
    block = _PEM.search(pem)
    try:
        times = _VALIDITY.search(base64.b64decode(block[1])) if block else None
        found = Validity(_unix(times[1].decode()), _unix(times[2].decode())) if times else None
    except ValueError:
        found = None
    if found is None:
        raise ContractError("certificate", "a PEM certificate with its validity", repr(pem[:40]))
    return found


def _unix(digits: str) -> float:
    if len(digits) == 12:  # UTCTime: two digits of the year, 1950 to 2049
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
    return datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC).timestamp()
