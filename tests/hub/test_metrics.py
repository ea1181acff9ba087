"""What Prometheus reads of the hub: in its format to the letter, without a sample for each device unless asked."""

from __future__ import annotations

import json
import re
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from edgewright_compiler.keys import init_keys
from edgewright_contracts.package import Package
from edgewright_hub.alerts.alerts import open_alert
from edgewright_hub.doctor import examine
from edgewright_hub.exports import exposition, progress
from edgewright_hub.exports.exposition import Family, one
from edgewright_hub.exports.influx import Away
from edgewright_hub.exports.sink import Sink
from edgewright_hub.fleet import tokens
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.places import Places, move
from edgewright_hub.storage.telemetry import open_telemetry
from edgewright_hub.web.api import Hub
from edgewright_hub.web.app import device_app, page_app
from sim import wire
from sim.house import House
from sim.influx import Influx, Victoria

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.+)\}})? ([-+]?(?:Inf|NaN|\d+(?:\.\d+)?(?:e[-+]?\d+)?))")


def read(text: str) -> Samples:
    """As https://prometheus.io/docs/instrumenting/exposition_formats says, and no more; asserts that it is so."""
    assert text.endswith("\n")
    out: Samples = {}
    kinds: dict[str, str] = {}
    name = ""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in kinds, f"{name} comes in two pieces"
            kind = re.fullmatch(rf"# TYPE {name} (counter|gauge)", next(lines))
            assert kind, line
            kinds[name] = kind[1]
            assert name.endswith("_total") == (kind[1] == "counter")
            continue
        found = _SAMPLE.fullmatch(line)
        assert found, line
        assert found[1] == name, f"{line} is not of {name}"
        labels = _LABEL.findall(found[2] or "")
        assert ",".join(f'{k}="{v}"' for k, v in labels) == (found[2] or ""), line
        plain = tuple((k, re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), v)) for k, v in labels)
        assert (name, plain) not in out, line
        out[name, plain] = float(found[3])
    return out


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    house = House(tmp_path, packages)
    house.publish_package("1.0.0")
    house.enrol("pi-0", "pi-1", "pi-2", fleet="lab")
    house.enrol("cam-0", fleet="hall")
    return house


def hub(house: House, *, open_to_read: bool = True, sink: Sink | None = None) -> Hub:
    return Hub(
        control=house.control, telemetry=house.telemetry, registry=house.registry, authority=None,
        conductor=house.conductor, broker=("127.0.0.1", 1883), repo="", ails=list, open_to_read=open_to_read, sink=sink,
    )  # type: ignore[arg-type]  # fmt: skip


def scrape(house: House, query: str = "", sink: Sink | None = None) -> Samples:
    answer = TestClient(page_app(hub(house, sink=sink)), base_url="http://127.0.0.1").get(f"/metrics{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, exposition.CONTENT_TYPE)
    return read(answer.text)


def of(samples: Samples, name: str) -> dict[tuple[str, ...], float]:
    """Values by the values of the labels."""
    return {tuple(value for _, value in labels): number for (one, labels), number in samples.items() if one == name}


def test_labels_and_numbers_are_written_as_prometheus_reads_them(tmp_path: Path, unused_port: int) -> None:
    odd = 'a "b" \\ c\nd,e={}é'
    families = [
        Family("x", "gauge", "Back\\slash\nand line.", [({"l": odd}, 1), ({"l": ""}, 2.5), ({}, 1e-9)]),
        Family("none", "gauge", "Nothing.", []),
        one("y_total", "counter", "Many.", 2**53 - 1),
        Family("z", "gauge", "Odd.", [({"v": "a"}, float("inf")), ({"v": "b"}, float("-inf"))]),
    ]
    text = exposition.text(families)
    samples = read(text)
    assert samples == {
        ("x", (("l", odd),)): 1, ("x", (("l", ""),)): 2.5, ("x", ()): 1e-9, ("y_total", ()): 2**53 - 1,
        ("z", (("v", "a"),)): float("inf"), ("z", (("v", "b"),)): float("-inf"),
    }  # fmt: skip
    assert exposition.text([one("n", "gauge", "None.", float("nan"))]).endswith("n NaN\n")
    victoria = Victoria(tmp_path, unused_port)
    try:
        request = urllib.request.Request(f"{victoria.url}/api/v1/import/prometheus", text.encode(), method="POST")
        urllib.request.urlopen(request, timeout=60).close()
        taken = {
            (name, tags): list(values.values()) for (name, tags), values in victoria.export('{__name__!="z"}').items()
        }
    finally:
        victoria.stop()
    assert taken["x", (("l", odd),)] == [1]
    assert taken["y_total", ()] == [2**53 - 1]


def test_devices_are_counted_by_fleet_and_state_and_none_is_named(house: House) -> None:
    house.now = int(datetime.now(UTC).timestamp() * 1000)
    t = telemetry.devices
    with house.telemetry.begin() as connection:
        connection.execute(t.update().values(next_due_ms=house.now + 60_000))
        connection.execute(t.update().where(t.c.device == "pi-1").values(next_due_ms=house.now - 3600_000))
        connection.execute(t.update().where(t.c.device == "pi-2").values(online=False))
        connection.execute(t.delete().where(t.c.device == "cam-0"))
    house.report(house.row("pi-0", "1.0.0", n=60), house.row("pi-0", "1.0.0", n=40), house.row("pi-2", "1.0.0", n=7))
    samples = scrape(house)
    assert {key: n for key, n in of(samples, "edgewright_devices").items() if n} == {
        ("lab", "online"): 1, ("lab", "overdue"): 1, ("lab", "offline"): 1, ("hall", "unheard"): 1,
    }  # fmt: skip
    assert of(samples, "edgewright_devices_held") == {("hall",): 0, ("lab",): 0}
    assert (of(samples, "edgewright_windows_total"), of(samples, "edgewright_inferences_total")) == (
        {(): 3}, {(): 107},
    )  # fmt: skip
    assert not any(name == "device" for _, labels in samples for name, _ in labels)
    each = scrape(house, "?devices=true")
    assert of(each, "edgewright_device_online") == {("pi-0", "lab"): 1, ("pi-1", "lab"): 0, ("pi-2", "lab"): 0}
    assert of(each, "edgewright_device_inferences_total")["pi-0", "lab"] == 100
    assert len(scrape(house)) == len(samples), "the number of samples is the same again"


def test_decisions_refusals_and_stores_are_told_also_when_there_are_none(house: House) -> None:
    before = scrape(house)
    assert of(before, "edgewright_alerts_open") == {("page",): 0, ("ticket",): 0}
    assert set(of(before, "edgewright_refused_total").values()) == {0}
    assert of(before, "edgewright_rollouts")[("running",)] == 0
    assert of(before, "edgewright_drift_streams")["device", "alarm"] == 0
    assert all(size > 4096 for size in of(before, "edgewright_database_bytes").values())
    house.start("1.0.0", stages=("100%",))
    said = {"severity": "page", "kind": "drift", "subject": "pi-1", "text": "moved", "now_ms": house.now}
    with house.control.begin() as connection:
        open_alert(connection, "drift:pi-1", **said)  # type: ignore[arg-type]
    bad = wire.message("pi-0", "report", b"nonsense", house.now)
    commit(house.telemetry, [bad, bad], lambda _: "lab")
    samples = scrape(house)
    assert of(samples, "edgewright_alerts_open") == {("page",): 1, ("ticket",): 0}
    assert of(samples, "edgewright_refused_total")[("malformed",)] == 2
    assert of(samples, "edgewright_rollouts")[("running",)] == 1
    assert not [name for name, _ in samples if name.startswith("edgewright_export")], "nothing is exported"


def test_what_waits_to_be_exported_is_told(house: House) -> None:
    progress.begin(house.telemetry)
    house.report(*(house.row("pi-0", "1.0.0") for _ in range(3)))
    samples = scrape(house)
    assert of(samples, "edgewright_export_pending_windows") == {(): 3}
    assert of(samples, "edgewright_export_lag_seconds")[()] > 0


class Address:
    """Of a server, or of none."""

    there = False

    def write(self, lines: Sequence[str]) -> None:
        if not self.there:
            raise Away("nobody listens")


def test_a_server_that_was_given_nothing_is_not_said_to_be_up(house: House) -> None:
    progress.begin(house.telemetry)
    server, aside = Address(), house.place / "aside"
    sink = Sink(house.control, house.telemetry, server, aside, lambda _: {}, lambda: house.now)
    up = "edgewright_export_up"
    sink.attempt()
    assert of(scrape(house, sink=sink), up) == {}, "there is nothing to give"
    house.report(house.row("pi-0", "1.0.0"))
    sink.attempt()
    assert of(scrape(house, sink=sink), up) == {(): 0}
    server.there = True
    sink.attempt()
    assert of(scrape(house, sink=sink), up) == {(): 1}


def test_both_databases_tell_their_size_on_postgresql_too(
    stores: Places, tmp_path: Path, packages: dict[str, Package]
) -> None:
    place = tmp_path / "house"
    place.mkdir()
    if isinstance(stores.control, str):
        move(place, stores.control)
    sizes = of(scrape(House(place, packages)), "edgewright_database_bytes")
    assert set(sizes) == {("control",), ("telemetry",)}
    assert all(size > 4096 for size in sizes.values())


def test_who_comes_from_elsewhere_shows_a_token(house: House) -> None:
    client = TestClient(device_app(hub(house, open_to_read=False)))
    assert client.get("/metrics").status_code == 401
    token = tokens.grant(house.control, role="viewer", name="prometheus")
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, bool(read(answer.text))) == (200, True)


@pytest.fixture
def influx() -> Iterator[Influx]:
    server = Influx()
    yield server
    server.close()


@pytest.mark.process
def test_a_running_hub_exports_tells_how_far_it_is_and_ends_while_influxdb_keeps_it_waiting(
    tmp_path: Path, influx: Influx, until: Callable[..., None]
) -> None:
    init_keys(tmp_path / "owner", now=datetime.now(UTC))
    data = tmp_path / "data"
    engine = open_telemetry(data / "telemetry.db")

    def report(seq: int) -> None:
        at = int(datetime.now(UTC).timestamp() * 1000)
        body = wire.report_bytes(seq, wall_start_ms=at - 60_000)
        commit(engine, [wire.message("cam-1", "report", body, at)], lambda _: "lab")

    report(1)
    options = {"--https": "127.0.0.1:0", "--page": "127.0.0.1:0", "--mqtt": "127.0.0.1:0", "--influx": influx.url,
               "--data": str(data), "--trust": str(tmp_path / "owner" / "hub")}  # fmt: skip
    command = [sys.executable, "-c", "from edgewright.main import main; main()", "hub", "serve", "--json"]
    hub = subprocess.Popen(
        [*command, *(part for option in options.items() for part in option)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert hub.stdout is not None
        running = json.loads(hub.stdout.readline())

        def page() -> Samples:
            with urllib.request.urlopen(f"{running['page']}metrics", timeout=60) as answer:
                return read(answer.read().decode())

        until(lambda: influx.points, "the first point")
        until(lambda: of(page(), "edgewright_export_points_total") == {(): 1}, "the first point to be told")
        samples = page()
        assert (samples["edgewright_healthy", ()], samples["edgewright_broker_connected", ()]) == (1, 1)
        assert samples["process_resident_memory_bytes", ()] > 2**20
        assert abs(samples["process_start_time_seconds", ()] - datetime.now(UTC).timestamp()) < 600
        assert samples["edgewright_export_lag_seconds", ()] == 0
        ((_, build), _) = next((key, n) for key, n in samples.items() if key[0] == "edgewright_build_info")
        assert dict(build)["database"] == "sqlite"
        context = ssl.create_default_context(cafile=str(data / "ca.pem"))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{running['https']}/metrics", context=context, timeout=60)
        influx.held.clear()
        report(2)
        until(lambda: len(influx.asked) > 1, "the second request")
        hub.send_signal(signal.SIGTERM)
        assert hub.wait(60) == 0
    finally:
        hub.kill()
        hub.communicate()
    with engine.connect() as connection:
        assert progress.position_of(connection) == 1
        assert connection.execute(sa.select(sa.func.max(telemetry.windows.c.id))).scalar() == 2
    engine.dispose()
    found = {one.check: one for one in examine(data, now=datetime.now(UTC))}["export"]
    assert (found.well, found.said) == (True, "1 windows wait for InfluxDB, for 0 minutes")
    late = {one.check: one for one in examine(data, now=datetime.now(UTC) + timedelta(minutes=11))}["export"]
    assert (late.well, late.said) == (False, "1 windows wait for InfluxDB, for 11 minutes")
