"""Reports on the wire: one zlib stream (RFC 1950) that begins with what every report says anyway.

A report is so short that a plain stream cannot learn much from it. With `DICTIONARY` set before it, 325 bytes instead
of 400 carry the 22 channels of 60 inferences, and 470 instead of 550 those of 900. A stream names its dictionary by
checksum, so one without any is read as well, and a later dictionary can stand beside this one.
"""

from __future__ import annotations

import zlib
from typing import Final

from .errors import ContractError

# What is said most often stands last, where it is cheapest to point to. These bytes never change: readers of reports
# that were packed with them must have them. A name is behind a byte for its kind and length, as MessagePack writes it.
DICTIONARY: Final = (
    b"\xa7unknown\xa4free\xa9probation\xa0\xa6shadow\xa0\x81\xa5range\x01\x81\xa8channels\xa5nightday"
    b"\x81\xa7correct\x92\x81\xafInferenceFailed\xadtflite-static\xa9onnx-fp32\xa0\xb0\xabtflite-fp32\xa0\xb0"
    b"\xabtflite-int8\xa0\xb0\x94\x01\xb0\xcd\x04\xd2\xdc\x00\x1d\xb0\xce\x80\x00\x00\x00\xce\x80\x00\xea\x60"
    b"\xcf\x00\x00\x01\xa1\xee\x56\x5e\x00\xa6synced\x01\xcd\x02\x58\xb0\xa9onnx-int8\xa0\xb0\xa6normal\xa0"
    b"\xcd\x03\x84\xcd\x03\x84\xc4\x00\xc4\x00\xc4\x00\x80\x80\x00\xc4\x00\xc4\x00\x80\xc4\x00\x92\x00\x00"
    b"\x98\x93\x01\xcd\xcb\x20\xcd\xcb\x20\x93\x01\x0c\x0c\x93\x01\xcd\x0c\x80\xcd\x0c\x80\x93\x00\x00\x00"
    b"\xcd\x02\xd0\xcd\x03\x84\xcc\xc8\xcd\x20\x00\x80\xc0"
)


def deflate(raw: bytes) -> bytes:
    """`raw` as one stream, or as it is where that is shorter. About 40 µs for a report."""
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED, DICTIONARY)
    packed = stream.compress(raw) + stream.flush()
    return packed if len(packed) < len(raw) else raw


def inflate(data: bytes, *, name: str, limit: int) -> bytes:
    """A stream of at most `limit` bytes when unpacked, with the dictionary or without one. Raises ContractError."""
    stream = zlib.decompressobj(zdict=DICTIONARY)
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ContractError(name, "a zlib stream", str(error)) from None
    if len(out) > limit:
        raise ContractError(name, f"at most {limit} bytes unpacked", "more")
    if not stream.eof or stream.unused_data:
        raise ContractError(name, "one whole zlib stream", "a truncated stream or bytes behind its end")
    return out
