"""What each part of a report costs on the wire, and what a day of reports does, at windows of 60 s, 300 s and 15 min.

    python scripts/measure_report.py [--every SECONDS] [--device ID]

tests/data/tiny-1.0.0.ewp (22 channels) answers real digits in this process, one every 0.1 s, so that latencies are
those of a processor that rests in between; about two minutes. Windows are cut out of its 1,050 rows as if one had come
each second. A part costs what the packed report is shorter without it; parts help one another, and do not add up.

A day counts MQTT as it is sent: reports and their PUBACKs, acknowledgements and theirs, pings of a link that is not
metered. One connection (about 1.5 kB, its birth among them) comes on top: benchmarks/agent_footprint.py measures all of
it with a real hub.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewright_agent.clock import SystemClock
from edgewright_agent.delivery.coarsening import told
from edgewright_agent.delivery.keepalive import FIXED_S
from edgewright_agent.inference.model import Active, Model
from edgewright_agent.telemetry.counts import Clocks
from edgewright_agent.telemetry.meter import Meter
from edgewright_agent.telemetry.rows import Rows, Subject
from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.codec import REPORT_BYTES, encode
from edgewright_contracts.desired import ACK_AFTER, ACK_S, Ack, encode_ack
from edgewright_contracts.package import unpack
from edgewright_contracts.packing import pack, plain
from edgewright_contracts.report import Gauge, Report, Usage, Window
from edgewright_contracts.topics import topic
from edgewright_models.digits import data
from edgewright_runtime.runtime import open_session

PACKAGE = Path(__file__).resolve().parent.parent / "tests" / "data" / "tiny-1.0.0.ewp"
LENGTHS = (60, 300, 900)  # seconds, and inferences, of a window
WINDOWS = 8  # of each length
SKIPPED = 50  # the first rows: caches are cold
PARTS: dict[str, dict[str, Any]] = {
    "cells": {"cells": b""},
    "run": {"latency_run": b""},
    "total": {"latency_total": b""},
    "queue": {"latency_queue": b""},
    "usage": {"usage": Usage()},
    "times": {"mono_start_ms": 0, "mono_end_ms": 0, "wall_start_ms": None},
}


def answered(folder: Path, every_s: float) -> tuple[Subject, list[tuple[Any, ...]]]:
    """A package and the rows that the agent's hot path leaves of its answers."""
    package = unpack(PACKAGE, folder / "package")
    manifest = package.manifest
    variant = next(v for v in manifest.variants if v.format == "tflite")
    subject = Subject("tiny", manifest, package.digest, variant, decode_baseline(package.read(variant.baseline)))
    session = open_session(package.root / variant.model, "litert", inputs=manifest.inputs, outputs=manifest.outputs)
    meter, rows = Meter(threading.Event()), []
    model = Model("tiny", meter, SystemClock(), itertools.count(1))
    model.switch(Active(subject, session))
    assert model.active is not None
    keep = model.active.rows.add

    def add(*row: Any) -> None:
        rows.append(row)
        keep(*row)

    model.active.rows.add = add  # type: ignore[assignment,method-assign]
    images, _ = data.feed(np.random.default_rng(0), 200)
    for at in range(SKIPPED + LENGTHS[-1] + 150):
        model.predict({manifest.inputs[0].name: images[at % len(images)]})
        if at % 20 == 0:
            meter.drain()
        time.sleep(every_s)
    return subject, rows[SKIPPED:]


def windows(subject: Subject, rows: list[tuple[Any, ...]], n: int) -> list[Window]:
    rng, owner, out = np.random.default_rng(n), threading.Event(), []
    for number in range(WINDOWS):
        meter = Meter(threading.Event())
        into: Rows = meter.rows(subject, owner)
        first = int(rng.integers(len(rows) - n))
        for at, row in enumerate(rows[first : first + n]):
            into.add(*row)
            if at % 20 == 0:
                meter.drain()
        meter.drain()
        start, looks = 18_000_037 + number * n * 1000, n // 30
        cpu, kb = rng.integers(3, 9, looks), 52_000 + int(rng.integers(0, 300))
        usage = Usage(
            rss_kb=Gauge(looks, kb * looks, kb + 8),
            cpu_permille=Gauge(looks, int(cpu.sum()), int(cpu.max())),
            cpu_ms=n + int(rng.integers(0, 30)),
            bytes_sent=430,
            bytes_received=4,
            bytes_written=8192,
        )
        clocks = Clocks(
            boot_id="f4a9c01d77e2b360", start_ms=start, end_ms=start + n * 1000 + 1,
            wall_start_ms=1_795_000_000_000 + start, clock="synced", next_due_s=2 * n,
        )  # fmt: skip
        out.append(told(meter.take([subject], clocks, usage)[0][1]))
    return out


def size(window: Window, seq: int) -> int:
    """Bytes of the packed report."""
    return len(pack(_raw(window, seq)))


def _raw(window: Window, seq: int) -> bytes:
    report = Report(spool_id="9e3779b97f4a7c15", seq=seq, window=window)
    return encode(report, name="report", limit=REPORT_BYTES, wire="msgpack")


def published(name: str, payload: float) -> float:
    """A PUBLISH of QoS 1 with its PUBACK: type, length, the topic's length, packet id; MQTT 3.1.1, section 3.3."""
    body = 2 + len(name) + 2 + payload
    return 1 + (1 if body < 128 else 2) + body + 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two answers")
    parser.add_argument("--device", default="device-litert", help="its id is in every topic")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subject, rows = answered(Path(folder), options.every)
    ack = len(encode_ack(Ack("9e3779b97f4a7c15", 12345, 0, "f4a9c01d77e2b360.1")))
    for n in LENGTHS:
        each = list(enumerate(windows(subject, rows, n), 100))
        raws = [_raw(window, seq) for seq, window in each]
        assert [plain(pack(raw), name="report", limit=REPORT_BYTES) for raw in raws] == raws
        whole = float(np.mean([size(window, seq) for seq, window in each]))
        shares = {
            part: whole - np.mean([size(msgspec.structs.replace(window, **without), seq) for seq, window in each])
            for part, without in PARTS.items()
        }
        zlibs, plains = np.mean([len(zlib.compress(raw, 9)) for raw in raws]), np.mean([len(raw) for raw in raws])
        print(f"{n} s: a report is {whole:.0f} B packed, {zlibs:.0f} by zlib, {plains:.0f} of MessagePack")
        print("   without: " + ", ".join(f"{part} -{cost:.0f}" for part, cost in shares.items()))
        count = 86400 / n
        acks = count / min(ACK_AFTER, -(-ACK_S // n))
        day = {
            "reports": count * published(topic(options.device, "report"), whole),
            "acks": acks * published(topic(options.device, "ack"), ack),
            "pings": 4 * count * max(0, -(-n // FIXED_S) - 1),
        }
        parts = ", ".join(f"{part} {cost / 1e3:.1f}" for part, cost in day.items())
        print(f"   a day: {sum(day.values()) / 1e3:.1f} kB, of which {parts}")


if __name__ == "__main__":
    main()
