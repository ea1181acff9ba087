"""The MQTT topics, in one table. A device publishes under its own `up/` and reads its own `down/`, nothing else.

MQTT 3.1.1 is enough: nothing here depends on a feature of version 5.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from .birth import BIRTH_BYTES, STATUS_BYTES
from .codec import REPORT_BYTES
from .desired import ACK_BYTES, COMMAND_BYTES, DESIRED_BYTES
from .errors import ContractError
from .event import EVENT_BYTES

ROOT: Final = "ew/1"

Kind = Literal["birth", "report", "event", "status", "desired", "command", "ack"]


class Rule(NamedTuple):
    direction: Literal["up", "down"]
    qos: int
    retain: bool
    limit: int  # bytes


RULES: Final[dict[Kind, Rule]] = {
    "birth":   Rule("up",   1, False, BIRTH_BYTES),
    "report":  Rule("up",   1, False, REPORT_BYTES),
    "event":   Rule("up",   1, False, EVENT_BYTES),
    "status":  Rule("up",   1, True,  STATUS_BYTES),
    "desired": Rule("down", 1, True,  DESIRED_BYTES),
    "command": Rule("down", 1, False, COMMAND_BYTES),
    "ack":     Rule("down", 1, False, ACK_BYTES),
}  # fmt: skip

DEVICE: Final = re.compile(r"\A[a-z0-9][a-z0-9-]{0,62}\Z")

_UNDER: Final = f"{ROOT}/"
_KINDS: Final[dict[str, Kind]] = {f"{rule.direction}/{kind}": kind for kind, rule in RULES.items()}

ALL_UP: Final = f"{ROOT}/+/up/+"


class Address(NamedTuple):
    device: str
    kind: Kind


def topic(device: str, kind: Kind) -> str:
    """Raises ContractError for an id that could reach into another device's topics."""
    if not DEVICE.match(device):
        raise ContractError("device", "an id of a-z, 0-9 and -, at most 63 characters", repr(device))
    return f"{ROOT}/{device}/{RULES[kind].direction}/{kind}"


def parse(name: str) -> Address:
    """The address of a topic as it came from the broker. Raises ContractError."""
    device, _, rest = name.removeprefix(_UNDER).partition("/")
    kind = _KINDS.get(rest)
    if kind is not None and name.startswith(_UNDER) and DEVICE.match(device):
        return Address(device, kind)
    raise ContractError("topic", f"{ROOT}/<device>/up|down/<kind>", repr(name[:120]))


def all_down(device: str) -> str:
    """What a device subscribes to."""
    return topic(device, "desired").rsplit("/", 1)[0] + "/+"


def allowed(device: str, name: str, *, publish: bool) -> bool:
    """The rule that broker ACLs enforce and the hub checks again: own `up/` to publish, own `down/` to read."""
    if not DEVICE.match(device):
        return False
    if not publish and name == all_down(device):
        return True
    try:
        address = parse(name)
    except ContractError:
        return False
    return address.device == device and RULES[address.kind].direction == ("up" if publish else "down")
