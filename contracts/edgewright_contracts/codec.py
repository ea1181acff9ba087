"""Bytes to validated structs and back: size is checked before decoding, and every failure names its field.

MessagePack carries what is sent often (reports, acks), JSON what a person may want to read on the wire. Integers are
bounded by their types, so nothing here can be made to allocate more than a small multiple of the input. A key that
stands twice in one map is refused: two readers could otherwise take different values from the same signed bytes.

msgspec checks ranges when it decodes, not when a struct is made; `encode` therefore reads back what it wrote. Nothing
that it returns can be refused at the other end, where a numbered message would block its spool for ever.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar

import msgspec

from .built import built
from .errors import ContractError

T = TypeVar("T")

MAX_COUNT = 2**40
KIB = 1024
REPORT_BYTES = 64 * KIB

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Sequence = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
HighWater = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Sum = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # of levels or bytes, over as long as a day
_NAME = r"\A[a-z0-9][a-z0-9-]{0,62}\Z"
DeviceId = Annotated[str, msgspec.Meta(pattern=_NAME)]
Name = DeviceId
Version = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex64 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
# ASCII, so that 64 characters are 64 bytes and the largest window has a known size
Label = Annotated[str, msgspec.Meta(pattern=r"\A[ -~]{1,64}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=1024)]

MAX_SUM = 2**53

_PATH = re.compile(r" - at `(key` in `)?\$?(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.[^.\[]+|\[[^\]]*\]")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
# What msgspec says of a pattern, in words
_WORDS = {
    f"`str` matching regex {pattern!r}": words
    for pattern, words in (
        (_NAME, "a name of a-z, 0-9 and -, at most 63 characters"),
        (r"\A[0-9a-f]{64}\Z", "64 hexadecimal digits"),
        (r"\A([0-9a-f]{64})?\Z", "64 hexadecimal digits, or nothing"),
    )
}

# MessagePack tags: bytes behind the tag; or width of the length and bytes besides (the type of an ext)
_MSGPACK_SIZES = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_MSGPACK_SIZES |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
_MSGPACK_LENGTHS = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_MSGPACK_LENGTHS |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0), 0xDC: (2, 0), 0xDD: (4, 0), 0xDE: (2, 0), 0xDF: (4, 0)}


def decode(kind: type[T], data: bytes, *, name: str, limit: int, wire: str) -> T:
    """Decode `data` as `kind`; `wire` is "msgpack" or "json", `name` stands for the whole message in errors.

    Raises ContractError: too large, truncated, of another type, or a value out of its range.
    """
    if len(data) > limit:
        raise ContractError(name, f"at most {limit} bytes", f"{len(data)} bytes")
    codec: Any = msgspec.msgpack if wire == "msgpack" else msgspec.json
    try:
        message: T = codec.decode(data, type=built(kind))
        # What encodes to the same bytes lost no key on the way; only other bytes are worth a walk.
        if wire == "msgpack":
            repeated = None if msgspec.msgpack.encode(message) == data else _repeated_msgpack_key(data)
        else:
            repeated = _repeated_json_key(data)
    except msgspec.ValidationError as error:
        raise _located(error, kind, name, codec, data) from None
    except ContractError as error:
        raise ContractError(f"{name}.{error.field}", error.expected, _short(error.got)) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError
        raise ContractError(name, f"one {wire} message", str(error) or type(error).__name__) from None
    if repeated is not None:
        raise ContractError(name, "each key once in a map", f"{repeated[:64]!r} twice")
    return message


def encode(message: msgspec.Struct, *, name: str, limit: int, wire: str) -> bytes:
    """Bytes that `decode` accepts with the same arguments; equal messages give equal bytes. Raises ContractError."""
    codec: Any = msgspec.msgpack if wire == "msgpack" else msgspec.json
    try:
        data: bytes = codec.encode(message, order="deterministic")
    except (TypeError, ValueError, OverflowError) as error:  # a lone surrogate, an int beyond 64 bits
        raise ContractError(name, f"values that {wire} can hold", str(error)) from None
    kept = decode(type(message), data, name=name, limit=limit, wire=wire)
    canonical: bytes = codec.encode(kept, order="deterministic")  # an int given for a float is a float by now
    return canonical


def _located(error: msgspec.ValidationError, kind: Any, name: str, codec: Any, data: bytes) -> ContractError:
    """msgspec says `Expected `int`, got `str` - at `$[3][2]``; turn the path into field names. Where it does not say
    what came, look."""
    text = str(error)
    found = _PATH.search(text)
    path = found["path"] if found else ""
    message = text[: found.start()] if found else text
    field = name + _named(path, kind)
    if missing := _MISSING.fullmatch(message):
        return ContractError(f"{field}.{missing[1]}", "this field", "none")
    if not message.startswith("Expected "):  # "Number out of range", "Invalid enum value 'x'"
        return ContractError(field, "a valid value", _short(message[:1].lower() + message[1:]))
    expected, _, got = message.removeprefix("Expected ").partition(", got ")
    came = _short(got or _value(codec, data, path)) or "a value that breaks it"
    return ContractError(field, _WORDS.get(expected, expected), came)


def _value(codec: Any, data: bytes, path: str) -> str:
    """The number or text at this place; the empty string where it is neither."""
    try:
        found = codec.decode(data)
        for step in _STEP.findall(path):
            found = found[int(step[1:-1])] if step.startswith("[") else found[step[1:]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return repr(found) if isinstance(found, str | int | float) else ""


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _repeated_json_key(data: bytes) -> str | None:
    found: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            keys = [key for key, _ in pairs]
            found.append(next(key for key in keys if keys.count(key) > 1))

    # numbers stay text: a field that we do not know may hold one of 60,000 digits
    json.loads(data.decode(), object_pairs_hook=note, parse_int=str, parse_float=str)
    return found[0] if found else None


def _repeated_msgpack_key(data: bytes) -> str | None:
    """Walks `data`, known to be one well-formed message, without a frame per level. Looks at text keys only."""
    at, end = 0, len(data)
    # of each open container: items to come, and for a map the keys so far
    todo: list[int] = [1]
    seen: list[set[bytes] | None] = [None]
    while at < end:
        while not todo[-1]:
            todo.pop()
            seen.pop()
        keys = seen[-1]
        is_key = keys is not None and todo[-1] % 2 == 0
        todo[-1] -= 1
        tag = data[at]
        at += 1
        items = size = 0
        if tag < 0x80 or tag >= 0xE0:
            continue
        if tag < 0x90:
            items = 2 * (tag & 15)
        elif tag < 0xA0:
            items = tag & 15
        elif tag < 0xC0:
            size = tag & 31
        elif tag in _MSGPACK_SIZES:
            size = _MSGPACK_SIZES[tag]
        elif tag in _MSGPACK_LENGTHS:
            width, extra = _MSGPACK_LENGTHS[tag]
            size = int.from_bytes(data[at : at + width], "big")
            at += width
            if tag >= 0xDC:
                items, size = size * (2 if tag >= 0xDE else 1), 0
            size += extra
        if 0x80 <= tag < 0xA0 or tag >= 0xDC:
            todo.append(items)
            seen.append(set() if tag < 0x90 or tag >= 0xDE else None)
            continue
        if is_key and keys is not None:
            key = data[at : at + size]
            if key in keys:
                return key.decode(errors="replace")
            keys.add(key)
        at += size
    return None


def _named(path: str, kind: Any) -> str:
    out: str = ""
    steps: list[str] = _STEP.findall(path)
    for step in steps:
        fields = _fields(kind)
        if fields and step.startswith("["):
            index = int(step[1:-1]) if step[1:-1].isdigit() else -1
            if not 0 <= index < len(fields):
                return out + step
            out += f".{fields[index].name}"
            kind = fields[index].type
        elif fields:
            out += step
            kind = next((f.type for f in fields if f.encode_name == step[1:]), None)
        else:
            out += step
            kind = _inner(kind)
    return out


def _fields(kind: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return msgspec.structs.fields(kind)
    return ()


def _plain(kind: Any) -> Any:
    while hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    options = [a for a in getattr(kind, "__args__", ()) if a is not type(None)]
    if type(None) in getattr(kind, "__args__", ()) and len(options) == 1:
        return _plain(options[0])
    return kind


def _inner(kind: Any) -> Any:
    arguments = [a for a in getattr(_plain(kind), "__args__", ()) if a is not Ellipsis]
    return arguments[-1] if arguments else None
