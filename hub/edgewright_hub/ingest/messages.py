"""One message of a device, taken apart. Pure.

`read` never fails: what cannot be understood becomes an item without content and with a reason, and where its spool
and number can still be read they are kept, so that the number can be counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from edgewright_contracts import birth, event, report, topics
from edgewright_contracts.codec import REPORT_BYTES, Hex64, Sequence
from edgewright_contracts.errors import ContractError
from edgewright_contracts.packing import plain


class Message(NamedTuple):
    topic: str
    body: bytes
    arrived_ms: int
    retained: bool = False  # kept by the broker, perhaps long ago
    repeated: bool = False  # delivered before, perhaps with others behind it


@dataclass(frozen=True, slots=True)
class Item:
    """One message taken apart. `spool` and `seq` are known even of some that are dead letters."""

    message: Message
    device: str
    content: birth.Birth | birth.Status | report.Window | event.Event | None
    spool_id: str = ""
    seq: int = 0
    reason: str = ""  # why it is a dead letter


class _Head(msgspec.Struct, array_like=True):
    v: int
    spool_id: Hex64
    seq: Sequence


class _EventHead(msgspec.Struct):
    spool_id: Hex64
    seq: Sequence


def read(message: Message) -> Item:
    try:
        device, kind = topics.parse(message.topic)
    except ContractError as error:
        return Item(message, "", None, reason=str(error))
    try:
        return _opened(message, device, kind)
    except ContractError as error:
        head = _head(kind, message.body)
        return Item(message, device, None, head.spool_id if head else "", head.seq if head else 0, str(error))


def _opened(message: Message, device: str, kind: topics.Kind) -> Item:
    match kind:
        case "report":
            one = report.decode_report(message.body)
            return Item(message, device, one.window, one.spool_id, one.seq)
        case "event":
            step = event.decode_event(message.body)
            return Item(message, device, step, step.spool_id, step.seq)
        case "birth":
            born = birth.decode_birth(message.body)
            if born.device != device:
                raise ContractError("birth.device", f"{device}, as the topic says", born.device)
            return Item(message, device, born, born.spool.id)
        case "status":
            return Item(message, device, birth.decode_status(message.body))
        case _:
            raise ContractError("topic", "one that devices publish", message.topic)


def _head(kind: str, body: bytes) -> _Head | _EventHead | None:
    try:
        if kind == "report":
            raw = plain(body, name="report", limit=REPORT_BYTES)
            return msgspec.msgpack.decode(raw, type=_Head)
        if kind == "event":
            return msgspec.json.decode(body, type=_EventHead)
    except (msgspec.MsgspecError, ContractError, UnicodeDecodeError, RecursionError):
        pass
    return None
