"""A window becomes points that any reader of line protocol takes for the same, and no two of which share a place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright_contracts.binning import grid_quantile_ns, pack_grid, unpack_grid
from edgewright_contracts.report import Gauge, Usage
from edgewright_hub.exports.points import LATENCY, QUANTILES, Model, Place, line, lines, quantiles_ms, time_ns
from sim import wire
from sim.influx import parse

NOW = 1_760_000_000_000
COUNTED = {
    "inferences": 10, "monitored": 9, "errors": 1, "rejected": 2, "repeated": 3, "labels": 4, "labels_wrong": 1,
    "shadow": 5, "shadow_agree": 4,
}  # fmt: skip


def window(**changes: Any) -> Any:
    base = {
        "id": 1, "device": "pi-1", "spool_id": "00000000000000aa", "seq": 7, "arrived_ms": NOW,
        "start_ms": NOW - 60_000, "placed": "wall", "mono_start_ms": 0, "mono_end_ms": 60_500, "cohort": "lab",
        "digest": "d" * 16, "variant": "onnx-fp32", "context": "", "phase": "normal", "rollout": "", "n": 10,
        "n_monitored": 9, "errors": 1, "rejected": 2, "repeated": 3, "labels_n": 4, "labels_wrong": 1, "shadow_n": 5,
        "shadow_agree": 4, "latency_total": b"", "outcomes": {}, "body": b"",
    }  # fmt: skip
    return SimpleNamespace(**(base | changes))


def test_counts_are_integers_what_is_empty_is_absent_and_the_time_is_the_start() -> None:
    (text,) = lines([window()], {}, {})
    (measurement, tags), at_ns, fields = parse(text)
    assert measurement == "edgewright_window"
    assert dict(tags) == {
        "device": "pi-1", "fleet": "lab", "digest": "d" * 16, "variant": "onnx-fp32", "phase": "normal",
    }  # fmt: skip
    assert fields == {**COUNTED, "seconds": 60.5}
    assert all(isinstance(value, int) for name, value in fields.items() if name != "seconds")
    assert at_ns == (NOW - 60_000) * 1_000_000 + 0xAA + 7


def test_a_device_has_a_place_and_a_package_its_name() -> None:
    known = {"d" * 16: Model("digits", "1.2.0")}, {"pi-1": Place("Köln, Halle 3", "Pi 4 = B")}
    (_, tags), *_ = parse(lines([window(context="night")], *known)[0])
    assert {
        "site": "Köln, Halle 3", "hardware": "Pi 4 = B", "model": "digits", "version": "1.2.0", "context": "night",
    }.items() <= dict(tags).items()  # fmt: skip


def test_usage_is_in_units_and_what_was_not_measured_is_absent() -> None:
    usage = Usage(rss_kb=Gauge(2, 3000, 1600), temperature_dk=Gauge(2, 6263, 3231), cpu_permille=Gauge(4, 50, 20),
                  discharge_permille=Gauge(1, 250, 250), cpu_ms=70, bytes_sent=2**53)  # fmt: skip
    (text,) = lines([window(body=wire.report_bytes(7, usage=usage))], {}, {})
    fields = parse(text)[2]
    assert {name: fields[name] for name in fields.keys() - COUNTED - {"seconds"}} == {
        "memory_kb": 1500.0, "memory_kb_max": 1600.0, "temperature_c": 40.0, "temperature_c_max": 49.95,
        "cpu_percent": 1.25, "battery_percent_min": 75.0, "cpu_ms": 70, "bytes_sent": 2**53, "bytes_received": 0,
        "bytes_written": 0,
    }  # fmt: skip
    assert "memory_kb" not in lines([window(body=wire.report_bytes(7))], {}, {})[0]


def test_a_body_that_this_release_cannot_read_does_not_keep_the_counts_from_going() -> None:
    (text,) = lines([window(body=b"nonsense")], {}, {})
    assert parse(text)[2] == {**COUNTED, "seconds": 60.5}


def test_named_outcomes_are_points_of_their_own() -> None:
    first, *others = map(parse, lines([window(outcomes={"pick ok": [40, 38], "correct": (20, 19)})], {}, {}))
    assert [(tags[0], dict(tags[1])["outcome"], fields) for tags, _, fields in others] == [
        ("edgewright_outcome", "correct", {"n": 20, "hits": 19}),
        ("edgewright_outcome", "pick ok", {"n": 40, "hits": 38}),
    ]
    assert {at for _, at, _ in others} == {first[1]}


def test_quantiles_are_those_of_each_window_alone() -> None:
    rng = np.random.default_rng(1)
    grids = [np.where(rng.random(401) < 0.05, rng.integers(1, 2**20, 401), 0) for _ in range(50)]
    grids[7][:] = 0
    packed = [pack_grid(grid) for grid in grids]
    found = quantiles_ms(packed, [int(grid.sum()) for grid in grids])
    for data, ms in zip(packed, found.tolist(), strict=True):
        for q, one in zip(QUANTILES, ms, strict=True):
            alone = grid_quantile_ns(unpack_grid(data), q)
            assert one == pytest.approx(alone / 1e6, abs=1e-4) if alone is not None else np.isnan(one)
    texts = lines([window(latency_total=data, n=int(g.sum())) for data, g in zip(packed, grids, strict=True)], {}, {})
    assert [set(LATENCY) <= parse(text)[2].keys() for text in texts] == [i != 7 for i in range(50)]


def test_windows_placed_at_one_moment_have_their_own_times_even_in_milliseconds() -> None:
    rows = [window(seq=seq, placed="arrival", start_ms=NOW) for seq in range(1, 1001)]
    assert len({time_ns(row) // 1_000_000 for row in rows}) == 1000
    assert all(0 <= time_ns(row) - NOW * 1_000_000 < 10**9 for row in rows)
    assert time_ns(rows[3]) == time_ns(window(seq=4, placed="arrival", start_ms=NOW, id=999, arrived_ms=0))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12), st.text(alphabet="\\ ,=\"'\n\r\t#a", max_size=8))
def test_no_value_of_a_tag_breaks_a_line_or_becomes_another_tag(site: str, context: str) -> None:
    (text,) = lines([window(context=context)], {}, {"pi-1": Place(site, "pi")})
    (_, tags), at_ns, fields = parse(text)
    assert "\n" not in text
    assert dict(tags).keys() - {"site", "context"} == {"device", "fleet", "digest", "variant", "phase", "hardware"}
    assert (at_ns, fields["inferences"]) == (time_ns(window()), 10)
    if "\\" not in site and site.isprintable():
        assert dict(tags).get("site", "") == site.strip()


def test_what_is_not_finite_is_absent() -> None:
    text = line("m", {"device": "a"}, {"n": 2**53, "x": float("nan"), "y": float("inf"), "z": 1e-7, "w": 1e300}, 10**18)
    assert parse(text)[2] == {"n": 2**53, "z": 1e-7, "w": 1e300}
