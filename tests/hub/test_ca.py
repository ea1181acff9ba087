from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_hub.fleet.ca import HUB_NAME, open_authority
from sim import wire

NOW = datetime.now(UTC)


def serial(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def test_opening_again_changes_nothing_and_only_the_owner_can_read_the_keys(tmp_path: Path) -> None:
    for _ in range(2):
        one = open_authority(tmp_path / "ca", now=NOW)
        one.keep_server(("hub.example",), one.folder, now=NOW)
        files = {path.name: path.read_bytes() for path in one.folder.iterdir()}
    assert open_authority(tmp_path / "ca", now=NOW).ca_sha256 == one.ca_sha256
    assert {path.name: path.read_bytes() for path in one.folder.iterdir()} == files
    assert all(path.stat().st_mode & 0o077 == 0 for path in one.folder.glob("*.key"))
    assert one.folder.stat().st_mode & 0o077 == 0


def test_the_servers_certificate_follows_its_names_and_its_end(tmp_path: Path) -> None:
    one = open_authority(tmp_path, now=NOW)
    place = tmp_path / "server.pem"
    one.keep_server((), tmp_path, now=NOW)
    first = serial(place)
    one.keep_server(("localhost", "127.0.0.1"), tmp_path, now=NOW + timedelta(days=300))
    assert serial(place) == first
    one.keep_server(("hub.example", "10.0.0.7"), tmp_path, now=NOW)
    second = serial(place)
    assert second != first
    one.keep_server(("hub.example", "10.0.0.7"), tmp_path, now=NOW + timedelta(days=350))
    assert serial(place) != second


@pytest.mark.parametrize("name", ["", "bad name", "ü.example", "a..b", "https://hub"])
def test_a_server_has_no_name_that_is_none(tmp_path: Path, name: str) -> None:
    authority = open_authority(tmp_path, now=NOW)
    with pytest.raises(RequestError, match="--name: expected a host name"):
        authority.keep_server((name,), tmp_path, now=NOW)


def test_a_device_gets_a_client_certificate_that_can_neither_serve_nor_sign(tmp_path: Path) -> None:
    one = open_authority(tmp_path, now=NOW)
    signed = one.sign(wire.signing_request("cam-1")[0], "cam-1", now=NOW)
    certificate = x509.load_pem_x509_certificate(signed.certificate.encode())
    certificate.verify_directly_issued_by(one.certificate)
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_nobody_gets_a_certificate_for_the_hub_or_for_another(tmp_path: Path) -> None:
    one = open_authority(tmp_path, now=NOW)
    with pytest.raises(ContractError, match="not the hub's"):
        one.sign(wire.signing_request(HUB_NAME)[0], HUB_NAME, now=NOW)
    with pytest.raises(Refused, match="common name"):
        one.sign(wire.signing_request(HUB_NAME)[0], "cam-1", now=NOW)
    with pytest.raises(ContractError, match="at most"):
        one.sign("x" * 10_000, "cam-1", now=NOW)


def test_a_request_that_its_key_did_not_sign_is_refused(tmp_path: Path) -> None:
    one = open_authority(tmp_path, now=NOW)
    request = x509.load_pem_x509_csr(wire.signing_request("cam-1")[0].encode())
    from cryptography.hazmat.primitives.serialization import Encoding

    der = bytearray(request.public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    with pytest.raises((Refused, ContractError), match="csr"):
        one.sign(forged, "cam-1", now=NOW)


def test_an_authority_that_lost_its_key_is_not_made_anew(tmp_path: Path) -> None:
    open_authority(tmp_path, now=NOW)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(RequestError, match="backup"):
        open_authority(tmp_path, now=NOW)


def test_a_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    open_authority(tmp_path / "a", now=NOW)
    open_authority(tmp_path / "b", now=NOW)
    shutil.copyfile(tmp_path / "b" / "ca.key", tmp_path / "a" / "ca.key")
    with pytest.raises(RequestError, match="do not belong together"):
        open_authority(tmp_path / "a", now=NOW)


def own_root(folder: Path, *, ca: bool) -> x509.Certificate:
    """An operator's root, made by other tools: another name, another way to name its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Acme root")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=3000))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    certificate = builder.add_extension(x509.SubjectKeyIdentifier(b"acme"), critical=False).sign(key, hashes.SHA256())
    folder.mkdir()
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(certificate.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.key").write_bytes(secret)
    return certificate


def test_an_operators_own_root_signs_what_the_hubs_would(tmp_path: Path) -> None:
    root = own_root(tmp_path / "ca", ca=True)
    authority = open_authority(tmp_path / "ca", now=NOW)
    signed = authority.sign(wire.signing_request("pi-1")[0], "pi-1", now=NOW)
    device = x509.load_pem_x509_certificate(signed.certificate.encode())
    device.verify_directly_issued_by(root)
    named = device.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert named.key_identifier == b"acme"


def test_an_authority_that_may_not_sign_is_refused(tmp_path: Path) -> None:
    own_root(tmp_path / "ca", ca=False)
    with pytest.raises(RequestError, match="expected a root of one's own"):
        open_authority(tmp_path / "ca", now=NOW)
