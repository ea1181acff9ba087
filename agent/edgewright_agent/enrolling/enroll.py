"""Enrolment: a one-time token becomes a certificate. Imported by the short-lived enrol process only (cryptography).

The token pins sha256 of the hub's CA and of the owner's root metadata, so nothing that the hub says first is trusted:
the CA is fetched without TLS trust and must match, then everything else goes over TLS under that CA, and the root must
match too. The private key is made here and never leaves the device.

Enrolling again (`again`) is the way back for a certificate that ended, and for a hub that moved: the same id, the same
key if it is still there, and nothing else of the device is touched: its models, what it has to report and what it has
seen of the owner's metadata stay. Until the hub has answered, so does the earlier identity.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import warnings
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewright_contracts.codec import Text, decode
from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable
from edgewright_contracts.topics import DEVICE

from .. import identity, tls
from ..clock import Clock, SystemClock
from ..delivery import tunnel
from ..disk import Disk, atomic_write
from ..identity import Endpoint, Hub, Websocket, is_enrolled
from .names import fitting

TOKEN_PREFIX = "ew1."  # noqa: S105 - the name of the format
ANSWER_BYTES = 1 << 20
CA_BYTES = 64 << 10


class Waiting(Unavailable):
    """The hub knows this device now, and lets it in once an operator says so: ask again, with the same token."""


class Token(msgspec.Struct, frozen=True):
    secret: Text
    root_sha256: Text
    ca_sha256: Text
    pattern: Text = ""  # of the ids that it is for; "": it does not say


class Answer(msgspec.Struct, frozen=True):
    certificate: str
    root: str
    broker: Endpoint
    repo: Text
    websocket: Websocket | None = None


class Way(NamedTuple):
    """How this device reaches its hub: through a proxy or not, by WebSocket only or as it works."""

    proxy: str = ""
    websocket: bool = False


DIRECT: Final = Way()


def enroll(
    disk: Disk,
    home: Path,
    *,
    hub: str,
    token: str,
    device: str | None = None,
    way: Way = DIRECT,
    again: bool = False,
    clock: Clock | None = None,
) -> Hub:
    """Make the identity of `device` in `home`; None takes an id that fits the token, always the same on one machine.
    The key is written first and hub.json last: whole or not enrolled.

    Raises RequestError (bad token, id or URL; already enrolled), Refused (the hub is not the one that the token names,
    or refuses the token), Unavailable (no connection), Waiting.
    """
    secret = parse(token)
    base = hub.rstrip("/")
    try:
        secure = urlsplit(base).scheme == "https" and urlsplit(base).port != 0
    except ValueError:  # half of an IPv6 address, a port beyond 65535
        secure = False
    if not secure:
        raise RequestError(f"expected a hub URL that begins with https://, got {hub!r}")
    if way.proxy:
        tunnel.parse(way.proxy)
    device = _who(home, device, secret.pattern, again=again)
    folder = home / "identity"
    made = not disk.list(folder)
    earlier = disk.size(folder / "device.key") is not None  # and a hub may have answered it
    disk.mkdir(folder)
    try:
        return _Exchange(disk, folder, base, way, clock or SystemClock()).run(token.strip(), secret, device)
    except BaseException as error:
        if again:
            raise  # what lies there is an identity; it stays
        unasked = isinstance(error, Refused) or disk.size(folder / "device.key") is None
        _leave(disk, folder, key=earlier or not unasked)
        if made and not disk.list(folder):
            disk.remove_tree(folder)
        raise


class _Exchange:
    """What is said between the device and `base`, and what is written of it."""

    def __init__(self, disk: Disk, folder: Path, base: str, way: Way, clock: Clock) -> None:
        self._disk, self._folder, self._base, self._way, self._clock = disk, folder, base, way, clock

    def run(self, token: str, secret: Token, device: str) -> Hub:
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)  # the hash decides, not TLS
            ca = request(self._pool(unverified), "GET", self._base + "/enroll/ca.pem", CA_BYTES)
        _pinned("CA", ca, secret.ca_sha256, self._base)
        key = _key(self._disk, self._folder / "device.key")
        answer = self._ask(ca, token, device, key)
        root = answer.root.encode()
        _pinned("root metadata", root, secret.root_sha256, self._base)
        if (self._disk.size(self._folder / "root.json") or 0) and self._disk.read(self._folder / "root.json") != root:
            raise Refused(
                f"{self._base} serves packages of another owner than this device was enrolled for; "
                "enrol with another --home, where no models of the first are. If it is the same owner, this device's "
                f"{self._folder / 'root.json'} is damaged: remove it and repeat"
            )
        fits(answer.certificate, key, device)
        if self._way.websocket and answer.websocket is None:
            raise Refused(f"{self._base} offers no WebSocket; enrol without --websocket")
        said = Hub(
            device,
            answer.broker,
            answer.repo if answer.repo.endswith("/") else answer.repo + "/",
            api=self._base,
            websocket=answer.websocket,
            link="websocket" if self._way.websocket else "auto",
            proxy=self._way.proxy,
        )
        for name, data in (
            ("ca.pem", ca),
            ("device.crt", answer.certificate.encode()),
            ("root.json", root),
            ("hub.json", msgspec.json.encode(said)),
        ):
            atomic_write(self._disk, self._folder / name, data)
        return said

    def _ask(self, ca: bytes, token: str, device: str, key: ec.EllipticCurvePrivateKey) -> Answer:
        context = tls.Context(ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = tls.Socket
        context.clock, context.floor_s = self._clock, 0.0
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise Refused(f"{self._base}: its CA, which the token names, cannot be read: {error}") from error
        body = {"token": token, "device": device, "csr": signing_request(device, key)}
        url = self._base + "/api/v1/enroll"
        data = request(self._pool(context), "POST", url, ANSWER_BYTES, json.dumps(body).encode())
        if b'"waiting"' in data[:16]:
            raise Waiting(
                f"{device} waits for a yes of the hub's operator. Run this again later, or add --wait. "
                f"Its key, as the operator sees it, begins with {_seen(key)}"
            )
        return decode(Answer, data, name="the hub's answer", limit=ANSWER_BYTES, wire="json")

    def _pool(self, context: ssl.SSLContext) -> urllib3.PoolManager:
        return tls.through(self._way.proxy, ssl_context=context)


def _seen(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_key().public_bytes(serialization.Encoding.DER, form)).hexdigest()[:16]


def _who(home: Path, named: str | None, pattern: str, *, again: bool) -> str:
    """The id to ask for. Raises RequestError."""
    if is_enrolled(home):
        known = _name(home)
        if not again:
            raise RequestError(
                f"{home} is enrolled already{f' as {known}' if known else ''}. Add --again to renew it with this token "
                f"(models and reports stay), name another --home, or remove {home / 'identity'} first to give it a "
                "new key"
            )
        if known is None and named is None:
            raise RequestError(f"{home} was enrolled and lost its name; add --device with the id that the hub knows")
        if known is not None and named not in (None, known):
            raise RequestError(f"{home} is {known}, and reports as it; another id needs another --home")
        named = known or named
    device = named or fitting(pattern)
    if not DEVICE.match(device):
        raise RequestError(f"expected a device id of a-z, 0-9 and -, at most 63 characters, got {device!r}")
    return device


def _name(home: Path) -> str | None:
    """Of an enrolled device; its certificate says it where hub.json is damaged or lost."""
    try:
        return identity.hub(home).device
    except ContractError:
        pass
    try:
        names = _names(x509.load_pem_x509_certificate((home / "identity" / "device.crt").read_bytes()))
    except (OSError, ValueError):
        return None
    return names[0] if names else None


def _leave(disk: Disk, folder: Path, *, key: bool) -> None:
    """What a failed try leaves: at most its key, because the hub may have counted a use of the token for it, and
    answers the same key again."""
    for name in disk.list(folder):
        if not (key and name == "device.key"):
            disk.unlink(folder / name)


def parse(token: str) -> Token:
    """The parts of an enrolment token. Raises RequestError."""
    body = token.strip().removeprefix(TOKEN_PREFIX)
    if body == token.strip():
        raise RequestError(f"expected an enrolment token that begins with {TOKEN_PREFIX!r}, as `hub token` prints it")
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        wire = "json" if raw[:1] == b"{" else "msgpack"
        return decode(Token, raw, name="token", limit=4096, wire=wire)
    except (ValueError, ContractError) as error:
        raise RequestError(f"the enrolment token is damaged ({error}); copy it whole, or ask for a new one") from None


def read_key(disk: Disk, path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises FileNotFoundError, RequestError."""
    try:
        found = serialization.load_pem_private_key(disk.read(path), None)
    except ValueError as error:
        raise RequestError(f"{path} is damaged ({error}); remove it to enrol with a new key") from None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise RequestError(f"{path}: expected a key on an elliptic curve; remove it to enrol with a new key")
    return found


def _key(disk: Disk, path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of an earlier try, else a new one: asking again with the same key costs no use of the token."""
    try:
        return read_key(disk, path)
    except FileNotFoundError:
        pass
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    atomic_write(disk, path, key.private_bytes(*form))
    return key


def signing_request(device: str, key: ec.EllipticCurvePrivateKey) -> str:
    """PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def _pinned(what: str, data: bytes, expected: str, base: str) -> None:
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise Refused(
            f"{base} is not the hub that made the token: expected its {what} to have sha256 {expected}, got {got}"
        )


def fits(certificate: str, key: ec.EllipticCurvePrivateKey, device: str) -> None:
    """Raise unless the certificate is for this device and key: ContractError, Refused."""
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise ContractError("certificate", "a PEM certificate", str(error)) from None
    names = _names(found)
    if names != [device] or found.public_key() != key.public_key():
        raise Refused(f"expected a certificate for {device} and this device's key, got one for {names}")


def _names(certificate: x509.Certificate) -> list[str]:
    return [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def request(pool: urllib3.PoolManager, method: str, url: str, limit: int, body: bytes | None = None) -> bytes:
    """The body of the answer. Raises Unavailable, Refused with the hub's reason, ContractError for too much."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    try:
        response = pool.request(
            method, url, body=body, headers=headers, preload_content=False, retries=False, timeout=30
        )
        data: bytes = response.read(limit + 1)
        response.release_conn()
    except urllib3.exceptions.HTTPError as error:
        raise Unavailable(f"no connection to {url}: {error}") from error
    if response.status >= 500:
        raise Unavailable(f"{url}: HTTP {response.status}; try again later")
    if response.status >= 400:
        raise Refused(f"the hub refused: {_reason(data)} (HTTP {response.status})")
    if len(data) > limit:
        raise ContractError(url, f"at most {limit} bytes", "more")
    return data


def _reason(data: bytes) -> str:
    try:
        said = json.loads(data)
    except ValueError:
        return "no reason given"
    return str(said.get("error", said))[:300] if isinstance(said, dict) else "no reason given"
