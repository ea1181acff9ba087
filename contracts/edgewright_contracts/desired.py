"""What the hub asks of a device: `desired` (one retained document), `command` (once per id) and `ack`.

`desired` only chooses among the digests that the package owner's signed metadata allows; it cannot make a device run
anything else. `rev` rises strictly, is kept on the device's disk, and an older document is ignored.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from . import codec
from .codec import KIB, Count, Hex64, HighWater, Millis, Name, Sha256, Text, decode
from .errors import ContractError
from .manifest import VariantId
from .report import Rollout

VERSION: Final = 1
DESIRED_BYTES: Final = 64 * KIB
COMMAND_BYTES: Final = 4 * KIB
ACK_BYTES: Final = 128
MASK_BITS: Final = 64

# How often a hub acknowledges, and what a device makes of it. An acknowledgement costs as much as a fifth of a report,
# and only frees spool space: it waits until half of what may be in flight is counted, or so long.
IN_FLIGHT: Final = 16  # items that are numbered and unacknowledged, at most
ACK_AFTER: Final = IN_FLIGHT // 2
ACK_S: Final = 7200.0
ACK_GAP_S: Final = 30.0  # between two acknowledgements to one device, but for births
REOFFER_S: Final = ACK_S + 600.0  # without an acknowledgement for so long, a message is lost

# A birth, as an acknowledgement names it: <boot_id>.<connection>. Empty: none.
BirthMark = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{16}\.[0-9]{1,16})?\Z")]

Positive = Annotated[float, msgspec.Meta(gt=0, le=2**40)]
Seconds = Annotated[float, msgspec.Meta(ge=0.5, le=86400.0)]  # shorter windows would wear flash and say nothing


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent may use of its device; None is no limit. What it sheds to stay within them is counted in `shed`."""

    rss_mb: Positive | None = None  # of the agent's process, models and all
    cpu_permille: Count | None = None  # of one core, for what is not inference: telemetry, shadow, installing
    temperature_c: Positive | None = None  # above it, what can wait waits
    written_per_day: Count | None = None  # bytes handed to the disk


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """How packages come down: not all devices at once, and not faster than the link is worth. None: no limit."""

    bytes_per_s: Annotated[int, msgspec.Meta(ge=128, le=2**40)] | None = None
    bytes_per_day: Count | None = None
    spread_s: Annotated[float, msgspec.Meta(ge=0, le=7 * 86400.0)] = 0.0  # a device begins within so many seconds


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs that the operator may look at. Nothing is kept or sent unless the device's owner has consented there."""

    per_day: Annotated[int, msgspec.Meta(ge=1, le=10_000)]  # of each model
    ttl_s: Seconds = 86400.0  # kept on the device for at most so long


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Remote configuration; `version` is the operator's, reported back in events.

    A window ends after `window_s`; with `window_rows`, only once it holds so many inferences or `window_max_s` is over.
    Profile `metered` stands for windows of 15 minutes, compressed, and for a keep-alive that finds the longest which
    the link bears; a longer `window_s` stays as it is.
    """

    version: Count = 0
    window_s: Seconds = 300.0
    rollout_window_s: Seconds = 60.0  # while a rollout or probation asks for it
    monitor_every: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1  # count channels of every n-th inference
    compress: bool = True  # a third to a half fewer bytes for about 0.2 ms of a window's time
    bytes_per_day: Count | None = None  # of telemetry, both ways, as sent on the wire; None: no limit
    profile: Literal["normal", "metered"] = "normal"
    window_rows: Count = 0
    window_max_s: Seconds = 3600.0
    scene_s: Annotated[float, msgspec.Meta(ge=0, le=86400.0)] = (
        0.0  # channels at most once in so long: frames of one scene are one sample
    )
    limits: Limits = Limits()
    download: Download = Download()
    samples: Samples | None = None  # None: none
    log_level: Literal["debug", "info", "warning"] = "info"


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]  # of live inputs that the candidate sees too
    windows: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 3


class Probation(msgspec.Struct, frozen=True, kw_only=True):
    """Commit after `windows` healthy windows; give up and roll back when they have not come after `max_s`."""

    windows: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 3
    max_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86400.0)] = 6 * 3600.0


class DesiredModel(msgspec.Struct, frozen=True, kw_only=True):
    name: Name
    digest: Sha256 | None  # None: no package of this name shall run
    variant: VariantId | None = None  # None: the device takes the best that it can run
    rollout: Rollout = ""
    not_before: Millis | None = None  # UTC, milliseconds
    not_after: Millis | None = None
    shadow: Shadow | None = None
    probation: Probation = Probation()


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    rev: Count
    config: Config = Config()
    models: Annotated[tuple[DesiredModel, ...], msgspec.Meta(max_length=32)] = ()
    cleared_digests: Annotated[tuple[Sha256, ...], msgspec.Meta(max_length=64)] = ()  # blocked before, may try again
    hold: bool | msgspec.UnsetType = msgspec.UNSET  # begin no update; unset: a document from before has the same bytes

    @property
    def held(self) -> bool:
        return self.hold is True

    def __post_init__(self) -> None:
        names = [m.name for m in self.models]
        if len(set(names)) != len(names):
            raise ContractError("models", "one entry for each name", ", ".join(names))


class Command(msgspec.Struct, frozen=True, kw_only=True):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    id: Hex64
    verb: Literal["bench", "report_now", "collect", "resample", "new_spool"]
    expires_at: Millis  # UTC, milliseconds
    argument: Text = ""  # new_spool: the spool id that was seen, so that a late command cannot renumber a new spool


class Ack(msgspec.Struct, array_like=True, frozen=True):
    """Everything up to `high_water` is committed, and high_water + 1 + i for each bit i of `mask`.

    `birth` is the newest birth of this device that is committed: an acknowledgement that was under way before, or that
    answers something else, does not name the birth that the device waits for.
    """

    spool_id: Hex64
    high_water: HighWater
    mask: Annotated[int, msgspec.Meta(ge=0)] = 0
    birth: BirthMark = ""

    def __post_init__(self) -> None:
        if self.mask >= 1 << MASK_BITS:
            raise ContractError("mask", f"{MASK_BITS} bits", f"{self.mask.bit_length()}")

    def __contains__(self, seq: int) -> bool:
        ahead = seq - self.high_water - 1
        return ahead < 0 or (ahead < MASK_BITS and bool(self.mask >> ahead & 1))


def birth_mark(boot_id: str, connection: int) -> BirthMark:
    return f"{boot_id}.{connection}"


def encode(message: Desired | Command) -> bytes:
    """Raises ContractError."""
    if isinstance(message, Desired):
        return codec.encode(message, name="desired", limit=DESIRED_BYTES, wire="json")
    return codec.encode(message, name="command", limit=COMMAND_BYTES, wire="json")


def encode_ack(ack: Ack) -> bytes:
    """Without a birth, the three fields that an acknowledgement had before it could name one. Raises ContractError."""
    data = codec.encode(ack, name="ack", limit=ACK_BYTES, wire="msgpack")
    return data if ack.birth else b"\x93" + data[1:-1]


def decode_desired(data: bytes) -> Desired:
    """Raises ContractError."""
    return decode(Desired, data, name="desired", limit=DESIRED_BYTES, wire="json")


def decode_command(data: bytes) -> Command:
    """Raises ContractError."""
    return decode(Command, data, name="command", limit=COMMAND_BYTES, wire="json")


def decode_ack(data: bytes) -> Ack:
    """Raises ContractError."""
    return decode(Ack, data, name="ack", limit=ACK_BYTES, wire="msgpack")
