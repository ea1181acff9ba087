"""One certificate authority, both brokers as they run in production, and an owner with a registry."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright.main import run
from edgewright_compiler.keys import init_keys
from edgewright_contracts.package import Package
from edgewright_hub.fleet.ca import Authority, open_authority
from edgewright_hub.ingest.refusals import Noted
from edgewright_hub.mqtt.broker import EmbeddedBroker
from edgewright_hub.mqtt.mosquitto import write_configuration
from edgewright_hub.registry.registry import Registry
from edgewright_hub.storage.control import open_control
from edgewright_hub.storage.places import Places
from edgewright_hub.storage.telemetry import open_telemetry
from edgewright_hub.web.listeners import Address, listen
from sim import wire
from sim.house import House
from sim.packages import make_package
from sim.postgresql import chosen, server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    now = datetime.now(UTC)
    one = open_authority(tmp_path_factory.mktemp("ca"), now=now)
    one.keep_server((), one.folder, now=now)
    return one


@pytest.fixture(scope="session")
def context_of(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ssl.SSLContext]:
    """TLS of a device with this id, which the authority has signed."""
    made: dict[str, ssl.SSLContext] = {}

    def context(name: str) -> ssl.SSLContext:
        if name not in made:
            request, key = wire.signing_request(name)
            signed = authority.sign(request, name, now=datetime.now(UTC))
            folder = tmp_path_factory.mktemp(name)
            made[name] = wire.client_context(authority.folder / "ca.pem", signed.certificate, key, folder)
        return made[name]

    return context


class Amqtt:
    """The embedded broker, in a loop and a thread of its own. It can be stopped and started on the same port."""

    def __init__(self, authority: Authority, outdated: Callable[[str, str], str | None] = lambda *_: None) -> None:
        self._authority = authority
        self._outdated = outdated
        self.noted = Noted()  # what it refused
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.start()

    def start(self) -> None:
        listener = listen(Address("127.0.0.1", self.port), "--mqtt")
        self.port = listener.getsockname()[1]
        context = self._authority.broker_context()
        self._broker = EmbeddedBroker(listener, context, self._outdated, self.noted.add)
        self._run(self._broker.start())

    def stop(self) -> None:
        self._run(self._broker.stop())

    def _run(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)  # type: ignore[arg-type]

    def close(self) -> None:
        self.stop()
        self._run(_drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


async def _drain() -> None:
    rest = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


class Mosquitto:
    def __init__(self, authority: Authority, folder: Path) -> None:
        self.port = free_port()
        user = "root" if os.geteuid() == 0 else None
        self._conf = write_configuration(
            authority, folder, port=self.port, bind="127.0.0.1", now=datetime.now(UTC), user=user
        )
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["/usr/sbin/mosquitto", "-c", str(self._conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: answers(self.port), "mosquitto to answer")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)

    close = stop


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def wait_for(done: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.fixture
def mosquitto_of() -> type[Mosquitto]:
    return Mosquitto


@pytest.fixture
def amqtt_of() -> type[Amqtt]:
    return Amqtt


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_for


@pytest.fixture(scope="module", params=["amqtt", "mosquitto"])
def broker(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Amqtt | Mosquitto]:
    one = Amqtt(authority) if request.param == "amqtt" else Mosquitto(authority, tmp_path_factory.mktemp("mosquitto"))
    yield one
    one.close()


@pytest.fixture
def database_url() -> str:
    """A database on PostgreSQL for one test."""
    return server().url(server().migrated)


@pytest.fixture(params=["sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """Both databases, of each kind: for tests of what is written and read there."""
    return chosen(tmp_path / "stores", asked=request.param == "postgresql")


@pytest.fixture(scope="session")
def processes() -> Any:
    """Of children that a test kills; what they import is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sim.writer", "sim.deaths"])
    with pytest.MonkeyPatch.context() as patch:  # which the server needs to find them
        patch.setenv("PYTHONPATH", str(Path(wire.__file__).parents[1]))
        forkserver.ensure_running()
    return context


@pytest.fixture
def telemetry_engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_telemetry(chosen(tmp_path).telemetry)
    yield engine
    engine.dispose()


@pytest.fixture
def control_engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_control(chosen(tmp_path).control)
    yield engine
    engine.dispose()


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    """The owner's keys; `hub/` in it is what the hub is given."""
    init_keys(tmp_path / "owner", now=datetime.now(UTC))
    return tmp_path / "owner"


@pytest.fixture
def registry(tmp_path: Path, owner: Path, control_engine: sa.Engine) -> Registry:
    one = Registry(tmp_path / "repo", tmp_path / "keys", control_engine)
    one.open(owner / "hub", now=datetime.now(UTC))
    return one


@dataclass
class Names:
    """Ids that no other test of the module uses."""

    prefix: str
    number: itertools.count[int]

    def __call__(self) -> str:
        return f"{self.prefix}-{next(self.number)}"


@pytest.fixture
def new_device(request: pytest.FixtureRequest) -> Names:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[-40:].strip("-")
    return Names(f"d-{name}", itertools.count())


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """Two versions of one model."""
    root = tmp_path_factory.mktemp("packages")
    return {v: make_package(root / v, version=v, seed=i) for i, v in enumerate(("1.0.0", "2.0.0"))}


@pytest.fixture
def house(tmp_path: Path, grown: House) -> House:
    """What the module has `grown`, for one test alone."""
    return grown.copy(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> Iterator[Path]:
    """A hub with two published packages and three devices that listen to nobody."""
    tmp_path = tmp_path_factory.mktemp("hub")
    owner, place = tmp_path / "owner", tmp_path / "data"
    init_keys(owner, now=datetime.now(UTC))
    chosen(place)
    command = [sys.executable, "-c", "from edgewright.main import main; main()", "hub", "serve", "--data", str(place)]
    ports = ["--https", "127.0.0.1:0", "--page", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--tick-s", "0.1"]
    hub = subprocess.Popen([*command, *ports, "--trust", str(owner / "hub")], stdout=subprocess.PIPE, text=True)
    assert hub.stdout is not None
    assert hub.stdout.readline()
    house = House(place, packages, now=int(time.time() * 1000))
    for version in packages:
        house.publish_package(version)
    house.enrol("pi-0", "pi-1", "pi-2")
    yield place
    hub.terminate()
    hub.communicate(timeout=60)
    house.control.dispose()
    house.telemetry.dispose()


@pytest.fixture
def edgewright(data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command, as a person at this hub gives it: status, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--data", str(data)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
