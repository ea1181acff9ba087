"""Reports on the wire, packed: what a general compressor cannot know of them is done before it.

    0xC1, which no MessagePack begins with
    spool, boot, digest and edge hash: 8 bytes each instead of 16 digits
    2 bytes and as many: of each count the bits that its mark leaves open, which are noise to any compressor
    a raw DEFLATE stream (RFC 1951) of [v, seq, window]: "" for an id, nil for none, gaps only for a grid of durations,
    and cells as [low, width, marks]

There is a mark, one byte, for each count: first those of the grids, then the cells. Most cells of a window are alike,
because each tenth of a channel holds about a tenth of the inferences: `NEAR` says that the count is in [low, low +
2**width), and `width` bits follow. Any other mark is the count's length in bits, and those behind its highest follow.
Marks repeat from channel to channel, so that little is left of them. An earlier release told cells as marks alone,
without `NEAR`, and grids as they were: spools may still hold such reports, and `plain` reads them.

The stream begins with `DICTIONARY` set before it, because a report is too short for a compressor to learn much from.
Guarantee: `plain(pack(raw)) == raw`, byte by byte, for every report. Cost: about 150 µs to pack, 85 to unpack.

For 22 channels of 60 inferences half of the bytes of MessagePack: scripts/measure_report.py says what each part costs.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgspec
import numpy as np

from .binning import Cells, unpack
from .binning import pack as varints
from .codec import MAX_COUNT
from .errors import ContractError

PACKED: Final = b"\xc1"
ZLIB: Final = b"\x78"  # how reports were compressed before: spools may still hold some
IDS: Final = (0, 7, 10)  # boot_id, digest, edge_hash: their places in a window
GRIDS: Final = (15, 16, 17, 21)  # latencies and the age of inputs
CELLS: Final = 22
NEAR: Final = 0xFF  # which is no length
# zlib's, for 64 kB of state instead of 384 while a report is made; one of 500 bytes is as short, one of 60 kB nearly
WINDOW_BITS: Final = 13
MEMORY: Final = 6
_LENGTH: Final = MAX_COUNT.bit_length()
_MARK: Final = 12  # bits that any other mark costs among them, about
_ID: Final = 8  # bytes

# What is said most often stands last, where it is cheapest to point to. These bytes never change: readers of reports
# that were packed with them must have them. A name is behind a byte for its kind and length, as MessagePack writes it.
DICTIONARY: Final = (
    b"\xa7unknown\xa4free\xa9probation\xa0\xa6shadow\xa0\x81\xa5range\x01\x81\xa8channels\xa5nightday"
    b"\x81\xa7correct\x92\x81\xafInferenceFailed\xadtflite-static\xa9onnx-fp32\xa0\xa0\xabtflite-fp32\xa0\xa0"
    b"\xabtflite-int8\xa0\xa0\x93\x01\xcd\x04\xd2\xdc\x00\x1d\xa0\xce\x80\x00\x00\x00\xce\x80\x00\xea\x60"
    b"\xcf\x00\x00\x01\xa1\xee\x56\x5e\x00\xa6synced\x01\xcd\x02\x58\xa0\xa9onnx-int8\xa0\xa0\xa6normal\xa0"
    b"\xcd\x03\x84\xcd\x03\x84\xc4\x00\xc4\x00\xc4\x00\x80\x80\x00\xc4\x00\xc4\x00\x80\xc4\x00\x92\x00\x00"
    b"\x98\x93\x01\xcd\xcb\x20\xcd\xcb\x20\x93\x01\x0c\x0c\x93\x01\xcd\x0c\x80\xcd\x0c\x80\x93\x00\x00\x00"
    b"\x93\x00\x00\x00\xcd\x02\xd0\xcd\x03\x84\xcc\xc8\xcd\x20\x00\x80\xc0"
)


def pack(raw: bytes) -> bytes:
    """`raw` is a report in MessagePack; it comes back as it is where packing does not make it shorter."""
    v, spool_id, seq, window = msgspec.msgpack.decode(raw)
    ids = [spool_id, *(window[place] for place in IDS)]
    for place in IDS:
        window[place] = "" if window[place] else None
    pairs = [unpack(window[place]) for place in GRIDS]
    for place, of in zip(GRIDS, pairs, strict=True):
        window[place] = varints(of[0::2])
    cells = unpack(window[CELLS])
    low, width = _crowd(cells)
    marks, bits = _split(np.concatenate([*(of[1::2] for of in pairs), cells]), low, width)
    window[CELLS] = (low, width, marks)
    stream = zlib.compressobj(9, zlib.DEFLATED, -WINDOW_BITS, MEMORY, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    body = stream.compress(msgspec.msgpack.encode((v, seq, window))) + stream.flush()
    head = b"".join(bytes.fromhex(one or "0" * 2 * _ID) for one in ids)
    packed = PACKED + head + len(bits).to_bytes(2, "big") + bits + body
    return packed if len(packed) < len(raw) else raw


def plain(data: bytes, *, name: str, limit: int) -> bytes:
    """The MessagePack of a report that came packed, in a zlib stream or as it is; at most `limit` bytes.

    What is inside may still be anything. Raises ContractError.
    """
    if data[:1] == ZLIB:
        return _inflate(zlib.decompressobj(), data, name, limit)
    if data[:1] != PACKED:
        return data
    at = 1 + 4 * _ID
    ids = [data[i : i + _ID] for i in range(1, at, _ID)]
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    body = _inflate(zlib.decompressobj(-zlib.MAX_WBITS, DICTIONARY), data[end:], name, limit)
    try:
        v, seq, window = msgspec.msgpack.decode(body, type=tuple[int, int, list[Any]])
        for place, one in zip(IDS, ids[1:], strict=True):
            window[place] = "" if window[place] is None else one.hex()
        early = isinstance(window[CELLS], bytes)
        low, width, marks = (0, 0, window[CELLS]) if early else window[CELLS]
        cells = _joined(marks, data[at + 2 : end], low, width)
        for place in () if early else GRIDS:
            gaps = unpack(window[place])
            window[place] = varints(np.column_stack((gaps, cells[: gaps.size])))
            cells = cells[gaps.size :]
        window[CELLS] = varints(cells)
        raw = msgspec.msgpack.encode((v, ids[0].hex(), seq, window))
    except (msgspec.MsgspecError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ContractError(name, "a packed report", str(error)[:200]) from None
    if len(raw) > limit:
        raise ContractError(name, f"at most {limit} bytes unpacked", f"{len(raw)} bytes")
    return raw


def _crowd(cells: Cells) -> tuple[int, int]:
    """(low, width): where most cells that are not empty are told in the fewest bits. Any choice can be read."""
    filled = np.array(sorted(cells[cells > 0].tolist()), np.int64)  # numpy's sort is 0.3 MB of code
    if not filled.size:
        return 0, 0
    middle = int(filled[filled.size // 2]).bit_length()
    best = (filled.size * (middle + _MARK), 0, 0)
    for width in range(max(0, middle - 3), middle + 2):
        held = np.searchsorted(filled, filled + (1 << width)) - np.arange(filled.size)
        at = int(held.argmax())
        near = int(held[at])
        best = min(best, (near * width + (filled.size - near) * (middle + _MARK), int(filled[at]), width))
    return best[1:]


def _split(counts: Cells, low: int, width: int) -> tuple[bytes, bytes]:
    """(the mark of each count, the bits that marks leave open)."""
    near = (counts >= max(low, 1)) & (counts - low < 1 << width)
    lengths = np.frexp(counts.astype(np.float64))[1]  # exact below 2**53
    marks = np.where(near, NEAR, lengths).astype(np.uint8)
    size = np.where(near, width, np.maximum(lengths - 1, 0))
    values = np.where(near, counts - low, counts)
    shifts = np.repeat(np.cumsum(size), size) - np.arange(1, int(size.sum()) + 1)
    bits = np.repeat(values, size) >> shifts & 1
    return marks.tobytes(), np.packbits(bits.astype(np.uint8)).tobytes()


def _joined(marks: bytes, bits: bytes, low: int, width: int) -> Cells:
    """Raises ValueError, TypeError."""
    lengths = np.frombuffer(marks, np.uint8).astype(np.int64)
    near = lengths == NEAR
    if type(low) is not int or not 0 <= low <= MAX_COUNT or type(width) is not int or not 0 <= width <= _LENGTH:
        raise ValueError(f"expected where most cells are, got {low!r} and {width!r}")
    if lengths[~near].max(initial=0) > _LENGTH:
        raise ValueError(f"expected counts of at most {_LENGTH} bits")
    size = np.where(near, width, np.maximum(lengths - 1, 0))
    total = int(size.sum())
    if len(bits) != (total + 7) // 8:
        raise ValueError(f"expected {(total + 7) // 8} bytes of bits, got {len(bits)}")
    ends = np.cumsum(size)
    shifts = np.repeat(ends, size) - np.arange(1, total + 1)
    values = np.unpackbits(np.frombuffer(bits, np.uint8))[:total].astype(np.int64) << shifts
    sums = np.concatenate(([0], np.cumsum(values)))
    least = np.where(near, low, np.where(lengths > 0, 1 << size, 0))
    counts: Cells = sums[ends] - sums[ends - size] + least
    return counts


def _inflate(stream: Any, data: bytes, name: str, limit: int) -> bytes:
    try:
        out: bytes = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ContractError(name, "a compressed stream", str(error)) from None
    if len(out) > limit:
        raise ContractError(name, f"at most {limit} bytes unpacked", "more")
    if not stream.eof or stream.unused_data:
        raise ContractError(name, "one whole compressed stream", "a truncated stream or bytes behind its end")
    return out
