from __future__ import annotations

import random
import zlib

import msgspec
import numpy as np
import pytest

from edgewright_contracts.binning import pack, pack_grid
from edgewright_contracts.codec import MAX_COUNT, REPORT_BYTES
from edgewright_contracts.errors import ContractError
from edgewright_contracts.packing import CELLS, DICTIONARY, NEAR, PACKED, plain
from edgewright_contracts.packing import pack as packed
from edgewright_contracts.unpacking import plain_all
from sim import wire


def _reports(seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(40):
        most = int(rng.choice([3, 60, 900, 10**6, MAX_COUNT // 400]))
        grid = np.zeros(401, np.int64)
        grid[rng.integers(0, 401, rng.integers(0, 30))] = rng.integers(1, most + 1)
        cells = rng.integers(0, most + 1, rng.integers(0, 300))
        n = min(MAX_COUNT, int(grid.sum()) + most)
        more: dict[str, bytes] = {
            "latency_total": pack_grid(grid),
            "latency_run": pack_grid(grid),
            "cells": pack(cells),
        }
        out.append(wire.report_bytes(i + 1, n=n, n_monitored=0, **more))
    return out


@pytest.mark.parametrize("seed", range(5))
def test_many_unpacked_at_once_are_what_each_is_alone(seed: int) -> None:
    raws = _reports(seed)
    some = [packed(raw) for raw in raws]
    found = plain_all(some, limit=REPORT_BYTES)
    for raw, data, one in zip(raws, some, found, strict=True):
        assert one == (raw if data[:1] == PACKED else None)
    assert sum(one is not None for one in found) > 30


@pytest.mark.parametrize("seed", range(30))
def test_what_is_damaged_is_nothing_or_what_plain_says_and_harms_no_other(seed: int) -> None:
    rng = random.Random(seed)
    good = [packed(raw) for raw in _reports(1)[:6]]
    bad = bytearray(good[2])
    for _ in range(rng.randint(1, 4)):
        bad[rng.randrange(1, len(bad))] = rng.randrange(256)
    some = [*good[:2], bytes(bad[: rng.randint(1, len(bad))]) if seed % 3 == 0 else bytes(bad), *good[3:]]
    found = plain_all(some, limit=REPORT_BYTES)
    for data, one in zip(some, found, strict=True):
        if one is not None:
            assert one == plain(data, name="report", limit=REPORT_BYTES)
        elif data[:1] == PACKED:
            with pytest.raises(ContractError):
                plain(data, name="report", limit=REPORT_BYTES)


@pytest.mark.parametrize(("low", "width", "marks", "bits"), [(MAX_COUNT, 1, NEAR, b"\x80"), (0, 0, 41, b"\0\0\0\0\1")])
def test_a_count_that_no_window_may_hold_is_nothing_and_harms_no_other(
    low: int, width: int, marks: int, bits: bytes
) -> None:
    v, _, seq, window = msgspec.msgpack.decode(wire.report_bytes(1))
    window[CELLS] = (low, width, bytes([marks]))
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    body = stream.compress(msgspec.msgpack.encode((v, seq, window))) + stream.flush()
    bad = PACKED + bytes(32) + len(bits).to_bytes(2, "big") + bits + body
    with pytest.raises(ContractError):
        plain(bad, name="report", limit=REPORT_BYTES)
    raw = _reports(1)[0]
    assert plain_all([bad, packed(raw)], limit=REPORT_BYTES) == [None, raw]
