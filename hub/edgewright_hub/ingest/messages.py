"""Messages of devices, taken apart. Pure.

`read` never fails: what cannot be understood becomes an item without content and with a reason, and where its spool
and number can still be read they are kept, so that the number can be counted.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from edgewright_contracts import birth, event, topics
from edgewright_contracts.built import built
from edgewright_contracts.codec import REPORT_BYTES, Hex64, Sequence, decode
from edgewright_contracts.errors import ContractError
from edgewright_contracts.packing import plain
from edgewright_contracts.unpacking import plain_all

from .columns import Columns, Unchecked, UncheckedReport, unpacked
from .refusals import Reason, absurd, reason_of


class Message(NamedTuple):
    topic: str
    body: bytes
    arrived_ms: int
    retained: bool = False  # kept by the broker, perhaps long ago
    repeated: bool = False  # delivered before, perhaps with others behind it


@dataclass(slots=True)
class Item:
    """One message taken apart. `spool_id` and `seq` are known even of some that are refused."""

    message: Message
    device: str
    content: birth.Birth | birth.Status | Unchecked | event.Event | None
    spool_id: str = ""
    seq: int = 0
    reason: Reason = "malformed"
    said: str = ""  # why there is no content
    row: int = -1  # of a window: its place in the columns

    def refuse(self, reason: Reason, said: str) -> None:
        self.content, self.reason, self.said = None, reason, said


class Batch(NamedTuple):
    items: list[Item]
    columns: Columns


class _Head(msgspec.Struct, array_like=True):
    v: int
    spool_id: Hex64
    seq: Sequence


class _EventHead(msgspec.Struct):
    spool_id: Hex64
    seq: Sequence


def read(messages: Many[Message]) -> Batch:
    bodies = plain_all([message.body for message in messages], limit=REPORT_BYTES)
    items = [_read(message, body) for message, body in zip(messages, bodies, strict=True)]
    found = [item for item in items if isinstance(item.content, Unchecked)]
    try:
        columns = _columns(found)
    except ContractError:
        columns = _columns([item for item in found if _in_order(item)])
    return Batch(items, columns)


def _columns(found: list[Item]) -> Columns:
    for row, item in enumerate(found):
        item.row = row
    return unpacked([item.content for item in found if isinstance(item.content, Unchecked)])


def _in_order(item: Item) -> bool:
    assert isinstance(item.content, Unchecked)
    try:
        item.content.check()
    except ContractError as error:
        item.refuse("counts", f"report.window.{error}")
        return False
    return True


def _read(message: Message, raw: bytes | None) -> Item:
    try:
        device, kind = topics.parse(message.topic)
    except ContractError as error:
        return Item(message, "", None, reason="topic", said=str(error))
    if len(message.body) > topics.RULES[kind].limit:
        said = f"{kind}: expected at most {topics.RULES[kind].limit} bytes, got {len(message.body)}"
        return Item(message, device, None, reason="size", said=said)
    try:
        return _opened(message, raw, device, kind)
    except ContractError as error:
        head = _head(kind, message.body)
        spool_id, seq = (head.spool_id, head.seq) if head else ("", 0)
        return Item(message, device, None, spool_id, seq, reason_of(error), str(error))


def _opened(message: Message, raw: bytes | None, device: str, kind: topics.Kind) -> Item:
    """`raw` is the body unpacked, where that is done already."""
    match kind:
        case "report":
            raw = raw or plain(message.body, name="report", limit=REPORT_BYTES)
            one = decode(UncheckedReport, raw, name="report", limit=REPORT_BYTES, wire="msgpack")
            item = Item(message, device, one.window, one.spool_id, one.seq)
            if said := absurd(one.window):
                item.refuse("counts", f"report.window.{said}")
            return item
        case "event":
            step = event.decode_event(message.body)
            return Item(message, device, step, step.spool_id, step.seq)
        case "birth":
            born = birth.decode_birth(message.body)
            if born.device != device:
                said = f"birth.device: expected {device}, as the topic says, got {born.device}"
                return Item(message, device, None, reason="foreign", said=said)
            return Item(message, device, born, born.spool.id)
        case "status":
            return Item(message, device, birth.decode_status(message.body))
        case _:
            return Item(message, device, None, reason="topic", said=f"{kind}: expected what devices publish")


def _head(kind: str, body: bytes) -> _Head | _EventHead | None:
    try:
        if kind == "report":
            raw = plain(body, name="report", limit=REPORT_BYTES)
            return msgspec.msgpack.decode(raw, type=built(_Head))
        if kind == "event":
            return msgspec.json.decode(body, type=built(_EventHead))
    except (msgspec.MsgspecError, ContractError, UnicodeDecodeError, RecursionError):
        pass
    return None
