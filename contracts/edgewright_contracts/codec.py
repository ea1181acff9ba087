"""Bytes to validated structs and back: size is checked before decoding, and every failure names its field.

MessagePack carries what is sent often (reports, acks), JSON what a person may want to read on the wire. Integers are
bounded by their types, so nothing here can be made to allocate more than a small multiple of the input.
"""

from __future__ import annotations

import re
import zlib
from typing import Annotated, Any, TypeVar

import msgspec

from .errors import ContractError

T = TypeVar("T")

MAX_COUNT = 2**40
KIB = 1024
REPORT_BYTES = 64 * KIB

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Sequence = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
DeviceId = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
Name = DeviceId
Version = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex64 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]

_PATH = re.compile(r" - at `(key in )?\$?(?P<path>[^`]*)`$")


def decode(kind: type[T], data: bytes, *, name: str, limit: int, wire: str) -> T:
    """Decode `data` as `kind`; `wire` is "msgpack" or "json", `name` stands for the whole message in errors.

    Raises ContractError: too large, truncated, of another type, or a value out of its range.
    """
    if len(data) > limit:
        raise ContractError(name, f"at most {limit} bytes", f"{len(data)} bytes")
    codec: Any = msgspec.msgpack if wire == "msgpack" else msgspec.json
    try:
        return codec.decode(data, type=kind)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise _located(error, kind, name) from None
    except ContractError as error:
        raise ContractError(f"{name}.{error.field}", error.expected, error.got) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(name, f"one {wire} message", str(error) or type(error).__name__) from None


def inflate(data: bytes, *, name: str, limit: int) -> bytes:
    """A zlib stream of at most `limit` bytes when unpacked. Raises ContractError."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ContractError(name, "a zlib stream", str(error)) from None
    if len(out) > limit:
        raise ContractError(name, f"at most {limit} bytes unpacked", "more")
    if not stream.eof or stream.unused_data:
        raise ContractError(name, "one whole zlib stream", "a truncated stream or bytes behind its end")
    return out


def _located(error: msgspec.ValidationError, kind: Any, name: str) -> ContractError:
    """msgspec says `Expected `int`, got `str` - at `$[3][2]``; turn the path into field names."""
    text = str(error)
    found = _PATH.search(text)
    path = found["path"] if found else ""
    message = text[: found.start()] if found else text
    field = name + _named(path, kind)
    expected, _, got = message.partition(", got ")
    return ContractError(field, expected.removeprefix("Expected ") or "a valid value", got or "a value that breaks it")


def _named(path: str, kind: Any) -> str:
    out: str = ""
    steps: list[str] = re.findall(r"\.[^.\[]+|\[[^\]]*\]", path)
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
