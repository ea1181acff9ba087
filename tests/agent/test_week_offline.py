"""Broker and hub are away for a week, the spool holds 1 MiB, the device reboots: then the hub has what was counted.

The hub is the real one's ingest on SQLite; time is virtual.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_agent.delivery.spool import Spool, Terms
from edgewright_contracts import binning, report
from edgewright_contracts.birth import Unclean
from edgewright_contracts.event import Event
from edgewright_contracts.report import Gauge, Hits, Usage, Window
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.telemetry import open_telemetry
from sim import wire
from sim.disk import SimDisk

ROOT = Path("/home/spool")
CAP = 1 << 20
WINDOW_S = 600
WEEK_S = 7 * 86_400
BEGIN_MS = 1_800_000_000_000
MODELS = (("a" * 16, ("", "night")), ("b" * 16, ("",)))
DEV = "dev-1"


class Device:
    """Counts in windows of ten minutes, and reboots when it is told to; `clock` says when it knows the time."""

    def __init__(self, *, clock: str) -> None:
        self.disk, self.clock, self.rng = SimDisk(), clock, random.Random(7)
        self.cells = [binning.pack(np.random.default_rng(i).integers(0, 40, 120)) for i in range(20)]
        self.grids = [binning.pack_grid(_grid(i)) for i in range(20)]
        self.totals: Counter[tuple[str, str]] = Counter()
        self.boots, self.now_s, self.booted_s = 0, 0, 0
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.booted_s = self.now_s
        new_id = f"{self.boots:016x}"
        self.spool = Spool(self.disk, ROOT, new_id=lambda: new_id, cap=CAP)
        self.spool.begin(self.opened())

    def opened(self) -> Unclean:
        return Unclean(boot_id=f"{self.boots:016x}", open_since_mono_ms=self.mono_ms)

    @property
    def mono_ms(self) -> int:
        return (self.now_s - self.booted_s) * 1000

    def flap(self) -> None:
        """A breaker opens and closes."""
        for before, after in (("closed", "open"), ("open", "closed")):
            self.spool.event(
                Event(
                    spool_id="0" * 16, seq=1, boot_id=f"{self.boots:016x}", mono_ms=self.mono_ms, wall_ms=None,
                    model="digits", digest="a" * 64, before=before, after=after, reason=300 * "x",
                )
            )  # fmt: skip

    def pass_window(self, *, online: bool = False) -> None:
        start_ms, wall = self.mono_ms, BEGIN_MS + self.now_s * 1000
        self.now_s += WINDOW_S
        known = self.clock == "always" or (self.clock == "some boots" and self.boots % 2 == 0)
        sealed = []
        for digest, contexts in MODELS:
            for context in contexts:
                n = self.rng.randrange(200, 300)
                self.totals[digest, context] += n
                sealed.append(
                    Window(
                        boot_id=f"{self.boots:016x}", mono_start_ms=start_ms, mono_end_ms=self.mono_ms,
                        wall_start_ms=wall if known else None, clock="synced" if known else "unknown",
                        next_due_s=600, digest=digest, variant="onnx-int8", context=context, edge_hash="e" * 16,
                        n=n, n_monitored=n, cells=self.rng.choice(self.cells),
                        latency_total=self.rng.choice(self.grids),
                        errors={"timeout": n // 100}, outcomes={"correct": Hits(n // 2, n // 3)},
                        usage=Usage(rss_kb=Gauge(1, 60_000, 60_000), cpu_ms=200, bytes_written=900),
                    )
                )  # fmt: skip
        self.spool.seal(sealed, self.opened(), Terms(compress=True) if online else None)


def _grid(seed: int) -> np.ndarray:
    grid = np.zeros(401, np.int64)
    at = np.random.default_rng(seed).normal(200, 3, 200).astype(int)
    np.add.at(grid, at, 1)
    return grid


def deliver(device: Device, engine: sa.Engine) -> None:
    """Offers and acknowledgements until nothing waits; every third message comes twice, every fifth at first not."""
    now_ms = BEGIN_MS + device.now_s * 1000
    numbers = random.Random(1)
    for turn in range(10_000):
        offers = device.spool.offer(Terms(compress=True))
        if not offers:
            return
        messages = [wire.message(DEV, offer.kind, offer.payload, now_ms + turn) for offer in offers]
        lossy = [m for m in messages if numbers.random() > 0.2] + messages[::3]
        for answer in commit(engine, lossy, lambda _: "lab"):
            assert not answer.renew
            device.spool.ack(answer.ack)
    raise AssertionError("never empty")


@pytest.mark.parametrize(("clock", "reboots", "flaps"), [("always", 0, 0), ("some boots", 60, 1000)])
def test_after_a_week_offline_the_hubs_totals_are_the_devices(tmp_path, clock, reboots, flaps):
    device = Device(clock=clock)
    engine = open_telemetry(tmp_path / "telemetry.db")
    deliver(device, engine)
    windows = WEEK_S // WINDOW_S
    for number in range(windows):
        if reboots and number % (windows // reboots) == windows // reboots - 1:
            if number % 2:
                device.spool.close()
            else:
                device.disk.crash("least")
            device.boot()
        device.pass_window()
        if number < flaps:
            device.flap()
        assert device.spool.state.held_bytes <= CAP
    dropped = device.spool.state.dropped  # events alone, which is seen below
    assert (dropped > 0) == (flaps > 0)
    assert device.disk.written < 12 * CAP
    deliver(device, engine)
    w = telemetry.windows.c
    with engine.connect() as connection:
        found = connection.execute(sa.select(w.digest, w.context, sa.func.sum(w.n)).group_by(w.digest, w.context)).all()
        bodies = [body for (body,) in connection.execute(sa.select(w.body))]
        told = connection.execute(sa.select(sa.func.count()).select_from(telemetry.events)).scalar_one()
        rolled = connection.execute(
            sa.select(sa.func.sum(telemetry.rollups.c.n)).where(telemetry.rollups.c.tier_s == 3600)
        ).scalar_one()
    engine.dispose()
    assert {(digest, context): n for digest, context, n in found} == device.totals
    assert rolled == device.totals.total()
    assert told == 2 * flaps - dropped
    reports = [report.decode_report(body).window for body in bodies]
    assert sum(one.span for one in reports) == windows * 3
    assert sum(one.usage.cpu_ms for one in reports) == windows * 3 * 200
    assert sum(one.outcomes["correct"].n for one in reports) <= device.totals.total() // 2
    if clock == "always":
        assert all(one.wall_start_ms is not None and one.clock == "synced" for one in reports)
