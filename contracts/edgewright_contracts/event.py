"""Events: every step of an update, as the device took it. Numbered, spooled and acknowledged like reports, in the same
sequence, so that the hub's record of a rollout has no holes that it does not know of.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from .codec import KIB, Count, Hex64, Millis, Sequence, Text, decode, encode
from .report import BootId, Rollout

VERSION: Final = 1
LOG_TAIL_BYTES: Final = 20_000
EVENT_BYTES: Final = 128 * KIB  # a control character, as of a coloured log, takes six bytes in JSON

# Only a failure of class `model` blocks a digest; the others are retried.
FailureClass = Literal["model", "link", "power", "disk", "hub", "operator"]


class Event(msgspec.Struct, frozen=True, kw_only=True, rename={"before": "from", "after": "to", "failure": "class"}):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    spool_id: Hex64
    seq: Sequence
    boot_id: BootId
    mono_ms: Millis
    wall_ms: Millis | None
    model: Annotated[str, msgspec.Meta(max_length=63)] = ""
    digest: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    variant: Annotated[str, msgspec.Meta(max_length=32)] = ""
    rollout: Rollout = ""
    before: Annotated[str, msgspec.Meta(max_length=32)]  # states of the agent's update machine
    after: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Text = ""
    failure: FailureClass | None = None
    attempt: Count = 0
    log: Annotated[str, msgspec.Meta(max_length=LOG_TAIL_BYTES)] = ""


def encode_event(event: Event) -> bytes:
    """Raises ContractError."""
    return encode(event, name="event", limit=EVENT_BYTES, wire="json")


def decode_event(data: bytes) -> Event:
    """Raises ContractError."""
    return decode(Event, data, name="event", limit=EVENT_BYTES, wire="json")
