"""How long the answer takes to: how far has each cohort moved in the last 24 hours?"""

from __future__ import annotations

import hashlib
import statistics
import time
from pathlib import Path

import msgspec
import numpy as np

from edgewright_contracts import report, topics
from edgewright_contracts.baseline import encode_baseline, make
from edgewright_contracts.channels import Channel, Source
from edgewright_contracts.manifest import FileRef, digest, encode_manifest
from edgewright_hub.drift import days
from edgewright_hub.ingest.messages import Message
from edgewright_hub.ingest.writer import commit
from edgewright_hub.simulation.inputs import Inputs, Published, row
from edgewright_hub.storage import control
from edgewright_hub.storage.telemetry import open_telemetry

from .fleet import BODIES, CELLS, CHANNELS, FLEETS, Bodies, Plan, fleets, name

REFERENCE = 20_000  # rows


def drift_query(folder: Path, plan: Plan) -> float:
    """Milliseconds of what the hub does for `/api/v1/drift/cohorts`, median of 9: it reads the hours of 20 fleets in 3
    contexts and compares each of 22 channels with the reference of the package."""
    control_engine, engine = control.open_control(folder / "drift-hub.db"), open_telemetry(folder / "drift.db")
    now, rng = 1_760_000_000_000, np.random.default_rng(1)
    blobs = folder / "blobs"
    blobs.mkdir()
    package, edges = _published(blobs, rng)
    with control_engine.begin() as connection:
        connection.execute(control.packages.insert().values(**row(package, now)))
    bodies, known = Bodies(), fleets(plan.devices)
    ran = {"digest": package.digest[:16], "variant": package.manifest.variants[0].id, "edge_hash": edges}
    for hour in range(30):  # each fleet reports in each hour and context: what 10,000 devices add to is as much
        at = now - (30 - hour) * 3600_000
        some = []
        for fleet in range(FLEETS):
            for turn, context in enumerate(("", "night", "rain")):
                window = msgspec.structs.replace(
                    bodies._windows[int(rng.integers(BODIES))], wall_start_ms=at, context=context, **ran
                )
                one = report.Report(spool_id=f"{fleet:016x}", seq=3 * hour + turn + 1, window=window)
                some.append(Message(topics.topic(name(fleet), "report"), msgspec.msgpack.encode(one), at + 61_000))
        commit(engine, some, known)
    took = []
    for _ in range(9):
        begun = time.perf_counter()
        found = days.by_cohort(control_engine, engine, blobs, now_ms=now)
        took.append((time.perf_counter() - begun) * 1000)
    assert len(found) == 3 * FLEETS
    engine.dispose()
    control_engine.dispose()
    return statistics.median(took)


def _published(blobs: Path, rng: np.random.Generator) -> tuple[Published, str]:
    """A package of the simulation with the channels of our reports, and their edge hash."""
    channels = tuple(
        Channel(
            name=f"x{i}", group="input", kind="numeric", source=Source(tensor="monitor", column=i),
            edges=tuple(map(float, range(CELLS - 2))),
        )
        for i in range(CHANNELS)
    )  # fmt: skip
    counts = rng.multinomial(REFERENCE, np.full(CELLS, 1 / CELLS), CHANNELS).ravel()
    baseline = make(channels, counts, REFERENCE)
    body = encode_baseline(baseline)
    sha256 = hashlib.sha256(body).hexdigest()
    (blobs / sha256).write_bytes(body)
    plain = Inputs(1, rng).publish("1.0.0", blobs, rng)
    (variant,) = plain.manifest.variants
    files = {**plain.manifest.files, variant.baseline: FileRef(sha256=sha256, size=len(body))}
    manifest = msgspec.structs.replace(plain.manifest, files=files)
    return Published(plain.version, digest(encode_manifest(manifest)), manifest), baseline.edge_hash
