"""What a device says of itself: `birth` at every connection, `status` (retained, and the last will).

JSON, so that a person can read it on the wire. A birth carries the state of the spool: the hub answers `new_spool`
when a spool was restored or cloned (next_seq at or below what it has already counted), and acknowledges what it has.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from . import codec
from .codec import KIB, Count, DeviceId, Hex64, Label, Millis, Name, Sequence, Sha256, Text, Version, decode
from .manifest import VariantId
from .report import Clock

VERSION: Final = 1
BIRTH_BYTES: Final = 16 * KIB
STATUS_BYTES: Final = 1 * KIB


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    arch: Text  # platform.machine(): x86_64, aarch64
    model: Text = ""
    cores: Count = 0
    ram_mb: Count = 0


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    model: Name
    digest: Sha256
    version: Version
    variant: VariantId
    state: Literal["active", "previous", "staged", "probation"]


class Unclean(msgspec.Struct, frozen=True, kw_only=True):
    """A boot that ended without sealing its open window, which began at `open_since_mono_ms`: those counts are lost."""

    boot_id: Hex64
    open_since_mono_ms: Millis


class Spool(msgspec.Struct, frozen=True, kw_only=True):
    id: Hex64
    next_seq: Sequence
    unacknowledged: Count = 0
    sealed: Count = 0  # windows without a number yet
    dropped: Count = 0  # windows and events lost to a full or damaged disk since the spool was made
    trouble: Text = (
        ""  # why the disk takes nothing: what is counted waits in memory, and would be lost with the process
    )


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    device: DeviceId
    boot_id: Hex64
    connection: Count  # counts the connections of this boot
    agent: Version
    hardware: Hardware
    runtimes: Annotated[dict[Label, Text], msgspec.Meta(max_length=8)]
    slots: Annotated[tuple[Slot, ...], msgspec.Meta(max_length=64)] = ()  # two for each of 32 models
    clock: Clock
    uptime_ms: Millis
    window_s: Count
    unclean: Annotated[tuple[Unclean, ...], msgspec.Meta(max_length=32)] = ()
    spool: Spool
    desired_rev: Count = 0  # the newest `desired` that this device has on disk


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Says nothing new, and is ignored, when it is of another boot than the last birth or of an earlier connection:
    a broker may send an old will late."""

    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    online: bool
    boot_id: Hex64
    connection: Count


def encode(message: Birth | Status) -> bytes:
    """Raises ContractError."""
    if isinstance(message, Birth):
        return codec.encode(message, name="birth", limit=BIRTH_BYTES, wire="json")
    return codec.encode(message, name="status", limit=STATUS_BYTES, wire="json")


def decode_birth(data: bytes) -> Birth:
    """Raises ContractError."""
    return decode(Birth, data, name="birth", limit=BIRTH_BYTES, wire="json")


def decode_status(data: bytes) -> Status:
    """Raises ContractError."""
    return decode(Status, data, name="status", limit=STATUS_BYTES, wire="json")
