"""The hub's certificate authority: one EC P-256 key that signs the server, the hub's own client, and the devices.

Everything lies in one folder; keys are 0600 and made there, never copied. A device keeps its own key: it sends a
signing request whose common name must be its device id, and gets back a client certificate and nothing else. Whoever
steals this folder can speak for devices and read what they report; they still cannot make a device run a model, since
models are signed by keys that the hub does not have.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewright_contracts import durable
from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_contracts.topics import DEVICE

HUB_NAME: Final = "edgewright-hub"  # the one client that may read and write every topic; no device can have it
CSR_BYTES: Final = 8 * 1024
CA_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=397)
DEVICE_LIFE: Final = timedelta(days=825)
_HOST: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_EARLY: Final = timedelta(minutes=5)  # for devices whose clock is a little behind


@dataclass(frozen=True, slots=True)
class Signed:
    certificate: str  # PEM
    serial: str  # hexadecimal
    key_sha256: str  # of the public key


@dataclass(frozen=True, slots=True)
class Authority:
    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def ca_pem(self) -> bytes:
        return (self.folder / "ca.pem").read_bytes()

    @property
    def ca_sha256(self) -> str:
        """Of the PEM file, byte for byte as `GET /enroll/ca.pem` serves it: what an enrolment token pins."""
        return hashlib.sha256(self.ca_pem).hexdigest()

    def server_context(self) -> ssl.SSLContext:
        """TLS of the hub's HTTPS listener: it proves who the hub is and asks nothing of the client."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        return context

    def broker_context(self) -> ssl.SSLContext:
        """TLS of the embedded broker: nobody gets further without a certificate that this authority signed."""
        context = self.server_context()
        context.load_verify_locations(self.folder / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self) -> ssl.SSLContext:
        """TLS of the hub's own MQTT client."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.load_cert_chain(self.folder / "hub.pem", self.folder / "hub.key")
        return context

    def sign(self, csr_pem: str, device: str, *, now: datetime) -> Signed:
        """A client certificate for `device`. Raises ContractError or Refused."""
        if not DEVICE.match(device) or device == HUB_NAME:
            raise ContractError("device", "an id of a-z, 0-9 and -, at most 63 characters, not the hub's", repr(device))
        if len(csr_pem) > CSR_BYTES:
            raise ContractError("csr", f"at most {CSR_BYTES} bytes", str(len(csr_pem)))
        try:
            request = x509.load_pem_x509_csr(csr_pem.encode())
            signed = request.is_signature_valid
        except Exception as error:  # cryptography raises many kinds over hostile DER
            raise ContractError("csr", "a certificate signing request in PEM", str(error)[:120]) from None
        if not signed:
            raise Refused("csr: expected a request signed by its own key, got one that does not verify")
        names = [str(a.value) for a in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if names != [device]:
            raise Refused(f"csr: expected the common name {device!r}, the device id, got {', '.join(names) or 'none'}")
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise ContractError("csr", "a key on the curve P-256", type(key).__name__)
        certificate = _certificate(
            device,
            key,
            issuer=(self.certificate, self.key),
            life=DEVICE_LIFE,
            now=now,
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        )
        return Signed(
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            f"{certificate.serial_number:x}",
            key_sha256(key),
        )

    def keep_server(self, hosts: Sequence[str], folder: Path, *, now: datetime) -> None:
        """Have `server.pem` and `server.key` in `folder` for localhost and `hosts` (names or addresses): made anew when
        they are absent, for other hosts, or within 60 days of their end."""
        wanted = tuple(dict.fromkeys((*LOCAL, *hosts)))
        if _is_current(folder / "server.pem", wanted, now):
            return
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(
            wanted[0],
            key.public_key(),
            issuer=(self.certificate, self.key),
            life=SERVER_LIFE,
            now=now,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            hosts=wanted,
        )
        _write_pair(folder, "server", key, certificate)


HUB_CA: Final = "Edgewright hub CA"
LOCAL: Final = ("localhost", "127.0.0.1")


def key_sha256(key: PublicKeyTypes) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def open_authority(folder: Path, *, now: datetime) -> Authority:
    """The authority in `folder`, with the hub's own client certificate; both are made at first use. An operator's own
    ca.pem and ca.key (a root with a key on P-256) that lie there before are taken instead. Raises RequestError when
    files are missing, unfit or do not belong together."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / "ca.key").exists():
        if (folder / "hub.key").exists():
            raise RequestError(f"{folder} holds no ca.key any more: restore the folder from the hub's backup")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(HUB_CA, key.public_key(), issuer=(None, key), life=CA_LIFE, now=now, usage=None)
        _write_pair(folder, "ca", key, certificate)
    key, certificate = _read_pair(folder, "ca")
    _refuse_unfit(folder, certificate)
    if not _is_current(folder / "hub.pem", (), now):
        client = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        issuer = (certificate, key)
        own = _certificate(HUB_NAME, client.public_key(), issuer=issuer, life=SERVER_LIFE, now=now, usage=usage)
        _write_pair(folder, "hub", client, own)
    return Authority(folder, key, certificate)


def _certificate(
    name: str,
    key: ec.EllipticCurvePublicKey,
    *,
    issuer: tuple[x509.Certificate | None, ec.EllipticCurvePrivateKey],  # None: it is its own
    life: timedelta,
    now: datetime,
    usage: x509.ObjectIdentifier | None,  # None: the authority itself
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer[0] is None else issuer[0].subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=usage is None, path_length=0 if usage is None else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_key(*issuer), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=usage is not None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=usage is None,
                crl_sign=usage is None,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts]), critical=False)
    return builder.sign(issuer[1], hashes.SHA256())


def _authority_key(issuer: x509.Certificate | None, key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    """As the issuer names its own key, which need not be as we would."""
    if issuer is not None:
        with contextlib.suppress(x509.ExtensionNotFound):
            named = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(named)
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _refuse_unfit(folder: Path, certificate: x509.Certificate) -> None:
    """An authority of the operator's own must be one that devices can trust by itself. Raises RequestError."""
    try:
        may_sign = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        may_sign = False
    if not may_sign or certificate.issuer != certificate.subject:
        raise RequestError(
            f"{folder / 'ca.pem'}: expected a root of one's own, signed by itself and allowed to sign others; an "
            "intermediate is not trusted without the root above it"
        )


def _host(host: str) -> x509.GeneralName:
    """Raises RequestError for what is neither a name nor an address of a machine."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise RequestError(
                f"--name: expected a host name of a-z, 0-9, - and dots, or an address, got {host[:80]!r}"
            ) from None
        return x509.DNSName(host)


def _is_current(path: Path, hosts: Sequence[str], now: datetime) -> bool:
    if not path.exists() or not path.with_suffix(".key").exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    if certificate.not_valid_after_utc - now < timedelta(days=60):
        return False
    if not hosts:
        return True
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(n.value) for n in names} == set(hosts)


def _read_pair(folder: Path, name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
    except (ValueError, FileNotFoundError) as error:
        raise RequestError(
            f"{folder}: expected {name}.key and {name}.pem ({error}): restore them from a backup"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise RequestError(f"{folder}: {name}.key and {name}.pem do not belong together: restore them from a backup")
    return key, certificate


def _write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The certificate first: a crash in between leaves a pair that `_is_current` sees as missing.
    durable.replace(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
    durable.replace(folder / f"{name}.key", secret, mode=0o600)
