"""A window as points of InfluxDB's line protocol. Pure.

    edgewright_window,device=…,fleet=…,site=…,hardware=…,model=…,version=…,digest=…,variant=…,context=…,phase=…,rollout=…
    edgewright_outcome,(the same),outcome=pick_ok n=40i,hits=38i

Guarantee: the same window, of a device that is in the same place, gives the same lines, so writing one twice changes
nothing; and two windows of a spool never give the same series and time, so none is written over another. Therefore the
time is the start of the window in nanoseconds, with the window's number and its spool's random id below the
millisecond. Windows without a clock, of which many may be placed at one moment, are also set apart by milliseconds:
their start is known no better.

Counts are integers, all else is a float; a field keeps its type for ever. What was not measured is absent, and so are
empty tags. Cost: 40 µs a window.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from influxdb_client.client.write.point import Point

from edgewright_contracts.binning import GRID_CELLS, GRID_EDGES_NS, GRID_GROWTH
from edgewright_contracts.codec import REPORT_BYTES, decode
from edgewright_contracts.errors import ContractError
from edgewright_contracts.packing import plain
from edgewright_contracts.report import Gauge, Usage
from edgewright_contracts.unpacking import ragged

from ..ingest.columns import UncheckedReport, grids

WINDOW: Final = "edgewright_window"
OUTCOME: Final = "edgewright_outcome"
# Field of the point, column of the window.
COUNTS: Final = {
    "inferences": "n", "monitored": "n_monitored", "errors": "errors", "rejected": "rejected", "repeated": "repeated",
    "labels": "labels_n", "labels_wrong": "labels_wrong", "shadow": "shadow_n", "shadow_agree": "shadow_agree",
}  # fmt: skip
LATENCY: Final = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
QUANTILES: Final = (0.5, 0.95, 0.99)
COLUMNS: Final = (
    "id", "device", "spool_id", "seq", "arrived_ms", "start_ms", "placed", "mono_start_ms", "mono_end_ms", "cohort",
    "digest", "variant", "context", "phase", "rollout", *COUNTS.values(), "latency_total", "outcomes", "body",
)  # fmt: skip
# Servers disagree on what a backslash before a comma means, and a line must never break.
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:/+-]*")  # means nothing in a line


class Model(NamedTuple):
    name: str
    version: str


class Place(NamedTuple):
    """Where and on what a device runs, as its operator or itself says."""

    site: str = ""
    hardware: str = ""


def lines(rows: Sequence[Any], models: Mapping[str, Model], places: Mapping[str, Place]) -> list[str]:
    """Of rows of telemetry.windows with COLUMNS. `models`: by the first 16 digits of a digest; `places`: by device."""
    latency = quantiles_ms([row.latency_total for row in rows], [row.n for row in rows])
    return [line for row, ms in zip(rows, latency.tolist(), strict=True) for line in _lines(row, ms, models, places)]


def _lines(
    row: Any, latency_ms: Sequence[float], models: Mapping[str, Model], places: Mapping[str, Place]
) -> Iterator[str]:
    model, place = models.get(row.digest, Model("", "")), places.get(row.device, Place())
    tags = {
        "context": row.context, "device": row.device, "digest": row.digest, "fleet": row.cohort,
        "hardware": place.hardware, "model": model.name, "phase": row.phase, "rollout": row.rollout,
        "site": place.site, "variant": row.variant, "version": model.version,
    }  # fmt: skip
    at_ns = time_ns(row)
    fields: dict[str, int | float] = {name: int(getattr(row, column)) for name, column in COUNTS.items()}
    fields["seconds"] = float(row.mono_end_ms - row.mono_start_ms) / 1000
    fields |= zip(LATENCY, latency_ms, strict=True)
    if row.body:
        fields |= _usage(row.body)
    yield line(WINDOW, tags, fields, at_ns)
    for name, (n, hits) in sorted(row.outcomes.items()):
        yield line(OUTCOME, {**tags, "outcome": name}, {"n": int(n), "hits": int(hits)}, at_ns)


def time_ns(row: Any) -> int:
    """Of the windows of one device, no two that hold the same have it in common."""
    place = int(row.spool_id, 16) + int(row.seq)
    apart_ms = place % 1000 if row.placed == "arrival" else 0
    return int((row.start_ms + apart_ms) * 1_000_000 + place % 1_000_000)


def line(measurement: str, tags: Mapping[str, str], fields: Mapping[str, int | float], at_ns: int) -> str:
    """Names are plain words; values of tags may be anything. What is empty or not finite is absent."""
    said = "".join(f",{name}={value}" for name, text in tags.items() if (value := escaped(text)))
    counted = ",".join(
        f"{name}={value}i" if isinstance(value, int) else f"{name}={value!r}"
        for name, value in fields.items()
        if math.isfinite(value)
    )
    return f"{measurement}{said} {counted} {at_ns}"


def escaped(text: str) -> str:
    """The value of a tag."""
    return text if _PLAIN.fullmatch(text) else _escaped(text)


@functools.lru_cache(1024)
def _escaped(text: str) -> str:
    point = Point("m").tag("t", _UNSAFE.sub("/", text).strip()).field("f", 1)
    return str(point.to_line_protocol().removeprefix("m").removesuffix(" f=1i").removeprefix(",t="))


def quantiles_ms(latency: Sequence[bytes], n: Sequence[int]) -> npt.NDArray[np.float64]:
    """float64[windows, QUANTILES] of packed grids, within 2.5 %, as `binning.grid_quantile_ns`; NaN of nothing."""
    grid = grids(ragged(latency), np.array(n, np.int64))
    counts = np.bincount(grid.owner * GRID_CELLS + grid.cell, grid.times, len(latency) * GRID_CELLS)
    reached = np.cumsum(counts.reshape(-1, GRID_CELLS), 1)
    total = reached[:, -1]
    rank = np.minimum(total - 1, np.floor(np.outer(QUANTILES, total)))
    cell = np.stack([(reached <= one[:, None]).sum(1) for one in rank], 1)
    ms = GRID_EDGES_NS[np.minimum(cell, GRID_CELLS - 1)] * GRID_GROWTH**0.5 / 1e6
    return np.where(total[:, None] > 0, np.round(ms, 4), np.nan)


def _usage(body: bytes) -> dict[str, int | float]:
    try:
        raw = plain(body, name="report", limit=REPORT_BYTES)
        report = decode(UncheckedReport, raw, name="report", limit=REPORT_BYTES, wire="msgpack")
    except ContractError:  # it was read when it was counted, so by a newer release; the counts shall not wait for it
        return {}
    usage: Usage = report.window.usage
    fields: dict[str, int | float] = {
        "cpu_ms": usage.cpu_ms,
        "bytes_sent": usage.bytes_sent,
        "bytes_received": usage.bytes_received,
        "bytes_written": usage.bytes_written,
    }
    if usage.rss_kb.n:
        fields |= {"memory_kb": _mean(usage.rss_kb), "memory_kb_max": float(usage.rss_kb.max)}
    if usage.cpu_permille.n:
        fields["cpu_percent"] = round(_mean(usage.cpu_permille) / 10, 3)
    if usage.temperature_dk.n:
        fields["temperature_c"] = round(_mean(usage.temperature_dk) / 10 - 273.15, 2)
        fields["temperature_c_max"] = round(usage.temperature_dk.max / 10 - 273.15, 2)
    if usage.discharge_permille.n:
        fields["battery_percent_min"] = round(100 - usage.discharge_permille.max / 10, 1)
    return fields


def _mean(gauge: Gauge) -> float:
    return round(gauge.sum / gauge.n, 3)
