"""A device that is killed again and again while it updates and reports, over a real broker to the hub's own ingest.

    tally = kill(folder, times=50)

Every start is asked until a model answers; some are killed before they get that far. A new version is wanted again and
again, so that kills hit downloads, self-tests, switches and probations. In the end the hub's windows are compared with
what the device said that it had sealed.
"""

from __future__ import annotations

import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import sqlalchemy as sa

from edgewright_contracts import desired as down
from edgewright_contracts import report
from edgewright_hub.fleet.ca import Authority, open_authority
from edgewright_hub.ingest.consumer import Consumer
from edgewright_hub.ingest.ingest import Known
from edgewright_hub.ingest.refusals import Noted
from edgewright_hub.mqtt.mosquitto import write_configuration
from edgewright_hub.storage import telemetry

from . import packages, power, wire
from .repository import Repository

VICTIM = Path(__file__).with_name("victim.py")
START_S = 30.0  # within which a start must answer; imports and all, on a busy machine


@dataclass
class Tally:
    sigkills: int = 0
    starts: int = 0
    bricked: int = 0  # starts that were not killed and in which no model answered
    counts_lost: int = 0
    counts_doubled: int = 0
    inferences: int = 0  # that the hub has counted
    versions: int = 0  # that answered


class Victim:
    """One start of the device; `said` are the lines that it has said so far."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(VICTIM), str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.said: list[list] = []
        self._answered: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def answered(self, seconds: float) -> bool:
        try:
            self._answered.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def stop(self) -> None:
        self.process.stdin.close()
        self._end()

    def _end(self) -> None:
        self.process.wait(60)
        self._reader.join()
        self.process.stdout.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            words = msgspec.json.decode(line)
            self.said.append(words)
            if words[0] == "answers":
                self._answered.put(words[1])


def kill(folder: Path, times: int, seed: int = 1) -> Tally:
    """Needs mosquitto. About three seconds a kill."""
    rng = random.Random(seed)
    authority = open_authority(folder / "ca", now=datetime.now(UTC))
    authority.keep_server((), authority.folder, now=datetime.now(UTC))
    repository = Repository(folder / "repo")
    made = [packages.make_package(folder / f"v{i}", version=f"{i}.0.0", seed=i, slow=1) for i in range(1, 6)]
    for package in made:
        repository.publish(package)
    engine = telemetry.open_telemetry(folder / "telemetry.db")
    with repository.served() as url, _Mosquitto(authority, folder / "mosquitto") as port:
        home = _home(folder / "home", authority, port, url, repository)
        consumer = Consumer(
            engine,
            host="127.0.0.1",
            port=port,
            context=authority.client_context(),
            known=Known(lambda _: "default"),
            desired=list,
            noted=Noted(),
            ack_s=0.2,
        )
        consumer.start()
        try:
            assert consumer.ready.wait(60)
            return _kill(home, consumer, engine, made, times, rng)
        finally:
            consumer.stop()
            engine.dispose()


def _kill(home, consumer, engine, made, times, rng) -> Tally:
    tally = Tally()
    said: list[list] = []
    for turn in range(times + 1):
        if turn % 3 == 0:
            wish = power.desired(turn + 1, made[turn // 3 % len(made)])
            consumer.publish(power.DEVICE, "desired", down.encode(wish), True)
        victim = Victim(home)
        tally.starts += 1
        last = turn == times
        if not last and rng.random() < 0.2:  # in the middle of the start
            time.sleep(rng.uniform(0.2, 1.5))
        else:
            tally.bricked += not victim.answered(START_S)
            if not last:
                time.sleep(rng.uniform(0.0, 3.0))
        if last:
            # What is sealed at the very end may wait for the next start.
            must = _sealed([*said, *victim.said], "sealed")
            power.until(lambda all_of=must: all_of <= _counted(engine), START_S)
            victim.stop()
        else:
            victim.kill()
            tally.sigkills += 1
        said += victim.said
    may, got = _sealed(said, "sealing"), _counted(engine)
    tally.counts_lost, tally.counts_doubled = (must - got).total(), (got - may).total()
    tally.inferences = got.total()
    tally.versions = len({words[1] for words in said if words[0] == "answers"})
    return tally


def _sealed(said: list[list], word: str) -> Counter[power.Mark]:
    total: Counter[power.Mark] = Counter()
    for words in said:
        if words[0] == word:
            for *who, n in words[1]:
                total[tuple(who)] += n
    return total


def _counted(engine: sa.Engine) -> Counter[power.Mark]:
    total: Counter[power.Mark] = Counter()
    with engine.connect() as connection:
        for (body,) in connection.execute(sa.select(telemetry.windows.c.body)):
            window = report.decode_report(body).window
            total[power.mark(window)] += window.n
    return total


def _home(home: Path, authority: Authority, port: int, url: str, repository: Repository) -> Path:
    request, key = wire.signing_request(power.DEVICE)
    signed = authority.sign(request, power.DEVICE, now=datetime.now(UTC))
    said = {"device": power.DEVICE, "broker": {"host": "127.0.0.1", "port": port}, "repo": url}
    files = {
        "hub.json": msgspec.json.encode(said),
        "root.json": repository.root,
        "device.key": key,
        "device.crt": signed.certificate.encode(),
        "ca.pem": (authority.folder / "ca.pem").read_bytes(),
    }
    power.lay(home, {Path("identity") / name: data for name, data in files.items()})
    return home


class _Mosquitto:
    def __init__(self, authority: Authority, folder: Path) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self._port = int(one.getsockname()[1])
        user = "root" if os.geteuid() == 0 else None
        self._conf = write_configuration(
            authority, folder, port=self._port, bind="127.0.0.1", now=datetime.now(UTC), user=user
        )

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            ["/usr/sbin/mosquitto", "-c", str(self._conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert power.until(self._answers, 10), "mosquitto does not answer"
        return self._port

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _answers(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self._port)) == 0
