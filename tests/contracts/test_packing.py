"""Packed reports: what this release writes and what releases before it wrote come back byte by byte."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright_contracts.binning import GRID_CELLS, grid_index, pack_grid
from edgewright_contracts.binning import pack as varints
from edgewright_contracts.codec import MAX_COUNT, REPORT_BYTES, encode
from edgewright_contracts.errors import ContractError
from edgewright_contracts.packing import _LENGTH, DICTIONARY, NEAR, _joined, _split, pack, plain
from edgewright_contracts.report import Gauge, Report, Usage, Window

# pack(fixed()): another zlib may write other bytes, every release reads these
WRITTEN = (
    "c100c0ffee00c0ffeef4a9c01d77e2b3609e3779b97f4a7c15c2b2ae3d27d4eb4f0078e19bb9baaaa9bdbcac13038c149d23038c149d"
    "23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d23038c14"
    "9d23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d23038c149d209bccc80eb69c51"
    "68c5d2738cc293d9302caf407330cc721b9b238c4647b85c1960e008870f940576cb644696a38c466cff3100031293619483ce81c520"
    "d33906c6e91c674ff7c0e20d12777bce32ae6300471d00"
)


def raw(cells: np.ndarray, run_us: np.ndarray, **more: Any) -> bytes:
    """A report of 22 channels as a device sends it, in MessagePack."""
    window = Window(
        boot_id="f4a9c01d77e2b360",
        mono_start_ms=18_000_037,
        mono_end_ms=18_060_038,
        wall_start_ms=1_795_000_000_000,
        clock="synced",
        next_due_s=120,
        digest="9e3779b97f4a7c15",
        variant="tflite-int8",
        edge_hash="c2b2ae3d27d4eb4f",
        n=int(run_us.size),
        n_monitored=int(run_us.size),
        latency_queue=grid(np.full(run_us.size, 12)),
        latency_run=grid(run_us),
        latency_total=grid(run_us + 12),
        cells=varints(cells),
        usage=Usage(rss_kb=Gauge(2, 104_200, 52_108), cpu_ms=700, bytes_sent=430, bytes_written=8192),
        **more,
    )
    return encode(
        Report(spool_id="00c0ffee00c0ffee", seq=7, window=window), name="report", limit=REPORT_BYTES, wire="msgpack"
    )


def grid(us: np.ndarray) -> bytes:
    return pack_grid(np.bincount(grid_index(us * 1000), minlength=GRID_CELLS).astype(np.int64))


def usual(n: int, seed: int = 1) -> bytes:
    """Channels of ten tenths and three cells that stay empty, and one sum."""
    rng = np.random.default_rng(seed)
    channels = [[0, *rng.multinomial(n, [0.1] * 10), 0, 0] for _ in range(22)]
    return raw(np.concatenate([*channels, [3800 * n]]), rng.gamma(9.0, 4.0, n).astype(np.int64))


def fixed() -> bytes:
    return raw(np.arange(287) * 7 % 13 * (np.arange(287) % 13 < 11), 30 + np.arange(60) % 17)


def unpacked(data: bytes) -> bytes:
    return plain(data, name="report", limit=REPORT_BYTES)


@pytest.mark.parametrize(("n", "most"), [(60, 0.55), (300, 0.65), (900, 0.7)])
def test_a_usual_report_comes_back_and_is_much_shorter(n: int, most: float) -> None:
    for seed in range(5):
        whole = usual(n, seed)
        packed = pack(whole)
        assert unpacked(packed) == whole
        assert len(packed) < most * len(whole)
        assert len(packed) < 0.85 * len(zlib.compress(whole, 9))


def test_what_this_release_packed_stays_readable() -> None:
    assert unpacked(bytes.fromhex(WRITTEN)) == fixed()


def test_a_window_without_inferences_or_with_the_largest_counts_comes_back() -> None:
    nothing = raw(np.zeros(0, np.int64), np.zeros(0, np.int64))
    empty = raw(np.zeros(286, np.int64), np.zeros(0, np.int64))
    full = raw(np.full(286, MAX_COUNT), np.full(9, 40), input_age=grid(np.full(9, 5000)))
    for whole in (nothing, empty, full):
        assert unpacked(pack(whole)) == whole


@given(
    st.lists(st.integers(0, 60) | st.integers(0, MAX_COUNT), max_size=80), st.integers(0, 70), st.integers(0, _LENGTH)
)
def test_counts_come_back_whatever_most_of_them_are_taken_for(counts: list[int], low: int, width: int) -> None:
    marks, bits = _split(np.array(counts, np.int64), low, width)
    assert _joined(marks, bits, low, width).tolist() == counts


@pytest.mark.parametrize(
    "cells",
    [
        [0, 0], [0, 0, b"", 1], [0, 0, "x"], [-1, 0, b""], [0, 42, b""], [0.5, 0, b""], [True, 0, b""],
        [MAX_COUNT + 1, 0, b""], [0, 0, b"\x2a"], [0, 0, b"\x01"], [MAX_COUNT, 1, bytes([NEAR] * 11)], None, 5, "ab",
    ],
)  # fmt: skip
def test_marks_that_mean_no_counts_are_refused(cells: object) -> None:
    v, _, seq, window = msgspec.msgpack.decode(raw(np.zeros(0, np.int64), np.full(60, 40)))
    window[22] = cells
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    body = stream.compress(msgspec.msgpack.encode((v, seq, window))) + stream.flush()
    for bits in (b"", b"\xff", b"\xff\xff"):
        with pytest.raises(ContractError):
            unpacked(b"\xc1" + bytes(32) + len(bits).to_bytes(2, "big") + bits + body)
