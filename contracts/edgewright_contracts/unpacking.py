"""Many reports at once, as a hub gets them: `packing.plain` of each, varints of many rows, for a fraction of the price.

What costs there is calling numpy for a few hundred counts at a time. Here the marks of all reports make one array.
Guarantee: the same bytes as `packing.plain`, or None, for a report that is packed in another way, or not in order; ask
`plain` about that one.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from .binning import Cells
from .codec import MAX_COUNT
from .errors import ContractError
from .packing import _ID, _LENGTH, CELLS, DICTIONARY, GRIDS, IDS, NEAR, PACKED, _inflate

Index = npt.NDArray[np.intp]

_AT: Final = 1 + 4 * _ID
_VARINT_BYTES: Final = 6  # 2**40 needs 41 bits


class Ragged(NamedTuple):
    values: Cells  # of all rows, one behind the other
    starts: Index  # of each row, and the end


class _Opened(NamedTuple):
    place: int  # in the batch
    head: list[bytes]
    bits: bytes
    v: int
    seq: int
    window: list[Any]
    low: int
    width: int
    marks: bytes
    gaps: list[bytes]  # varints, of each grid


def plain_all(reports: Sequence[bytes], *, limit: int) -> list[bytes | None]:
    """`packing.plain` of each, or None."""
    out: list[bytes | None] = [None] * len(reports)
    opened = [one for place, data in enumerate(reports) if (one := _opened(place, data, limit)) is not None]
    try:
        gaps = ragged([gap for one in opened for gap in one.gaps])
    except ContractError:
        opened = [one for one in opened if _whole(one.gaps)]
        gaps = ragged([gap for one in opened for gap in one.gaps])
    if not opened:
        return out
    number = np.array([len(one.marks) for one in opened])
    filled = np.diff(gaps.starts[:: len(GRIDS)])
    if (filled > number).any():
        few = [one.place for one, fits in zip(opened, (filled <= number).tolist(), strict=True) if fits]
        for place, raw in zip(few, plain_all([reports[place] for place in few], limit=limit), strict=True):
            out[place] = raw
        return out
    counts, sound = _joined(opened, number)
    in_grid = np.repeat(np.tile([True, False], len(opened)), np.column_stack((filled, number - filled)).ravel())
    grids, grid_ends = _varints(np.column_stack((gaps.values, counts[in_grid])).ravel())
    cells, cell_ends = _varints(counts[~in_grid])
    grid_at = grid_ends[2 * gaps.starts].tolist()
    cell_at = cell_ends[np.concatenate(([0], np.cumsum(number - filled)))].tolist()
    for i, (one, good) in enumerate(zip(opened, sound.tolist(), strict=True)):
        if not good:
            continue
        for k, place in enumerate(GRIDS, i * len(GRIDS)):
            one.window[place] = grids[grid_at[k] : grid_at[k + 1]]
        one.window[CELLS] = cells[cell_at[i] : cell_at[i + 1]]
        with contextlib.suppress(TypeError, ValueError, OverflowError, RecursionError):
            raw = msgspec.msgpack.encode((one.v, one.head[0].hex(), one.seq, one.window))
            out[one.place] = raw if len(raw) <= limit else None
    return out


def _whole(gaps: Sequence[bytes]) -> bool:
    try:
        ragged(gaps)
    except ContractError:
        return False
    return True


def _opened(place: int, data: bytes, limit: int) -> _Opened | None:
    if data[:1] != PACKED:
        return None
    head = [data[i : i + _ID] for i in range(1, _AT, _ID)]
    end = _AT + 2 + int.from_bytes(data[_AT : _AT + 2], "big")
    try:
        body = _inflate(zlib.decompressobj(-zlib.MAX_WBITS, DICTIONARY), data[end:], "report", limit)
        v, seq, window = msgspec.msgpack.decode(body, type=tuple[int, int, list[Any]])
        for spot, one in zip(IDS, head[1:], strict=True):
            window[spot] = "" if window[spot] is None else one.hex()
        low, width, marks = window[CELLS]
        if type(low) is not int or not 0 <= low <= MAX_COUNT or type(width) is not int or not 0 <= width <= _LENGTH:
            return None
        gaps = [window[spot] for spot in GRIDS]
        if any(type(one) is not bytes for one in (marks, *gaps)):
            return None
    except (msgspec.MsgspecError, ContractError, IndexError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    return _Opened(place, head, data[_AT + 2 : end], v, seq, window, low, width, marks, gaps)


def _joined(opened: Sequence[_Opened], number: Index) -> tuple[Cells, npt.NDArray[np.bool_]]:
    """The counts of all reports, and which reports were in order."""
    mine = np.repeat(np.arange(len(opened)), number)
    mark = np.frombuffer(b"".join(one.marks for one in opened), np.uint8).astype(np.int64)
    near = mark == NEAR
    wrong = ~near & (mark > _LENGTH)
    mark[wrong] = 0
    width = np.array([one.width for one in opened])[mine]
    size = np.where(near, width, np.maximum(mark - 1, 0))
    ends = np.cumsum(size)
    total = np.bincount(mine, weights=size, minlength=len(opened)).astype(np.int64)
    length = np.array([len(one.bits) for one in opened])
    sound = (length == (total + 7) // 8) & (np.bincount(mine[wrong], minlength=len(opened)) == 0)
    # Where each count's bits begin: behind those of the counts before it in the same report.
    first_bit = 8 * (np.cumsum(length) - length) - (np.cumsum(total) - total)
    begin = ends - size + first_bit[mine]
    begin[~sound[mine]] = 0
    bits = b"".join(one.bits for one in opened) + bytes(8)
    eight = np.ndarray((len(bits) - 7,), ">u8", bits, strides=(1,))  # the 8 bytes from each byte on
    word = eight[begin >> 3].astype(np.uint64) << (begin & 7).astype(np.uint64)
    value = np.where(size > 0, word >> (64 - np.maximum(size, 1)).astype(np.uint64), np.uint64(0)).astype(np.int64)
    counts = value + np.where(near, np.array([one.low for one in opened])[mine], np.where(mark > 0, 1 << size, 0))
    return counts, sound & (np.bincount(mine[counts > MAX_COUNT], minlength=len(opened)) == 0)


def _varints(values: Cells) -> tuple[bytes, Index]:
    """LEB128 of all values, and where each begins, and the end."""
    if not values.size or int(values.max()) < 128:
        return values.astype(np.uint8).tobytes(), np.arange(values.size + 1)
    size = np.ones(values.size, np.intp)
    for k in range(7, int(values.max()).bit_length(), 7):
        size += values >> k > 0
    ends = np.cumsum(size)
    at = ends - size
    out = np.zeros(int(ends[-1]), np.uint8)
    for k in range(int(size.max())):
        on = np.flatnonzero(size > k) if k else slice(None)
        more = np.where(size[on] > k + 1, 128, 0)
        out[at[on] + k] = (values[on] >> 7 * k & 127) | more
    return out.tobytes(), np.concatenate(([0], ends))


def ragged(rows: Sequence[bytes]) -> Ragged:
    """The varints of each row. Raises ContractError as `binning.unpack`."""
    size = np.fromiter(map(len, rows), np.intp, len(rows))
    at = np.concatenate(([0], np.cumsum(size)))
    u = np.frombuffer(b"".join(rows), np.uint8)
    more = u > 127
    if not more.any():
        return Ragged(u.astype(np.int64), at)
    if more[at[1:][size > 0] - 1].any():
        raise ContractError("cells", "whole varints", "a truncated varint at the end")
    end = np.flatnonzero(~more)
    length = np.diff(end, prepend=-1)
    values = u[end].astype(np.int64)
    long = np.flatnonzero(length > 1)
    span, last = length[long], end[long]
    if int(span.max()) > _VARINT_BYTES or not values[long].all():
        raise ContractError("cells", f"varints of at most {_VARINT_BYTES} bytes in their shortest form", "others")
    total = np.zeros(long.size, np.int64)
    for i in range(int(span.max())):
        digit = u[np.minimum(last - span + 1 + i, last)] & 127
        total |= np.where(i < span, digit, 0).astype(np.int64) << 7 * i
    if int(total.max()) > MAX_COUNT:
        raise ContractError("cells", f"cells of at most {MAX_COUNT}", str(int(total.max())))
    values[long] = total
    return Ragged(values, np.concatenate(([0], np.cumsum(~more)))[at])
