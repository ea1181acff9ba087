"""What a report costs the hub, and what stays the same while a fleet grows and a day passes.

    python benchmarks/ingest.py [--quick] [--json]

The hub's side is the real `Consumer` (decode, dedupe, merge, commit, acknowledge to broker and device) in a process of
its own, over TLS, on a database on disk; reports have 22 channels and are sent by 10,000 devices in 20 fleets through a
pump in another process. All CPU is that of the process, whatever else the machine does.

- `cpu_ratio`: CPU of the consumer for each report over that of a paho callback with manual acknowledgement that does
  nothing else, both MQTT 3.1.1, QoS 1, on the same mosquitto, in turns; medians. `reports_per_s` is what one core
  would do at that price. `packed_ratio` is the same for reports as agents compress them.
- `core_share_10k`: CPU over wall time at 10,000 reports a minute; with the embedded broker, that broker's included,
  whose reports come over a few connections (`connections`), because TLS sessions of 10,000 devices do not fit here.
  `nothing_share_10k` is the callback that does nothing at that pace, where paho is woken for each report.
- `drift_query_ms_10k`: input drift (PSI and p-value, each channel) of 20 fleets over the last 24 hours.
- `rss_growth_mb_24h`: from the third simulated hour to the twenty-fourth, with device-hours and retention running.
- `growth`: writer alone, 1,000 to 100,000 devices.

`--quick`: fewer reports, rounds, seconds and devices; under a minute; results are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import paho.mqtt.client as mqtt  # noqa: E402
import sqlalchemy as sa  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402
from provenance import provenance  # noqa: E402

from edgewright_contracts import report, topics  # noqa: E402
from edgewright_contracts.binning import grid_index, pack, pack_grid  # noqa: E402
from edgewright_contracts.codec import REPORT_BYTES, encode  # noqa: E402
from edgewright_contracts.desired import ACK_S  # noqa: E402
from edgewright_contracts.packing import pack as compress  # noqa: E402
from edgewright_hub import retention  # noqa: E402
from edgewright_hub.fleet.ca import HUB_NAME, open_authority  # noqa: E402
from edgewright_hub.ingest import device_hours  # noqa: E402
from edgewright_hub.ingest.consumer import Consumer, Turns, settle  # noqa: E402
from edgewright_hub.ingest.ingest import Known  # noqa: E402
from edgewright_hub.ingest.messages import Message  # noqa: E402
from edgewright_hub.ingest.refusals import Noted  # noqa: E402
from edgewright_hub.ingest.writer import commit  # noqa: E402
from edgewright_hub.mqtt.mosquitto import write_configuration  # noqa: E402
from edgewright_hub.storage import control, sums  # noqa: E402
from edgewright_hub.storage.telemetry import open_telemetry  # noqa: E402
from sim import wire  # noqa: E402

FLEETS: Final = 20
CHANNELS, CELLS = 22, 13  # of each channel: 11 quantiles, under or over, missing
INFERENCES: Final = 60
BODIES: Final = 500  # different ones
EACH: Final = 16  # reports of each device where the price of one is measured
WARM: Final = 5  # the first fifth is not measured: statements are compiled, pages made
PUMP: Final = "pump"
MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000


class Plan(msgspec.Struct, frozen=True):
    devices: int
    reports: int  # of one round
    rounds: int
    paced_s: float
    connections: int  # to the embedded broker
    day_devices: int
    growth: tuple[int, ...]


FULL: Final = Plan(10_000, 16_000, 3, 40.0, 200, 300, (1_000, 3_000, 10_000, 30_000, 100_000))
QUICK: Final = Plan(1_000, 3_000, 1, 4.0, 20, 20, (1_000, 3_000))


# What devices send.


class Bodies:
    """Reports that differ in what they counted; `of` gives each its spool and number."""

    def __init__(self, number: int = BODIES, *, packed: bool = False) -> None:
        rng = np.random.default_rng(5)
        self._windows = [_window(rng) for _ in range(number)]
        self._packed = packed

    def of(self, device: int, seq: int, at_ms: int) -> bytes:
        window = msgspec.structs.replace(self._windows[(device * 7 + seq) % len(self._windows)], wall_start_ms=at_ms)
        one = report.Report(spool_id=f"{device:016x}", seq=seq, window=window)
        raw = msgspec.msgpack.encode(one)
        return compress(raw) if self._packed else raw


def _window(rng: np.random.Generator) -> report.Window:
    cells = rng.multinomial(INFERENCES, np.full(CELLS, 1 / CELLS), CHANNELS).ravel()

    def took(ms: float) -> bytes:
        ns = rng.lognormal(np.log(ms * 1e6), 0.15, INFERENCES).astype(np.int64)
        return pack_grid(np.bincount(grid_index(ns), minlength=401).astype(np.int64))

    level = report.Gauge(1, 52_000, 52_000)
    window = report.Window(
        boot_id="b" * 16, mono_start_ms=0, mono_end_ms=MINUTE_MS, wall_start_ms=1, clock="synced", next_due_s=60,
        digest="d" * 16, variant="onnx-int8", edge_hash="e" * 16, n=INFERENCES, n_monitored=INFERENCES,
        latency_run=took(5), latency_total=took(6), cells=pack(cells), usage=report.Usage(rss_kb=level, cpu_ms=200),
        errors={"timeout": 1},
    )  # fmt: skip
    encode(window, name="window", limit=REPORT_BYTES, wire="msgpack")  # raises when it is none
    return window


def name(device: int) -> str:
    return f"dev-{device}"


def fleets(number: int) -> Known:
    of = {name(i): f"fleet-{i % FLEETS}" for i in range(number)}
    edges = {("d" * 16, "onnx-int8"): "e" * 16}
    return Known(of.__getitem__, lambda digest, variant: edges.get((digest, variant)))


# Processes: the pump, the callback that does nothing, the hub.


def client(folder: Path, port: int, who: str, *, manual: bool) -> mqtt.Client:
    one = mqtt.Client(
        CallbackAPIVersion.VERSION2, client_id=who, clean_session=not manual, protocol=mqtt.MQTTv311, manual_ack=manual
    )
    one.tls_set_context(tls(folder, who))
    one.max_inflight_messages_set(1000)
    one.connect("127.0.0.1", port, 60)
    return one


def tls(folder: Path, who: str) -> ssl.SSLContext:
    authority = open_authority(folder / "ca", now=datetime.now(UTC))
    if who == HUB_NAME:
        return authority.client_context()
    request, key = wire.signing_request(who)
    signed = authority.sign(request, who, now=datetime.now(UTC))
    return wire.client_context(authority.folder / "ca.pem", signed.certificate, key, folder / "keys" / who)


def pump(folder: Path, ports: list[int], reports: int, devices: int, rate: float, packed: bool) -> None:
    """Send `reports`, one device after another, evenly over the connections; at `rate` a second if it is not 0."""
    bodies = Bodies(packed=packed)
    own = len(ports) > 1  # each connection is a device: the embedded broker lets nobody speak for another
    clients = [client(folder, port, name(i) if own else PUMP, manual=False) for i, port in enumerate(ports)]
    for one in clients:
        one.loop_start()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    for i in range(reports):
        device, seq = i % devices, i // devices + 1
        body = bodies.of(device, seq, int(time.time() * 1000) - MINUTE_MS)
        one = clients[device % len(clients)]
        info = one.publish(topics.topic(name(device), "report"), body, qos=1)
        if rate:
            time.sleep(max(0.0, start + (i + 1) / rate - time.monotonic()))
        elif i % 500 == 499:
            info.wait_for_publish(60)
    info.wait_for_publish(60)
    print("sent", flush=True)
    sys.stdin.readline()


def noop(folder: Path, port: int, reports: int) -> None:
    """The least that a consumer can do and lose nothing."""
    one = client(folder, port, HUB_NAME, manual=True)
    seen = 0
    begun = 0.0
    done = threading.Event()

    def on_message(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        nonlocal seen, begun
        seen += 1
        one.ack(message.mid, message.qos)
        if seen == reports // WARM:
            begun = time.process_time()
        if seen == reports:
            print(json.dumps({"us": (time.process_time() - begun) / (reports - reports // WARM) * 1e6}), flush=True)
            done.set()

    one.on_message = on_message
    one.subscribe(topics.ALL_UP, qos=1)
    one.on_subscribe = lambda *_: print("ready", flush=True)
    one.loop_start()
    done.wait()
    sys.stdin.readline()
    one.disconnect()


def hub(folder: Path, database: Path, port: int, reports: int, devices: int) -> None:
    """The consumer as the hub runs it, until the reports are in its database, which is new."""
    settle()
    engine = open_telemetry(database)
    consumer = Consumer(
        engine,
        host="127.0.0.1",
        port=port,
        context=tls(folder, HUB_NAME),
        known=fleets(devices),
        desired=list,
        noted=Noted(),
        ack_s=ACK_S,
    )
    consumer.start()
    assert consumer.ready.wait(20)
    time.sleep(0.3)
    print("ready", flush=True)
    print(json.dumps({"us": spent_us(engine, reports)}), flush=True)
    sys.stdin.readline()
    consumer.stop()
    engine.dispose()


def spent_us(engine: sa.Engine, reports: int) -> float:
    """CPU of this process for each report, behind the first few, until all are in the database, which was empty."""
    begun, first = 0.0, 0
    with engine.connect() as connection:
        raw = connection.connection.cursor()
        while True:
            time.sleep(0.1)
            ((done,),) = raw.execute("SELECT coalesce(max(id), 0) FROM windows").fetchall()
            if not first and done >= reports // WARM:
                begun, first = time.process_time(), done
            if done >= reports:
                return (time.process_time() - begun) / (done - first) * 1e6


class Child:
    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--part", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.wait("ready")

    def wait(self, word: str = "{") -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError("a process ended before it was done")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.go()
        self.process.communicate(timeout=30)


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    """As `hub broker-config` writes it, and with leave for the pump to speak for all devices."""
    authority = open_authority(folder / "ca", now=datetime.now(UTC))
    port = free_port()
    user = "root" if os.geteuid() == 0 else None
    place = folder / "mosquitto"
    conf = write_configuration(authority, place, port=port, bind="127.0.0.1", now=datetime.now(UTC), user=user)
    acl = place / "acl"
    acl.write_text(f"{acl.read_text()}\nuser {PUMP}\ntopic write {topics.ROOT}/#\n")
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(["/usr/sbin/mosquitto", "-c", str(conf)], stdout=quiet, stderr=quiet)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for_port(port: int) -> None:
    import socket

    for _ in range(200):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the broker does not answer")


# The measurements.


def ratio(folder: Path, plan: Plan, *, packed: bool, rounds: int) -> dict[str, float]:
    """CPU of one report, ours and nobody's, in turns."""
    ours: list[float] = []
    nobodys: list[float] = []
    with mosquitto(folder) as port:
        for turn in range(rounds):
            database = folder / f"ratio-{packed}-{turn}.db"
            devices = plan.reports // EACH  # so that devices are acknowledged meanwhile, as often as they are
            for kind in ("noop", "hub"):
                more = ("hub", folder, database, port, plan.reports, devices)
                consumer = Child(*(("noop", folder, port, plan.reports) if kind == "noop" else more))
                source = Child("pump", folder, port, plan.reports, devices, 0, int(packed))
                source.go()
                us = json.loads(consumer.wait())["us"]
                (nobodys if kind == "noop" else ours).append(us)
                source.end()
                consumer.end()
            print(f"packed {packed}: ours {ours[-1]:.1f} µs, nothing {nobodys[-1]:.1f} µs", flush=True)
    our, nothing = statistics.median(ours), statistics.median(nobodys)
    return {"ours_us": our, "nothing_us": nothing, "ratio": our / nothing}


def share(folder: Path, plan: Plan, *, ours: bool) -> float:
    """Of a core, at 10,000 reports a minute, with mosquitto: ours, or of the callback that does nothing."""
    reports = int(plan.paced_s * 10_000 / 60)
    with mosquitto(folder) as port:
        more = ("hub", folder, folder / "share.db", port, reports, plan.devices)
        consumer = Child(*(more if ours else ("noop", folder, port, reports)))
        source = Child("pump", folder, port, reports, plan.devices, 10_000 / 60, 0)
        source.go()
        found = json.loads(consumer.wait())
        source.end()
        consumer.end()
    return float(found["us"]) * 10_000 / 60 / 1e6


def embedded_share(folder: Path, plan: Plan) -> float:
    """Of a core, with the embedded broker in the process of the consumer."""
    reports = int(plan.paced_s * 10_000 / 60)
    both = Child("embedded", folder, folder / "embedded.db", reports, plan.devices)
    port = json.loads(both.wait())["port"]
    source = Child("devices", folder, port, reports, plan.connections)
    both.go()
    source.go()
    found = json.loads(both.wait())
    source.end()
    both.end()
    return float(found["us"]) * 10_000 / 60 / 1e6


def embedded(folder: Path, database: Path, reports: int, devices: int) -> None:
    """As `hub` with a broker in the same process; counts from the first line on stdin, when all are connected."""
    from hub.conftest import Amqtt

    settle()
    authority = open_authority(folder / "ca", now=datetime.now(UTC))
    authority.keep_server((), authority.folder, now=datetime.now(UTC))
    broker = Amqtt(authority)
    engine = open_telemetry(database)
    consumer = Consumer(
        engine, host="127.0.0.1", port=broker.port, context=authority.client_context(), known=fleets(devices),
        desired=list, noted=Noted(), ack_s=ACK_S,
    )  # fmt: skip
    consumer.start()
    assert consumer.ready.wait(20)
    print("ready", flush=True)
    print(json.dumps({"port": broker.port}), flush=True)
    sys.stdin.readline()
    print(json.dumps({"us": spent_us(engine, reports)}), flush=True)
    sys.stdin.readline()
    consumer.stop()
    broker.close()
    engine.dispose()


def drift_query(folder: Path, plan: Plan) -> float:
    """Milliseconds of reading and testing, median of 9; the hours of 20 fleets in 3 contexts are in the database."""
    from scipy.stats import chi2

    engine = open_telemetry(folder / "drift.db")
    now = 1_760_000_000_000
    bodies = Bodies()
    known = fleets(plan.devices)
    rng = np.random.default_rng(1)
    for hour in range(30):  # each fleet reports in each hour and context: what 10,000 devices add to is as much
        at = now - (30 - hour) * 3600_000
        some = []
        for fleet in range(FLEETS):
            for turn, context in enumerate(("", "night", "rain")):
                window = msgspec.structs.replace(bodies._windows[int(rng.integers(BODIES))], wall_start_ms=at)
                window = msgspec.structs.replace(window, context=context)
                one = report.Report(spool_id=f"{fleet:016x}", seq=3 * hour + turn + 1, window=window)
                some.append(Message(topics.topic(name(fleet), "report"), msgspec.msgpack.encode(one), at + 61_000))
        commit(engine, some, known)
    expected = np.full((CHANNELS, CELLS), 1 / CELLS)
    took = []
    for _ in range(9):
        begun = time.perf_counter()
        with engine.connect() as connection:
            found = sums.of_span(connection, now - DAY_MS, now)
        for one in found.values():
            assert one.cells is not None
            counts = one.cells.reshape(CHANNELS, CELLS)
            share = np.maximum(counts / counts.sum(1, keepdims=True), 1e-4)
            psi = ((share - expected) * np.log(share / expected)).sum(1)
            wanted = counts.sum(1, keepdims=True) * expected
            p = chi2.sf(((counts - wanted) ** 2 / wanted).sum(1), CELLS - 1)
            assert psi.size == p.size == CHANNELS
        took.append((time.perf_counter() - begun) * 1000)
    assert len(found) == 3 * FLEETS
    engine.dispose()
    return statistics.median(took)


def day(folder: Path, plan: Plan) -> dict[str, float]:
    """24 hours of one report in 5 minutes each, with all that the hub does with them meanwhile."""
    control_engine = control.open_control(folder / "day-hub.db")
    engine = open_telemetry(folder / "day.db")
    with control_engine.begin() as connection:  # drift and rollouts have read everything
        for reader in retention.READERS["windows"] + retention.READERS["events"]:
            connection.execute(control.cursors.insert().values(name=reader, position=2**62))
    known, bodies, turns = fleets(plan.day_devices), Bodies(), Turns(ACK_S)
    begin, rss = 1_760_000_000_000, []
    for step in range(26 * 12):
        at = begin + step * 5 * MINUTE_MS
        for start in range(0, plan.day_devices, 200):
            some = [
                Message(topics.topic(name(i), "report"), bodies.of(i, step + 1, at - MINUTE_MS), at)
                for i in range(start, min(start + 200, plan.day_devices))
            ]
            turns.add(commit(engine, some, known), at / 1000)
        turns.due(at / 1000)
        if step % 12 == 11:
            while device_hours.tick(engine):
                pass
            while retention.shorten(control_engine, engine, at):
                pass
            rss.append(resident_mb())
    size = sum(path.stat().st_size for path in folder.glob("day.db*")) / 1e6
    engine.dispose()
    control_engine.dispose()
    return {"first_mb": rss[2], "last_mb": rss[-1], "growth_mb": rss[-1] - rss[2], "database_mb": size}


def growth(folder: Path, plan: Plan) -> dict[str, dict[str, float]]:
    """Of the writer alone: the second report of each of so many devices, in batches of 200."""
    out = {}
    for devices in plan.growth:
        engine = open_telemetry(folder / f"growth-{devices}.db")
        known, bodies = fleets(devices), Bodies()
        order = np.random.default_rng(3).permutation(devices)
        measured = min(devices, 20_000)
        for seq in (1, 2):
            at = 1_760_000_000_000 + seq * MINUTE_MS
            cpu = 0.0
            for start in range(0, measured if seq == 2 else devices, 200):
                some = [
                    Message(topics.topic(name(i), "report"), bodies.of(i, seq, at - MINUTE_MS), at)
                    for i in order[start : start + 200].tolist()
                ]
                begun = time.process_time()
                commit(engine, some, known)
                cpu += time.process_time() - begun
        reports = devices + measured
        size = sum(path.stat().st_size for path in folder.glob(f"growth-{devices}.db*"))
        out[f"{devices} devices"] = {
            "us_per_report": cpu / measured * 1e6, "bytes_per_report": size / reports, "rss_mb": resident_mb(),
        }  # fmt: skip
        engine.dispose()
    return out


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def in_own_process(kind: str, folder: Path, *, quick: bool) -> Any:
    command = [sys.executable, str(Path(__file__).resolve()), "--part", kind, str(folder), str(int(quick))]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part(*arguments.part)
        return
    plan = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        plain = ratio(folder, plan, packed=False, rounds=plan.rounds)
        packed = ratio(folder, plan, packed=True, rounds=max(1, plan.rounds // 2))
        shares = {"mosquitto": share(folder, plan, ours=True), "embedded": embedded_share(folder, plan)}
        nothing = share(folder, plan, ours=False)
        print(f"share of a core at 10,000 reports a minute: {shares}; nothing {nothing}", flush=True)
        rest = {kind: in_own_process(kind, folder, quick=arguments.quick) for kind in ("drift", "day", "growth")}
    result = {
        "cpu_ratio": round(plain["ratio"], 3),
        "reports_per_s": round(1e6 / plain["ours_us"]),
        "core_share_10k": {key: round(value, 4) for key, value in shares.items()},
        "drift_query_ms_10k": round(rest["drift"], 2),
        "rss_growth_mb_24h": round(rest["day"]["growth_mb"], 2),
        "nothing_share_10k": round(nothing, 4),
        "packed_ratio": round(packed["ratio"], 3),
        "connections": plan.connections,
        "cpu_us": {"plain": plain, "packed": packed},
        "day": rest["day"],
        "growth": rest["growth"],
    }
    for key, value in result.items():
        print(f"{key}: {value}")
    if not arguments.quick:
        target = ROOT / "benchmarks" / "results" / "ingest.json"
        target.write_text(json.dumps({**result, **provenance()}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))


def part(kind: str, place: str, *more: str) -> None:
    folder = Path(place)
    if kind in {"day", "growth"}:
        settle()
    match kind:
        case "pump":
            port, reports, devices, rate, packed = more
            pump(folder, [int(port)], int(reports), int(devices), float(rate), packed == "1")
        case "devices":
            port, reports, connections = map(int, more)
            pump(folder, [port] * connections, reports, connections, 10_000 / 60, packed=False)
        case "noop":
            noop(folder, int(more[0]), int(more[1]))
        case "hub":
            hub(folder, Path(more[0]), *map(int, more[1:]))
        case "embedded":
            embedded(folder, Path(more[0]), *map(int, more[1:]))
        case _:
            measure = {"drift": drift_query, "day": day, "growth": growth}[kind]
            print(json.dumps(measure(folder, QUICK if more[0] == "1" else FULL)))


if __name__ == "__main__":
    main()
