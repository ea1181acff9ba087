"""The owner's signature of one package, carried inside its `.ewp` for devices that are given it by hand.

What is signed is `statement(digest)`, ed25519 (RFC 8032), with the owner's targets key. The words in front keep it from
being anything else that this key signs. It says that the owner made the package, for ever: unlike the signed list that
a hub serves, it cannot be withdrawn and never expires.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from .codec import KIB, Sha256, decode, encode

VERSION: Final = 1
SIGNATURE_BYTES: Final = KIB

Key = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # 32 bytes


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    digest: Sha256
    key: Key
    signature: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{128}\Z")]


def statement(digest: str) -> bytes:
    """The bytes that are signed."""
    return f"edgewright package {VERSION} {digest}".encode("ascii")


def encode_signature(signature: Signature) -> bytes:
    """Raises ContractError."""
    return encode(signature, name="signature", limit=SIGNATURE_BYTES, wire="json")


def decode_signature(data: bytes) -> Signature:
    """Raises ContractError."""
    return decode(Signature, data, name="signature", limit=SIGNATURE_BYTES, wire="json")
