"""Enrolment: a one-time token becomes a certificate. Imported by the short-lived enrol process only (cryptography).

The token pins sha256 of the hub's CA and of the owner's root metadata, so nothing that the hub says first is trusted:
the CA is fetched without TLS trust and must match, then everything else goes over TLS under that CA, and the root must
match too. The private key is made here and never leaves the device.
"""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any
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

from ..disk import Disk, atomic_write
from ..identity import Endpoint, Hub, is_enrolled

TOKEN_PREFIX = "ew1."  # noqa: S105 - the name of the format
ANSWER_BYTES = 1 << 20
CA_BYTES = 64 << 10


class Token(msgspec.Struct, frozen=True):
    secret: Text
    root_sha256: Text
    ca_sha256: Text


class Answer(msgspec.Struct, frozen=True):
    certificate: str
    root: str
    broker: Endpoint
    repo: Text


def enroll(disk: Disk, home: Path, *, hub: str, token: str, device: str) -> Hub:
    """Make the identity of `device` in `home`. The key is written first and hub.json last: whole or not enrolled.

    Raises RequestError (bad token, id or URL; already enrolled), Refused (the hub is not the one that the token names,
    or refuses the token), Unavailable (no connection).
    """
    if not DEVICE.match(device):
        raise RequestError(f"expected a device id of a-z, 0-9 and -, at most 63 characters, got {device!r}")
    if is_enrolled(home):
        raise RequestError(f"{home} is enrolled already; name another --home, or remove {home / 'identity'} first")
    secret = parse(token)
    base = hub.rstrip("/")
    if urlsplit(base).scheme != "https":
        raise RequestError(f"expected a hub URL that begins with https://, got {hub!r}")
    folder = home / "identity"
    made = not disk.list(folder)
    earlier = disk.size(folder / "device.key") is not None  # and a hub may have answered it
    disk.mkdir(folder)
    try:
        return _exchange(disk, folder, base=base, token=token.strip(), secret=secret, device=device)
    except BaseException as error:
        unasked = isinstance(error, Refused) or disk.size(folder / "device.key") is None
        _leave(disk, folder, key=earlier or not unasked)
        if made and not disk.list(folder):
            disk.remove_tree(folder)
        raise


def _exchange(disk: Disk, folder: Path, *, base: str, token: str, secret: Token, device: str) -> Hub:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)  # the hash decides, not TLS
        ca = _get(urllib3.PoolManager(cert_reqs="CERT_NONE"), base + "/enroll/ca.pem", CA_BYTES)
    _pinned("CA", ca, secret.ca_sha256, base)
    atomic_write(disk, folder / "ca.pem", ca)
    key = _key(disk, folder / "device.key")
    answer = _ask(base, str(folder / "ca.pem"), token, device, key)
    _pinned("root metadata", answer.root.encode(), secret.root_sha256, base)
    _fits(answer.certificate, key, device)
    said = Hub(device, answer.broker, answer.repo if answer.repo.endswith("/") else answer.repo + "/")
    atomic_write(disk, folder / "device.crt", answer.certificate.encode())
    atomic_write(disk, folder / "root.json", answer.root.encode())
    atomic_write(disk, folder / "hub.json", msgspec.json.encode(said))
    return said


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


def _key(disk: Disk, path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of an earlier try, else a new one: asking again with the same key costs no use of the token."""
    try:
        found = serialization.load_pem_private_key(disk.read(path), None)
        if isinstance(found, ec.EllipticCurvePrivateKey):
            return found
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise RequestError(f"{path} is damaged ({error}); remove it to enrol with a new key") from None
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    atomic_write(disk, path, key.private_bytes(*form))
    return key


def _ask(base: str, ca: str, token: str, device: str, key: ec.EllipticCurvePrivateKey) -> Answer:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    body = {
        "token": token,
        "device": device,
        "csr": csr.public_bytes(serialization.Encoding.PEM).decode(),
    }
    pool = urllib3.PoolManager(cert_reqs="CERT_REQUIRED", ca_certs=ca)
    data = _send(pool, base + "/api/v1/enroll", body)
    return decode(Answer, data, name="the hub's answer", limit=ANSWER_BYTES, wire="json")


def _pinned(what: str, data: bytes, expected: str, base: str) -> None:
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise Refused(
            f"{base} is not the hub that made the token: expected its {what} to have sha256 {expected}, got {got}"
        )


def _fits(certificate: str, key: ec.EllipticCurvePrivateKey, device: str) -> None:
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise ContractError("certificate", "a PEM certificate", str(error)) from None
    names = [a.value for a in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device] or found.public_key() != key.public_key():
        raise Refused(f"expected a certificate for {device} and this device's key, got one for {names}")


def _get(pool: urllib3.PoolManager, url: str, limit: int) -> bytes:
    return _body(pool, "GET", url, limit, None)


def _send(pool: urllib3.PoolManager, url: str, body: dict[str, Any]) -> bytes:
    return _body(pool, "POST", url, ANSWER_BYTES, json.dumps(body).encode())


def _body(pool: urllib3.PoolManager, method: str, url: str, limit: int, body: bytes | None) -> bytes:
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
