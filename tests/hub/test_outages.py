"""What goes away and comes back: the broker for two days, mosquitto and PostgreSQL under load. Nothing is lost, nothing
is counted twice, and the hub needs nobody to go on."""

from __future__ import annotations

import asyncio
import json
import queue
import random
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_agent.delivery.spool import Spool, Terms
from edgewright_contracts import binning, topics
from edgewright_contracts.birth import Unclean
from edgewright_contracts.desired import decode_ack, decode_desired
from edgewright_hub import vitals
from edgewright_hub.fleet.ca import Authority, open_authority
from edgewright_hub.ingest.consumer import BATCH, Consumer
from edgewright_hub.ingest.ingest import Known
from edgewright_hub.ingest.refusals import Noted
from edgewright_hub.ingest.turns import Turns
from edgewright_hub.ingest.writer import commit
from edgewright_hub.storage import control, telemetry
from edgewright_hub.storage.control import open_control
from edgewright_hub.storage.store import away, held
from edgewright_hub.storage.telemetry import open_telemetry
from sim import wire
from sim.disk import SimDisk
from sim.postgresql import Server
from sim.wire import WireClient

BEGIN_MS = 1_760_000_000_000
WINDOW_S = 300
HOURS = 48


class Sealing:
    """The spool of a real agent, and a count of what went into it."""

    def __init__(self, name: str, seed: int, *, cap: int = 1 << 20) -> None:
        self.name, self.dice, self.made = name, random.Random(seed), 0
        self.spool = Spool(SimDisk(), Path("/home/spool"), new_id=lambda: f"{seed:016x}", cap=cap)
        self._opened = Unclean(boot_id=f"{seed:016x}", open_since_mono_ms=0)
        self.spool.begin(self._opened)

    def seal(self, at_s: int) -> None:
        n = self.dice.randrange(200, 300)
        self.made += n
        window = wire.window(
            boot_id=self._opened.boot_id,
            mono_start_ms=at_s * 1000,
            mono_end_ms=(at_s + WINDOW_S) * 1000,
            wall_start_ms=BEGIN_MS + at_s * 1000,
            next_due_s=WINDOW_S,
            n=n,
            n_monitored=n,
            cells=binning.pack([self.dice.randrange(40) for _ in range(60)]),
        )
        self.spool.seal([window], self._opened)


def test_two_days_without_a_broker_end_with_the_count_of_the_devices(telemetry_engine: sa.Engine) -> None:
    """The fleet comes back in one moment. The hub takes it in batches, and answers each device by its turn."""
    cap = 24 << 10  # a tenth of what two days of windows take: they become hours
    devices = {f"cam-{i}": Sealing(f"cam-{i}", i, cap=cap) for i in range(6)}
    for at_s in range(0, HOURS * 3600, WINDOW_S):
        for one in devices.values():
            one.seal(at_s)
            assert one.spool.state.held_bytes <= cap
    turns, now_s, sent, largest = Turns(0.0), HOURS * 3600.0, 0, 0
    for number, one in enumerate(devices.values()):
        assert one.spool.state.dropped == 0
        assert commit_all(telemetry_engine, [(one.name, "birth", birth_of(one))], now_s + number, turns) == [one.name]
    while any(one.spool.state.numbered or one.spool.state.unnumbered for one in devices.values()):
        offers = [(n, o.kind, o.payload) for n, one in devices.items() for o in one.spool.offer(Terms(compress=True))]
        sent, largest = sent + len(offers), max(largest, len(offers))
        waiting = commit(telemetry_engine, [wire.message(*o, ms(now_s)) for o in offers], lambda _: "lab")
        turns.add(waiting, now_s)
        for answer in turns.due(now_s):
            devices[answer.device].spool.ack(answer.ack)
        now_s += 30.0  # an acknowledgement each half a minute at most
    assert largest <= 16 * len(devices) <= BATCH
    assert sent < 6 * 24 * HOURS, "coarser, not as many as there were windows"
    w, r = telemetry.windows.c, telemetry.rollups.c
    with telemetry_engine.connect() as connection:
        found = dict(connection.execute(sa.select(w.device, sa.func.sum(w.n)).group_by(w.device)).all())
        assert found == {name: one.made for name, one in devices.items()}
        hours = sa.select(sa.func.sum(r.n), sa.func.min(r.t0_ms), sa.func.max(r.t0_ms)).where(r.tier_s == 3600)
        total, first, last = connection.execute(hours).one()
        assert total == sum(found.values())
        assert (last - first) // 3_600_000 >= HOURS - 24, "each at the time of its own"
        assert connection.execute(sa.select(sa.func.sum(telemetry.spools.c.lost))).scalar_one() == 0


def birth_of(one: Sealing) -> bytes:
    told = one.spool.told()
    return wire.birth_bytes(one.name, spool=told.id, next_seq=told.next_seq, boot=f"{one.name[4:]:0>16}")


def ms(now_s: float) -> int:
    return BEGIN_MS + int(now_s * 1000)


def commit_all(engine: sa.Engine, said: list[tuple[str, Any, bytes]], now_s: float, turns: Turns) -> list[str]:
    turns.add(commit(engine, [wire.message(*one, ms(now_s)) for one in said], lambda _: "lab"), now_s)
    return [answer.device for answer in turns.due(now_s)]


class Online(Sealing):
    """With a connection: what is not acknowledged goes out again after each reconnect, and when nothing is heard."""

    def __init__(self, name: str, seed: int, port: int, context: ssl.SSLContext) -> None:
        super().__init__(name, seed)
        self.client = WireClient(port, context, name)
        self.client.mqtt.reconnect_delay_set(1, 1)
        self.client.mqtt.on_connect = lambda client, *_: client.subscribe(topics.all_down(name), qos=1)
        self.client.subscribe(topics.all_down(name))
        self._sent: Counter[int] = Counter()
        self._heard_s = time.monotonic()

    def work(self) -> None:
        again = time.monotonic() - self._heard_s > 0.5
        for offer in self.spool.offer():
            if again or not self._sent[offer.seq]:
                self._sent[offer.seq] += 1
                self.client.mqtt.publish(topics.topic(self.name, offer.kind), offer.payload, qos=1)
        if again:
            self._heard_s = time.monotonic()
        try:
            while True:
                self.spool.ack(decode_ack(self.client.next("ack", timeout=0.02)))
                self._heard_s = time.monotonic()
        except queue.Empty:
            pass

    @property
    def waits(self) -> bool:
        return bool(self.spool.state.numbered or self.spool.state.unnumbered)


def sums(engine: sa.Engine) -> dict[str, int]:
    w = telemetry.windows.c
    with engine.connect() as connection:
        rows = connection.execute(sa.select(w.device, sa.func.sum(w.n)).group_by(w.device)).all()
    return {device: int(n) for device, n in rows}


@pytest.mark.process
def test_mosquitto_goes_and_comes_back_under_load(
    authority: Authority,
    context_of: Callable[[str], ssl.SSLContext],
    mosquitto_of: Any,
    telemetry_engine: sa.Engine,
    tmp_path: Path,
    until: Callable[..., None],
) -> None:
    broker = mosquitto_of(authority, tmp_path / "mosquitto")
    consumer = Consumer(
        telemetry_engine,
        host="127.0.0.1",
        port=broker.port,
        context=authority.client_context(),
        known=Known(lambda _: "lab"),
        desired=list,
        noted=Noted(),
        ack_s=0.05,
    )
    consumer.start()
    assert consumer.ready.wait(60)
    devices = [Online(f"out-{i}", 100 + i, broker.port, context_of(f"out-{i}")) for i in range(3)]
    try:
        at_s = 0
        for outage in (broker.stop, broker.kill, None):
            for _ in range(12):
                at_s += WINDOW_S
                for one in devices:
                    one.seal(at_s)
                    one.work()
            if outage is not None:
                outage()
                until(lambda: consumer.trouble, "the hub to notice")
                for one in devices:
                    one.seal(at_s := at_s + WINDOW_S)
                broker.start()

        def delivered() -> bool:
            for one in devices:
                one.work()
            return not any(one.waits for one in devices)

        until(delivered, "everything to be acknowledged", 30.0)
        assert sums(telemetry_engine) == {one.name: one.made for one in devices}
    finally:
        for one in devices:
            one.client.close()
        consumer.stop()
        broker.close()


@pytest.mark.process
def test_what_waits_for_the_hub_survives_a_restart_of_mosquitto(
    authority: Authority, context_of: Callable[[str], ssl.SSLContext], mosquitto_of: Any, tmp_path: Path
) -> None:
    broker = mosquitto_of(authority, tmp_path / "mosquitto")
    try:
        with WireClient(broker.port, authority.client_context(), "edgewright-hub", clean=False) as hub:
            hub.subscribe(topics.ALL_UP)
        with WireClient(broker.port, context_of("kept-1"), "kept-1") as device:
            for number in range(300):
                device.mqtt.publish(topics.topic("kept-1", "report"), f"{number}".encode(), qos=1)
            device.up("kept-1", "event", b"last")
        broker.stop()
        broker.start()
        with WireClient(broker.port, authority.client_context(), "edgewright-hub", clean=False) as hub:
            got = [hub.received.get(timeout=60)[1] for _ in range(301)]
        assert got == [*(f"{number}".encode() for number in range(300)), b"last"]
    finally:
        broker.close()


class Process:
    """A hub on PostgreSQL."""

    def __init__(self, place: Path, trust: Path, url: str) -> None:
        self.data = place
        ports = [f"--{name}=127.0.0.1:0" for name in ("https", "page", "mqtt")]
        command = [sys.executable, "-c", "from edgewright.main import main; main()", "hub", "serve", "--json"]
        more = ["--ack-interval-s=0", "--tick-s=0.1", f"--trust={trust}", f"--database={url}", f"--data={place}"]
        self._log = (place.parent / "hub.log").open("wb")
        self.process = subprocess.Popen([*command, *ports, *more], stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self.process.stdout is not None
        self.said = json.loads(self.process.stdout.readline())
        self.token = (place / "admin.token").read_text().strip()

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Of the page's listener: status and JSON, or text."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.said['page']}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    @property
    def well(self) -> bool:
        return self.ask("healthz")[0] == 200

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)
        self._log.close()


@pytest.fixture
def postgresql() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.mark.process
def test_postgresql_restarts_under_load_and_the_hub_goes_on_by_itself(
    tmp_path: Path, owner: Path, postgresql: Server, until: Callable[..., None]
) -> None:
    url = postgresql.url()
    hub = Process(tmp_path / "data", owner / "hub", url)
    authority = open_authority(tmp_path / "data" / "ca", now=datetime.now(UTC))
    request, key = wire.signing_request("pg-1")
    signed = authority.sign(request, "pg-1", now=datetime.now(UTC))
    context = wire.client_context(authority.folder / "ca.pem", signed.certificate, key, tmp_path / "device")
    device = Online("pg-1", 7, hub.said["broker"]["port"], context)
    try:
        at_s = 0
        for mode in ("fast", "immediate", "immediate"):
            for _ in range(20):
                device.seal(at_s := at_s + WINDOW_S)
                device.work()
            postgresql.stop(mode)  # type: ignore[arg-type]
            for path in ("", "api/v1/devices", "api/v1/rollouts"):
                status, body = hub.ask(path)
                assert (status, b"the hub's database cannot be reached at present" in body) == (503, True), body
            until(lambda: not hub.well, "the hub to say so")
            device.seal(at_s := at_s + WINDOW_S)
            device.work()
            postgresql.start()
            until(lambda: hub.well, "the hub to go on", 30.0)
        assert hub.process.poll() is None
        until(lambda: (device.work(), not device.waits)[1], "everything to be acknowledged", 30.0)
        server = sa.create_engine(url, poolclass=sa.NullPool)
        with server.begin() as connection:
            row = {"id": "pg-1", "fleet": "lab", "enrolled_ms": 1, "serial": "1", "state": "enrolled"}
            connection.execute(sa.text("SET search_path = control"))
            connection.execute(control.devices.insert().values(**row))
        settings = {"settings": {"window_s": 30.0}, "devices": ["pg-1"], "reason": "a test"}
        assert hub.ask("api/v1/config", settings)[0] == 200
        told = decode_desired(device.client.next("desired", timeout=20))  # the tick of rollouts goes on
        assert told.config.window_s == 30.0
        with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            locks = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            until(lambda: connection.execute(locks).scalar() == 1, "the hub to hold its database again")
    finally:
        device.client.close()
        hub.end()
    engine = open_telemetry(url)
    try:
        assert sums(engine) == {"pg-1": device.made}
        with engine.connect() as connection:
            r = telemetry.rollups.c
            tiers = connection.execute(sa.select(r.tier_s, sa.func.sum(r.n)).group_by(r.tier_s)).all()
            assert {int(n) for _, n in tiers} == {device.made}
            assert connection.execute(sa.select(sa.func.count()).select_from(telemetry.dead_letters)).scalar() == 0
    finally:
        engine.dispose()
    log = (tmp_path / "hub.log").read_text()
    assert "the writer failed" not in log
    assert "broke its transaction" not in log


@pytest.mark.process
def test_a_hub_takes_its_database_again_after_a_restart_and_ends_when_another_was_quicker(database_url: str) -> None:
    one, other = open_control(database_url), open_control(database_url)
    try:
        with held(one) as hold:
            assert not hold.look()
            gone(one)
            assert hold.look()
            assert not hold.lost
            gone(one)
            with held(other):
                hold.look()
                assert hold.lost
    finally:
        one.dispose()
        other.dispose()


@pytest.mark.process
def test_a_hub_whose_network_was_cut_does_not_take_its_own_old_session_for_another_hub(database_url: str) -> None:
    engine = open_control(database_url)
    try:
        with held(engine) as hold:
            session, hold._session = hold._session, None  # the server keeps it; the hub cannot reach it any more
            assert session is not None
            assert hold.look()
            assert not hold.lost
            assert not hold.look()
            with pytest.raises(sa.exc.OperationalError):
                session.execute(sa.select(1))
            session.close()
    finally:
        engine.dispose()


@pytest.mark.process
def test_a_session_whose_network_was_cut_ends_within_half_a_minute_on_both_sides(database_url: str) -> None:
    engine = open_control(database_url)
    try:
        with engine.connect() as connection:
            names = ("idle", "interval", "count")
            told = sa.text("SELECT name, reset_val FROM pg_settings WHERE name LIKE 'tcp_%'")
            server = {name: int(value) for name, value in connection.execute(told)}
            driver: Any = connection.connection.driver_connection
            ours = driver.info.get_parameters()
        for idle, interval, count in (
            [server[f"tcp_keepalives_{name}"] for name in names],
            [int(ours[f"keepalives_{name}"]) for name in names],
        ):
            assert idle + interval * count < 30
        assert server["tcp_user_timeout"] == int(ours["tcp_user_timeout"]) == 25_000
    finally:
        engine.dispose()


def gone(engine: sa.Engine) -> None:
    """The server ends the session that holds the lock, as a restart does."""
    end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks JOIN pg_database d ON d.oid = database "
    mine = "WHERE locktype = 'advisory' AND d.datname = current_database()"
    with engine.connect() as connection:
        assert connection.execute(sa.text(end + mine)).scalar_one()


def test_what_runs_hourly_need_not_wait_an_hour_for_a_database_that_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "AWAY_S", 0.01)
    turns: list[bool] = []

    def act() -> None:
        turns.append(not whole.reasons())
        if len(turns) < 3:
            raise sa.exc.OperationalError("", {}, Exception("the server restarts"))

    whole = vitals.Vitals({})

    async def run() -> None:
        async with whole.every("retention", 3600.0, act):
            while len(turns) < 3:
                await asyncio.sleep(0.005)

    asyncio.run(run())
    assert turns == [True, False, False]


def test_which_failures_of_a_database_pass() -> None:
    gone, wrong = Exception("gone"), Exception("wrong")
    assert away(sa.exc.OperationalError("", {}, gone))
    assert away(sa.exc.InterfaceError("", {}, gone, connection_invalidated=True))
    assert away(sa.exc.TimeoutError("all connections of the pool are busy"))
    assert not away(sa.exc.InterfaceError("", {}, wrong))
    assert not away(sa.exc.IntegrityError("", {}, wrong))
    assert not away(ValueError())
