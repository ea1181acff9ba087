"""Certificates of this hub's authority that are not in force any more, for a broker that does not ask hub.db.

Not in force is every certificate of a device that was retired, and of a key that a later enrolment of the device
replaced. The list is signed for as long as the authority lives: one that has expired would keep the whole fleet out.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ..storage import control
from .ca import Authority


class Revoked(NamedTuple):
    devices: tuple[str, ...]  # retired
    serials: tuple[str, ...]  # hexadecimal


NOBODY = Revoked((), ())


def revoked(connection: sa.Connection) -> Revoked:
    d, c = control.devices.c, control.certificates.c
    retired = connection.execute(sa.select(d.id).where(d.state != "enrolled").order_by(d.id)).scalars()
    replaced = sa.and_(c.key_sha256 != "", d.key_sha256 != "", c.key_sha256 != d.key_sha256)
    serials = sa.select(c.serial).join(control.devices, d.id == c.device).where((d.state != "enrolled") | replaced)
    return Revoked(tuple(retired), tuple(connection.execute(serials.order_by(c.at_ms, c.serial)).scalars()))


def revocation_list(authority: Authority, serials: Iterable[str], *, now: datetime) -> bytes | None:
    """PEM; None when the authority is an operator's own that may sign no such list: nobody would get in with it."""
    try:
        usage = authority.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.crl_sign:
            return None
    except x509.ExtensionNotFound:
        pass
    begun = authority.certificate.not_valid_before_utc
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(begun)  # not `now`: the broker's clock may be a little behind
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
    )
    for serial in dict.fromkeys(serials):
        one = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(now).build()
        made = made.add_revoked_certificate(one)
    return made.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
