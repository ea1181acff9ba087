"""Windows merge exactly, in any order, and a merged window is always one that can be written and read."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright_contracts import report
from edgewright_contracts.binning import GRID_CELLS, pack, pack_grid, unpack, unpack_grid
from edgewright_contracts.codec import MAX_COUNT, MAX_SUM, REPORT_BYTES
from edgewright_contracts.errors import ContractError
from edgewright_contracts.packing import DICTIONARY, plain
from edgewright_contracts.packing import pack as packed
from edgewright_contracts.report import (
    MAX_CELLS,
    MAX_NAMES,
    MAX_OUTCOMES,
    OTHER,
    WINDOW_BYTES,
    Gauge,
    Hits,
    Report,
    Shift,
    Usage,
    Window,
    decode_report,
    decode_window,
    encode_window,
    merge,
)
from sim.reports import encode_report, grid_counts

WIDTH = 7
MILLIS = st.integers(0, 2**53)
SMALL = st.integers(0, 1000)
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=8)
FREE_TEXT = st.text(max_size=64)


def hits(top: int = MAX_COUNT) -> st.SearchStrategy[Hits]:
    return st.integers(0, top).flatmap(lambda n: st.builds(Hits, st.just(n), st.integers(0, n)))


def gauges(top: int) -> st.SearchStrategy[Gauge]:
    return st.builds(Gauge, st.integers(0, top), st.integers(0, top), st.integers(0, top))


def usages(top: int) -> st.SearchStrategy[Usage]:
    counts = st.integers(0, top)
    return st.builds(Usage, *[gauges(top)] * 4, counts, counts, counts, counts)


def grids(n: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.integers(0, 10**12), max_size=min(n, 6)).map(lambda d: pack_grid(grid_counts(d)))


def cells(top: int) -> st.SearchStrategy[bytes]:
    full = st.lists(st.integers(0, top), min_size=WIDTH, max_size=WIDTH).map(pack)
    return st.one_of(st.just(b""), full)


@st.composite
def confidences(draw: st.DrawFn, top: int) -> bytes:
    if draw(st.booleans()):
        return b""
    n = draw(st.lists(st.integers(0, top), min_size=10, max_size=10))
    return pack(n + [draw(st.integers(0, one)) for one in n])


@st.composite
def windows(draw: st.DrawFn, *, top: int = 10**6, free: bool = False) -> Window:
    """Windows of one key unless `free`; sums of a few stay in range when `top` is far below 2**40."""
    n = draw(st.integers(0, top))
    start = draw(MILLIS)
    key = {
        "digest": draw(st.text("0123456789abcdef", min_size=16, max_size=16)) if free else "d" * 16,
        "variant": draw(st.sampled_from(["onnx-fp32", "tflite-int8"])) if free else "onnx-fp32",
        "context": draw(FREE_TEXT) if free else "",
        "edge_hash": draw(st.text("0123456789abcdef", min_size=16, max_size=16)) if free else "e" * 16,
        "phase": draw(st.sampled_from(["normal", "shadow", "probation"])) if free else "normal",
        "rollout": draw(FREE_TEXT) if free else "",
    }
    tally = st.dictionaries(NAMES, st.integers(0, top), max_size=MAX_NAMES)
    errors = draw(st.dictionaries(NAMES, st.integers(0, n // MAX_NAMES), max_size=MAX_NAMES))
    return Window(
        boot_id=draw(st.sampled_from(["", "b" * 16, "c" * 16])),
        mono_start_ms=start,
        mono_end_ms=draw(st.integers(start, 2**53)),
        wall_start_ms=draw(st.one_of(st.none(), MILLIS)),
        clock=draw(st.sampled_from(["synced", "free", "unknown"])),
        span=draw(st.integers(1, 1000)),
        next_due_s=draw(SMALL),
        n=n,
        n_monitored=draw(st.integers(0, n)),
        latency_queue=draw(grids(n)),
        latency_run=draw(grids(n)),
        latency_total=draw(grids(n)),
        errors=errors,
        rejected=draw(tally),
        repeated=draw(st.integers(0, top)),
        input_age=draw(grids(n)),
        cells=draw(cells(top)),
        outcomes=draw(st.dictionaries(st.one_of(st.just("correct"), NAMES), hits(top), max_size=MAX_OUTCOMES)),
        correct_by_confidence=draw(confidences(top)),
        shadow=draw(hits(top)),
        shadow_confidence=draw(
            st.one_of(st.none(), st.builds(Shift, st.integers(0, top), st.integers(0, top), st.integers(0, top)))
        ),
        usage=draw(usages(top)),
        shed=draw(tally),
        **key,
    )


MANY_NAMES = [*(f"kind-{i:02}" for i in range(22)), *(f"zone-{i:02}" for i in range(22))]  # on both sides of `other`


@st.composite
def crowded(draw: st.DrawFn) -> Window:
    """Windows whose maps outgrow their bounds when merged; `other` and `correct` among the names."""
    names = st.sampled_from([*MANY_NAMES, OTHER, "correct", "aaa"])
    tally = st.dictionaries(names, SMALL, min_size=20, max_size=MAX_NAMES)
    outcomes = st.dictionaries(names, hits(1000), min_size=8, max_size=MAX_OUTCOMES)
    return msgspec.structs.replace(
        draw(windows(top=0)),
        n=10**6,
        errors=draw(tally),
        rejected=draw(tally),
        shed=draw(tally),
        outcomes=draw(outcomes),
    )


def totals(w: Window) -> tuple[object, ...]:
    """Every count of a window, names of maps aside."""
    usage = w.usage
    gauges = (usage.rss_kb, usage.cpu_permille, usage.temperature_dk, usage.discharge_permille)
    labels = unpack(w.correct_by_confidence) if w.correct_by_confidence else np.zeros(20, np.int64)
    return (
        np.array(
            [
                w.span,
                w.n,
                w.n_monitored,
                w.repeated,
                w.shadow.n,
                w.shadow.hits,
                sum(w.errors.values()),
                sum(w.rejected.values()),
                sum(w.shed.values()),
                sum(h.n for h in w.outcomes.values()),
                sum(h.hits for h in w.outcomes.values()),
                *(g.n for g in gauges),
                *(g.sum for g in gauges),
                usage.cpu_ms,
                usage.bytes_sent,
                usage.bytes_received,
                usage.bytes_written,
                *(unpack(w.cells) if w.cells else np.zeros(WIDTH, np.int64)),
                *labels,
                *unpack_grid(w.latency_queue),
                *unpack_grid(w.latency_run),
                *unpack_grid(w.latency_total),
                *unpack_grid(w.input_age),
            ],
            object,
        ),
    )


@given(windows(top=MAX_COUNT, free=True))
def test_a_window_comes_back_as_it_was(window: Window) -> None:
    assert decode_window(encode_window(window)) == window


@given(windows(top=MAX_COUNT, free=True), st.integers(1, 2**53), st.booleans())
def test_a_report_comes_back_as_it_was_plain_or_compressed(window: Window, seq: int, compress: bool) -> None:
    one = Report(spool_id="0123456789abcdef", seq=seq, window=window)
    data = encode_report(one, compress=compress)
    assert len(data) <= REPORT_BYTES
    assert decode_report(data) == one
    assert decode_report(zlib.compress(encode_report(one))) == one


@settings(max_examples=60)
@given(windows(), windows(), windows())
def test_merging_is_commutative_and_associative(a: Window, b: Window, c: Window) -> None:
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert encode_window(merge(merge(a, b), c)) == encode_window(merge(b, merge(c, a)))


@settings(max_examples=60)
@given(windows(), windows())
def test_merging_keeps_every_count(a: Window, b: Window) -> None:
    merged = merge(a, b)
    assert (totals(merged)[0] == totals(a)[0] + totals(b)[0]).all()  # type: ignore[operator,attr-defined]
    assert merged.error_count == a.error_count + b.error_count
    for name in ("errors", "rejected", "shed"):
        both = Counter(getattr(a, name)) + Counter(getattr(b, name))
        if len(getattr(a, name).keys() | getattr(b, name).keys()) <= MAX_NAMES:
            assert +Counter(getattr(merged, name)) == both
    for of in ("rss_kb", "cpu_permille", "temperature_dk", "discharge_permille"):
        assert getattr(merged.usage, of).max == max(getattr(a.usage, of).max, getattr(b.usage, of).max)


@settings(max_examples=60)
@given(windows(), windows())
def test_what_cannot_be_kept_falls_to_the_weaker_value(a: Window, b: Window) -> None:
    merged = merge(a, b)
    assert merged.boot_id == (a.boot_id if a.boot_id == b.boot_id else "")
    assert merged.mono_start_ms == min(a.mono_start_ms, b.mono_start_ms)
    assert merged.mono_end_ms == max(a.mono_end_ms, b.mono_end_ms)
    order = ("synced", "free", "unknown")
    assert order.index(merged.clock) == max(order.index(a.clock), order.index(b.clock))
    assert merged.next_due_s == max(a.next_due_s, b.next_due_s)


@settings(max_examples=25)
@given(crowded(), crowded(), crowded())
def test_maps_that_outgrow_their_bound_lose_names_and_no_counts(a: Window, b: Window, c: Window) -> None:
    whole = merge(merge(a, b), c)
    for order in itertools.permutations((a, b, c)):
        assert merge(merge(*order[:2]), order[2]) == whole
        assert merge(order[0], merge(*order[1:])) == whole
    assert (totals(whole)[0] == sum(totals(w)[0] for w in (a, b, c))).all()  # type: ignore[attr-defined,misc]
    assert decode_window(encode_window(whole)) == whole
    for name in ("errors", "rejected", "shed"):
        tallies = [getattr(w, name) for w in (a, b, c)]
        exact = sum((Counter(t) for t in tallies), Counter())
        kept = getattr(whole, name)
        assert len(kept) <= MAX_NAMES
        assert all(kept[k] == exact[k] for k in kept if k != OTHER)
        if len(set().union(*tallies)) > MAX_NAMES:
            assert sorted(kept.keys() - {OTHER}) == sorted(set().union(*tallies) - {OTHER})[: MAX_NAMES - 1]
    assert len(whole.outcomes) <= MAX_OUTCOMES
    if any("correct" in w.outcomes for w in (a, b, c)):
        assert whole.outcomes["correct"].n == sum(w.outcomes.get("correct", Hits()).n for w in (a, b, c))


def example(**more: object) -> Window:
    fields: dict[str, object] = {
        "boot_id": "b" * 16,
        "mono_start_ms": 0,
        "mono_end_ms": 1,
        "wall_start_ms": None,
        "clock": "synced",
        "next_due_s": 1,
        "digest": "d" * 16,
        "variant": "onnx-fp32",
        "edge_hash": "e" * 16,
    }
    return Window(**{**fields, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "c" * 16},
        {"variant": "onnx-int8"},
        {"context": "night"},
        {"edge_hash": "f" * 16},
        {"phase": "shadow"},
        {"rollout": "r"},
    ],
)
def test_windows_of_different_keys_never_merge(other: dict[str, object]) -> None:
    with pytest.raises(ContractError) as caught:
        merge(example(), example(**other))
    assert caught.value.field == "key"


@pytest.mark.parametrize(
    ("window", "field"),
    [
        ({"n": MAX_COUNT}, "n"),
        ({"span": MAX_COUNT}, "span"),
        ({"repeated": MAX_COUNT}, "repeated"),
        ({"rejected": {"range": MAX_COUNT}}, "rejected[range]"),
        ({"shed": {"range": MAX_COUNT}}, "shed[range]"),
        ({"cells": pack([MAX_COUNT])}, "cells"),
        ({"correct_by_confidence": pack([MAX_COUNT] * 20)}, "correct_by_confidence"),
        ({"shadow": Hits(MAX_COUNT, 0)}, "hits.n"),
        ({"outcomes": {"ok": Hits(MAX_COUNT, 0)}}, "hits.n"),
        ({"usage": Usage(rss_kb=Gauge(MAX_COUNT, 0, 0))}, "gauge.n"),
        ({"usage": Usage(rss_kb=Gauge(0, MAX_SUM, 0))}, "gauge.sum"),
        ({"usage": Usage(bytes_sent=MAX_SUM)}, "usage.bytes_sent"),
    ],
)
def test_a_sum_that_would_leave_its_range_is_refused_and_nothing_is_cut(window: dict[str, object], field: str) -> None:
    one = example(**window)
    assert decode_window(encode_window(one)) == one
    with pytest.raises(ContractError) as caught:
        merge(one, one)
    assert caught.value.field == field


def test_cells_of_another_number_are_refused() -> None:
    with pytest.raises(ContractError, match="cells"):
        merge(example(cells=pack([1, 2])), example(cells=pack([1, 2, 3])))


def test_the_largest_window_still_fits_a_report() -> None:
    """Bounds of the parts add up to less than 64 KiB, so merging cannot make what cannot be sent."""
    names = [f"{i:02}" + "x" * 62 for i in range(MAX_NAMES)]
    n = MAX_COUNT
    full = n // GRID_CELLS
    grid = pack_grid(np.full(GRID_CELLS, full))
    largest = example(
        mono_start_ms=2**53,
        mono_end_ms=2**53,
        wall_start_ms=2**53,
        clock="unknown",
        span=n,
        next_due_s=n,
        variant="v" * 32,
        context="\U0001f600" * 64,
        phase="probation",
        rollout="\U0001f600" * 64,
        n=n,
        n_monitored=n,
        latency_queue=grid,
        latency_run=grid,
        latency_total=grid,
        errors=dict.fromkeys(names, n // MAX_NAMES),
        rejected=dict.fromkeys(names, n),
        repeated=n,
        input_age=grid,
        cells=pack(np.full(MAX_CELLS, n)),
        outcomes={name: Hits(n, n) for name in names[:MAX_OUTCOMES]},
        correct_by_confidence=pack([n] * 20),
        shadow=Hits(n, n),
        usage=Usage(*[Gauge(n, MAX_SUM, n)] * 4, MAX_SUM, MAX_SUM, MAX_SUM, MAX_SUM),
        shed=dict.fromkeys(names, n),
        shadow_confidence=Shift(n, MAX_SUM, MAX_SUM),
    )
    assert len(encode_window(largest)) < WINDOW_BYTES
    one = Report(spool_id="f" * 16, seq=2**53, window=largest)
    assert decode_report(encode_report(one)) == one
    assert len(encode_report(one, compress=True)) <= REPORT_BYTES


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"mono_start_ms": 2}, "mono_end_ms"),
        ({"n_monitored": 1}, "n_monitored"),
        ({"errors": {"timeout": 1}}, "errors"),
        ({"latency_run": pack([0, 1])}, "latency_run"),
        ({"n": 9, "input_age": pack([500, 1])}, "input_age"),
        ({"n": 9, "latency_queue": b"\x80"}, "latency_queue"),
        ({"cells": b"\x80\x00"}, "cells"),
        ({"cells": bytes(MAX_CELLS + 1)}, "cells"),
        ({"correct_by_confidence": bytes(19)}, "correct_by_confidence"),
        ({"correct_by_confidence": bytes(19) + b"\x01"}, "correct_by_confidence"),
    ],
)
def test_a_window_that_contradicts_itself_is_refused_by_name(more: dict[str, object], field: str) -> None:
    with pytest.raises(ContractError) as caught:
        example(**more)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"repeated": -1}, "window.repeated"),
        ({"span": 0}, "window.span"),
        ({"boot_id": "x"}, "window.boot_id"),
        ({"digest": "D" * 16}, "window.digest"),
        ({"clock": "sundial"}, "window.clock"),
        ({"rejected": {"": 1}}, "window.rejected"),
        ({"rejected": {"größe": 1}}, "window.rejected"),
        ({"rejected": {"x" * 65: 1}}, "window.rejected"),
        ({"rejected": {str(i): 1 for i in range(33)}}, "window.rejected"),
        ({"outcomes": {str(i): Hits() for i in range(17)}}, "window.outcomes"),
        ({"usage": Usage(bytes_sent=2**53 + 1)}, "window.usage.bytes_sent"),
        ({"usage": Usage(rss_kb=Gauge(0, -1, 0))}, "window.usage.rss_kb.sum"),
        ({"next_due_s": 2**70}, "window"),
        ({"context": "\ud800"}, "window"),
        ({"n": True}, "window.n"),
        ({"n": 1.5}, "window.n"),
        ({"n": float("nan"), "n_monitored": float("nan")}, "window.n"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(more: dict[str, object], field: str) -> None:
    with pytest.raises(ContractError) as caught:
        encode_window(example(**more))
    assert caught.value.field == field


def test_compression_is_used_only_where_it_is_shorter() -> None:
    tiny = Report(spool_id="0" * 16, seq=1, window=example())
    noise = np.random.default_rng(1).integers(0, 2**40, MAX_CELLS)
    big = Report(spool_id="0" * 16, seq=1, window=example(cells=pack(noise)))
    for one in (tiny, big):
        assert len(encode_report(one, compress=True)) <= len(encode_report(one))
        assert decode_report(encode_report(one, compress=True)) == one


def test_hits_beyond_trials_are_refused() -> None:
    with pytest.raises(ContractError, match="hits"):
        Hits(1, 2)


def test_the_version_of_tomorrow_is_refused_and_its_further_fields_are_not() -> None:
    one = Report(spool_id="0" * 16, seq=1, window=example())
    fields = msgspec.msgpack.decode(encode_report(one))
    assert decode_report(msgspec.msgpack.encode([*fields, "new", {"more": [1.5]}])) == one
    with pytest.raises(ContractError, match=r"report\.v"):
        decode_report(msgspec.msgpack.encode([report.VERSION + 1, *fields[1:]]))


def test_packing_shortens_a_usual_report_by_a_fifth_and_streams_of_zlib_are_read() -> None:
    rng = np.random.default_rng(1)
    ids = [rng.bytes(8).hex() for _ in range(4)]
    usual = example(
        boot_id=ids[0],
        digest=ids[1],
        edge_hash=ids[2],
        clock="synced",
        wall_start_ms=1_795_000_000_000,
        n=60,
        n_monitored=60,
        cells=pack(rng.poisson(5, 286)),
        latency_run=pack_grid(grid_counts(rng.integers(40_000, 60_000, 60))),
        usage=Usage(rss_kb=Gauge(1, 51_000, 51_000), cpu_ms=700, bytes_sent=900, bytes_written=8192),
    )
    one = Report(spool_id=ids[3], seq=9, window=usual)
    stream = zlib.compress(encode_report(one), 9)
    assert len(encode_report(one, compress=True)) < 0.82 * len(stream)
    assert decode_report(stream) == decode_report(encode_report(one, compress=True)) == one


def test_the_dictionary_is_the_one_that_spools_were_packed_with() -> None:
    assert zlib.adler32(DICTIONARY) == 1555460053


@given(windows(top=MAX_COUNT, free=True), st.integers(1, 2**53))
def test_what_was_packed_comes_back_byte_by_byte(one: Window, seq: int) -> None:
    raw = encode_report(Report(spool_id="0123456789abcdef", seq=seq, window=one))
    assert plain(packed(raw), name="report", limit=REPORT_BYTES) == raw
