"""The export against a real server, VictoriaMetrics of Debian: it takes what InfluxDB's API takes, and has no Flux.

It keeps milliseconds and adds the field to the measurement's name; with -dedup.minScrapeInterval=1ms it keeps one of
two equal samples, as InfluxDB does by itself. It takes lines that it cannot read for none and says 204 all the same, so
what it then holds is compared with a count of the test's own.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgewright_contracts.binning import pack_grid
from edgewright_contracts.package import Package
from edgewright_contracts.report import Usage
from edgewright_hub.exports import progress, sink
from edgewright_hub.exports.destination import Destination, open_sink
from edgewright_hub.exports.sink import Sink
from edgewright_hub.fleet.attributes import Attributes
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import control
from sim import wire
from sim.house import House
from sim.influx import Victoria
from sim.reports import grid_counts

DEVICES = ("pi-0", "pi-1", "pi-2")
FIELDS = ("inferences", "errors", "cpu_ms", "seconds")


@pytest.fixture
def victoria(tmp_path: Path, unused_port: int) -> Iterator[Victoria]:
    one = Victoria(tmp_path / "victoria", unused_port)
    yield one
    one.stop()


class Fleet:
    """Devices that report, and what they have counted in all."""

    def __init__(self, house: House) -> None:
        self.house, self.random, self.seq = house, random.Random(5), 0
        self.sums: dict[str, Counter[str]] = {name: Counter() for name in FIELDS}
        self.windows = 0

    def report(self, rounds: int) -> None:
        messages = []
        for _ in range(rounds):
            self.seq += 1
            self.house.now += 10_000
            for device in DEVICES:
                n = self.random.randrange(1, 500)
                errors, cpu_ms = self.random.randrange(n), self.random.randrange(10_000)
                clock: dict[str, Any] = {} if device == "pi-2" else {"wall_start_ms": self.house.now - 10_000}
                body = wire.report_bytes(
                    self.seq, n=n, n_monitored=0, errors={"broken": errors}, mono_end_ms=10_000,
                    usage=Usage(cpu_ms=cpu_ms), latency_total=pack_grid(grid_counts([2_000_000] * n)), **clock,
                )  # fmt: skip
                messages.append(wire.message(device, "report", body, self.house.now))
                self.windows += 1
                said = {"inferences": n, "errors": errors, "cpu_ms": cpu_ms, "seconds": 10}
                for name, number in said.items():
                    self.sums[name][device] += number
        commit(self.house.telemetry, messages, lambda _: "lab")


@pytest.fixture
def fleet(tmp_path: Path, packages: dict[str, Package]) -> Fleet:
    house = House(tmp_path / "house", packages)
    house.enrol(*DEVICES)
    return Fleet(house)


def exporting(fleet: Fleet, url: str) -> Sink:
    house = fleet.house
    read = house.conductor.roster.read
    one = open_sink(Destination(url, "o", "b"), house.control, house.telemetry, house.place, read, lambda: house.now)
    assert one is not None
    return one


def until_done(one: Sink) -> None:
    while not one.attempt():
        pass
    assert one.told.said == ""


def arrived(victoria: Victoria, name: str) -> tuple[dict[str, float], int]:
    """Sums by device, and how many points."""
    sums: dict[str, float] = defaultdict(float)
    number = 0
    for (_, tags), values in victoria.export(f"edgewright_window_{name}").items():
        sums[dict(tags)["device"]] += sum(values.values())
        number += len(values)
    return dict(sums), number


def check(fleet: Fleet, victoria: Victoria) -> None:
    for name in FIELDS:
        assert arrived(victoria, name) == (dict(fleet.sums[name]), fleet.windows)


def test_an_outage_and_a_kill_between_write_and_cursor_lose_and_double_nothing(
    fleet: Fleet, victoria: Victoria, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "BATCH", 50)
    one = exporting(fleet, victoria.url)
    fleet.report(40)
    until_done(one)
    check(fleet, victoria)
    victoria.stop()
    for _ in range(3):
        fleet.report(30)
        assert one.attempt() >= 1
    assert one.told.failures == 3
    victoria.start()
    with monkeypatch.context() as patch:  # killed after the server took a batch, before the cursor moved
        patch.setattr(progress, "advance", lambda *_: 1 / 0)
        one.attempt()
    fleet.report(5)
    until_done(exporting(fleet, victoria.url))
    check(fleet, victoria)
    with fleet.house.telemetry.connect() as connection:
        assert progress.progress(connection) == progress.Progress(fleet.windows, 0, None, 0)


def test_tags_and_units_arrive_as_they_are_and_promql_of_the_documentation_answers(
    fleet: Fleet, victoria: Victoria
) -> None:
    house = fleet.house
    site = 'Köln, "Halle 3" = Süd #1'
    with house.control.begin() as connection:
        said = {"site": site, "hardware": "pi\\4"}
        mine = control.devices.update().where(control.devices.c.id == "pi-0")
        connection.execute(mine.values(attributes=said))
    assert Attributes(**said).site == site
    fleet.report(6)
    until_done(exporting(fleet, victoria.url))
    found = victoria.export('edgewright_window_inferences{device="pi-0"}')
    (((_, tags), values),) = found.items()
    assert dict(tags) | {"db": "b"} == {
        "db": "b", "device": "pi-0", "fleet": "lab", "site": site, "hardware": "pi/4", "digest": "d" * 16,
        "variant": "onnx-fp32", "phase": "normal",
    }  # fmt: skip
    assert (min(values), max(values)) == (house.now - 60_000, house.now - 10_000)
    latency = victoria.export('edgewright_window_latency_p95_ms{device="pi-0"}')
    assert next(iter(next(iter(latency.values())).values())) == pytest.approx(2, rel=0.025)
    rate = (
        "sum by (site) (sum_over_time(edgewright_window_errors[1h]))"
        " / sum by (site) (sum_over_time(edgewright_window_inferences[1h]))"
    )
    (one,) = [one for one in victoria.ask(rate, house.now + 2000) if one["metric"].get("site") == site]
    assert float(one["value"][1]) == pytest.approx(fleet.sums["errors"]["pi-0"] / fleet.sums["inferences"]["pi-0"])


def test_a_batch_of_ten_thousand_points_arrives_whole(fleet: Fleet, victoria: Victoria) -> None:
    target = exporting(fleet, victoria.url)._delivery
    target.give([f"m,device=d-{i % 100} n={i}i {1_760_000_000_000_000_000 + i // 100 * 10**6}" for i in range(10_000)])
    found = victoria.export("m_n")
    assert sum(len(values) for values in found.values()) == 10_000
    assert sum(sum(values.values()) for values in found.values()) == sum(range(10_000))
