"""A hub without a network: its two databases, its blobs, and devices that do as they are told."""

from __future__ import annotations

import copy
import itertools
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.baseline import decode_baseline, per_channel
from edgewright_contracts.binning import pack, pack_grid
from edgewright_contracts.desired import Config, Desired, decode_desired
from edgewright_contracts.package import Package
from edgewright_hub.accuracy import labels
from edgewright_hub.registry.registry import Registry
from edgewright_hub.rollouts.conductor import Conductor
from edgewright_hub.rollouts.gates import GatePolicy
from edgewright_hub.rollouts.processes import Margin
from edgewright_hub.rollouts.specification import RolloutSpec
from edgewright_hub.storage import control, telemetry
from edgewright_hub.storage.control import open_control
from edgewright_hub.storage.telemetry import open_telemetry

from . import postgresql

QUICK = GatePolicy(slow=None, label=Margin(r0=1.2, r1=2.0), error=Margin(r0=1.2, r1=2.0, delta=0.02), soak_windows=2)
HOUR = 3600_000
SETTINGS = Config(window_s=30.0, rollout_window_s=5.0)


def draw_cells(package: Package, n: int, rng: np.random.Generator, *, shift: bool = False) -> np.ndarray:
    """Cells of n draws from the package's own reference; shifted: the input's upper half only."""
    base = decode_baseline(package.read("variants/onnx-fp32/baseline.msgpack"))
    out = []
    for channel, counts in zip(base.channels, per_channel(base.channels, base.cells()), strict=True):
        weights = counts.astype(float)
        if shift and channel.group == "input":
            weights[: weights.size // 2] *= 0.3
        out.append(rng.multinomial(n, weights / weights.sum()))
        if channel.kind == "score":
            out.append(np.zeros(1, np.int64))
    return np.concatenate(out)


@dataclass
class House:
    place: Path
    packages: dict[str, Package]
    sent: list[tuple[str, Desired]] = field(default_factory=list)
    now: int = 1_760_000_000_000
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    rng: Any = field(default_factory=lambda: np.random.default_rng(1))

    def __post_init__(self) -> None:
        stored = postgresql.chosen(self.place)
        self.control, self.telemetry = open_control(stored.control), open_telemetry(stored.telemetry)
        for engine in (self.control, self.telemetry):
            weakref.finalize(self, engine.dispose)
        self.registry = Registry(self.place / "repo", self.place / "keys", self.control)
        self.registry.blobs.mkdir(parents=True, exist_ok=True)
        self.edges = {
            version: decode_baseline(package.read("variants/onnx-fp32/baseline.msgpack")).edge_hash
            for version, package in self.packages.items()
        }
        for package in self.packages.values():
            for name, ref in package.manifest.files.items():
                (self.registry.blobs / ref.sha256).write_bytes(package.read(name))
        self.restart()

    def restart(self) -> None:
        self.conductor = Conductor(
            self.control, self.telemetry, self.registry, lambda *said: self.publish(*said), SETTINGS
        )

    def publish(self, device: str, kind: str, body: bytes, retain: bool) -> None:
        assert (kind, retain) == ("desired", True)
        self.sent.append((device, decode_desired(body)))

    def publish_package(self, version: str, state: str = "allowed") -> None:
        package = self.packages[version]
        row = {"name": "digits", "version": version, "digest": package.digest, "state": state, "published_ms": self.now,
               "manifest": msgspec.to_builtins(package.manifest)}  # fmt: skip
        with self.control.begin() as connection:
            connection.execute(control.packages.insert().values(**row))

    def enrol(self, *devices: str, fleet: str = "lab") -> None:
        with self.control.begin() as c, self.telemetry.begin() as t:
            for device in devices:
                c.execute(
                    control.devices.insert().values(
                        id=device, fleet=fleet, enrolled_ms=self.now, serial="0", state="enrolled"
                    )
                )
                t.execute(
                    telemetry.devices.insert().values(
                        device=device, online=True, boot_id="0" * 16, connection=1, last_seen_ms=self.now,
                        next_due_ms=self.now + 1000 * HOUR,
                    )
                )  # fmt: skip

    def settle(self, devices: list[str], windows: int = 10) -> House:
        """All versions are published; the devices are enrolled and have run the first for so many windows."""
        for version in self.packages:
            self.publish_package(version)
        self.enrol(*devices)
        self.start(next(iter(self.packages)), stages=("100%",))
        self.live(devices, 20, until="done")
        self.live(devices, windows)
        return self

    def put(self, device: str, site: str, **tags: str) -> None:
        """Somebody says where the device is."""
        mine = control.devices.update().where(control.devices.c.id == device)
        with self.control.begin() as connection:
            connection.execute(mine.values(attributes={"site": site, "tags": tags}))

    def wanted(self, device: str) -> Desired | None:
        with self.control.connect() as c:
            row = c.execute(sa.select(control.desired.c.document).where(control.desired.c.device == device)).scalar()
        return msgspec.convert(row, Desired) if row else None

    def digest(self, device: str) -> str | None:
        document = self.wanted(device)
        return document.models[0].digest if document and document.models else None

    def version(self, device: str) -> str:
        return next((v for v, p in self.packages.items() if p.digest == self.digest(device)), "")

    def copy(self, place: Path) -> House:
        """The same house in another place; this one must not be used afterwards except to copy it again."""
        self.control.dispose()
        self.telemetry.dispose()
        shutil.copytree(self.place, place, dirs_exist_ok=True)
        postgresql.copied(place)
        at = next(self.numbers)
        self.numbers = itertools.count(at)
        return House(place, self.packages, list(self.sent), self.now, itertools.count(at), copy.deepcopy(self.rng))

    def window(self, device: str, version: str, **more: Any) -> None:
        self.report(self.row(device, version, **more))

    def row(
        self, device: str, version: str, *, n: int = 60, cells: np.ndarray | None = None, **more: Any
    ) -> dict[str, Any]:
        package = self.packages[version]
        grid = np.zeros(401, np.int64)
        grid[200] = n
        row: dict[str, Any] = {
            "device": device, "spool_id": "0" * 16, "seq": next(self.numbers), "arrived_ms": self.now,
            "start_ms": self.now - 5000, "placed": "wall", "mono_start_ms": 0, "mono_end_ms": 5000, "boot_id": "0" * 16,
            "cohort": "lab", "digest": package.digest[:16], "variant": "onnx-fp32", "context": "",
            "edge_hash": self.edges[version], "phase": "normal", "rollout": "", "n": n, "n_monitored": 0, "errors": 0,
            "rejected": 0, "labels_n": 0, "labels_wrong": 0, "latency_total": pack_grid(grid),
            "cells": b"" if cells is None else pack(cells), "body": b"",
        } | more  # fmt: skip
        return row

    def report(self, *rows: dict[str, Any]) -> None:
        """Windows arrive, in one transaction."""
        d = telemetry.devices.c
        with self.telemetry.begin() as connection:
            connection.execute(telemetry.windows.insert(), rows)
            for row in rows:
                newest = {name: row[name] for name in ("digest", "variant", "phase", "rollout")}
                totals = {"windows": d.windows + 1, "inferences": d.inferences + row["n"]}
                mine = telemetry.devices.update().where(d.device == row["device"])
                connection.execute(mine.values(**newest, **totals))

    def event(self, device: str, version: str, before: str, after: str, **more: Any) -> None:
        row = {
            "device": device, "spool_id": "0" * 16, "seq": next(self.numbers), "arrived_ms": self.now,
            "at_ms": self.now, "boot_id": "0" * 16, "mono_ms": 0, "model": "digits",
            "digest": self.packages[version].digest, "variant": "",
            "rollout": "", "before": before, "after": after, "reason": "", "failure": None, "attempt": 1, "log": "",
        } | more  # fmt: skip
        with self.telemetry.begin() as connection:
            connection.execute(telemetry.events.insert().values(**row))

    def tick(self) -> bool:
        """What a hub does once a second; true when there is more to do."""
        more = self.conductor.tick(self.now) | labels.tick(self.control, self.telemetry)
        return self.conductor.drift.tick(self.now) or more

    def live(
        self, devices: list[str], ticks: int, *, wrong: Callable[[str], float] = lambda _: 0.05, until: str = ""
    ) -> dict[str, Any]:
        """Devices run what they are told and report every five seconds; `wrong`: share of wrong labels by version."""
        for _ in range(ticks):
            self.now += 5000
            rows = []
            for device in devices:
                version = self.version(device)
                if version:
                    labels_wrong = int(self.rng.binomial(20, wrong(version)))
                    rows.append(self.row(device, version, labels_n=20, labels_wrong=labels_wrong))
            if rows:
                self.report(*rows)
            self.tick()
            newest = self.conductor.rollouts()[0]
            if until and newest["state"] == until:
                break
        return newest

    def start(self, version: str, *, force: bool = False, **more: Any) -> str:
        spec = {"model": "digits", "version": version, "gate": QUICK, "window_s": 5.0, **more}
        return self.conductor.create_rollout(RolloutSpec(**spec), who="tests", now_ms=self.now, force=force)
