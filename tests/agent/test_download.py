"""How fast, how much in a day and when a device downloads, by what the hub asks of it; all in virtual time."""

from __future__ import annotations

import hashlib
import io
import random
import socket

import msgspec
import pytest
import urllib3

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.fetch import Link
from edgewright_agent.updating.job import Interrupted
from edgewright_agent.updating.pace import DAY_S, Bucket, Ration
from edgewright_agent.updating.refusals import LinkDown, Spent, WrongBytes
from edgewright_agent.updating.turns import Turns
from edgewright_contracts.desired import Config, Desired, DesiredModel, Download
from sim.clock import SimClock
from sim.link import SimLink
from sim.repository import Repository

URL = "http://hub/blobs/"
NOON_MS = (20_000 * DAY_S + DAY_S // 2) * 1000


class Blobs:
    """A folder of blobs behind a fast link, and a device that starts again with `boot`."""

    def __init__(self, folder, wall_ms=NOON_MS):
        self.folder, self.clock, self.disk = folder, SimClock(wall_ms), RealDisk()
        (folder / "blobs").mkdir()
        self.download = Download()
        self.boot()

    def boot(self):
        self.wire = SimLink(self.folder, self.clock, bytes_per_s=1e6)
        self.ration = Ration(self.disk, self.folder / "download.json", self.clock)
        self.link = Link(self.wire.pool, clock=self.clock, ration=self.ration, wait=self.clock.advance)
        self.link.pace(self.download)

    def ask(self, **download):
        self.download = Download(**download)
        self.link.pace(self.download)

    def put(self, size, seed=0):
        data = random.Random(seed).randbytes(size)
        name = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / name).write_bytes(data)
        return name

    def get(self, name):
        size = (self.folder / "blobs" / name).stat().st_size
        self.link.blob(self.disk, URL + name, self.folder / name, size, name)

    def have(self, name):
        return self.disk.size(self.folder / name) or 0


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path)


def test_a_slow_pace_does_not_burst(blobs):
    blobs.ask(bytes_per_s=1000)
    name, arrivals = blobs.put(20_000), []
    append = blobs.disk.append

    def noted(path, data):
        arrivals.append((blobs.clock.monotonic_ns() / 1e9, len(data)))
        append(path, data)

    blobs.disk.append = noted
    blobs.get(name)
    assert arrivals[-1][0] - arrivals[0][0] > 18.5
    worst = max(sum(n for at, n in arrivals if begin <= at < begin + 1) for begin, _ in arrivals)
    assert worst <= 1500
    assert max(n for _, n in arrivals) <= 250


def test_a_bucket_keeps_no_more_than_half_a_second_and_waits_for_its_debts():
    bucket = Bucket(1000, 0.0)
    assert bucket.wait_s(3600.0) == 0
    for _ in range(2):
        assert bucket.wait_s(3600.0) == 0
        bucket.take(250)
    assert bucket.wait_s(3600.0) == pytest.approx(0.25)
    bucket.take(2000)
    assert bucket.wait_s(3600.0) == pytest.approx(2.25)


def test_a_paced_connection_lets_the_kernel_take_in_little_ahead(tmp_path):
    repository = Repository(tmp_path / "repo")
    (repository.folder / "blobs" / "x").write_bytes(bytes(100))
    with repository.served() as url:
        sizes = []
        for rate in (None, 1000):
            link = Link()
            link.pace(Download(bytes_per_s=rate))
            response = link.open(url + "blobs/x")
            sizes.append(response.connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
            response.close()
    assert sizes[1] < 10_000 < sizes[0]


def test_bytes_are_counted_as_they_came_over_the_wire(tmp_path):
    repository = Repository(tmp_path / "repo")
    data = bytes(50_000)
    name = hashlib.sha256(data).hexdigest()
    (repository.folder / "blobs" / name).write_bytes(data)
    with repository.served() as url:
        link = Link()
        link.blob(RealDisk(), f"{url}blobs/{name}", tmp_path / "part", len(data), name)
    assert len(data) + 100 < link.received < len(data) + 500  # headers
    assert 100 < link.sent < 500


def test_a_days_ration_is_kept_across_restarts_and_goes_on_the_next_day(blobs):
    blobs.ask(bytes_per_day=100_000)
    name = blobs.put(250_000)
    for day in range(2):
        for _ in range(3):
            with pytest.raises(Spent, match="100000 bytes that this device may download in a day") as spent:
                blobs.get(name)
            blobs.boot()
        assert 0.85 * 100_000 * (day + 1) < blobs.have(name) <= 100_000 * (day + 1)
        assert 0 < spent.value.after_s <= DAY_S
        blobs.clock.advance(spent.value.after_s + 1)
    blobs.get(name)


def test_a_kill_takes_from_the_ration_and_never_adds_to_it(blobs):
    blobs.ask(bytes_per_day=160_000)
    name, interrupted = blobs.put(500_000), 0

    def killed():
        nonlocal interrupted
        interrupted += 1
        if interrupted % 3 == 0:
            raise KeyboardInterrupt

    for _ in range(100):
        blobs.link.settle = lambda: None  # a kill settles nothing
        try:
            blobs.link.blob(blobs.disk, URL + name, blobs.folder / name, 500_000, name, killed)
        except KeyboardInterrupt:
            blobs.boot()
        except Spent:
            break
    assert 10_000 < blobs.have(name) <= 160_000


@pytest.mark.parametrize("back_s", [-DAY_S * 9, None])
def test_a_clock_set_back_or_lost_gives_no_new_day(blobs, back_s):
    blobs.ask(bytes_per_day=50_000)
    name = blobs.put(200_000)
    with pytest.raises(Spent):
        blobs.get(name)
    blobs.clock.set_wall(None if back_s is None else NOON_MS + back_s * 1000)
    blobs.boot()
    blobs.clock.advance(3600)
    with pytest.raises(Spent):
        blobs.get(name)
    blobs.clock.advance(DAY_S)  # of running
    had = blobs.have(name)
    with pytest.raises(Spent):
        blobs.get(name)
    assert blobs.have(name) > had


def test_a_device_that_starts_in_1970_gets_no_second_ration_when_it_learns_the_time(tmp_path):
    blobs = Blobs(tmp_path, wall_ms=None)
    blobs.ask(bytes_per_day=50_000)
    name = blobs.put(200_000)
    with pytest.raises(Spent):
        blobs.get(name)
    blobs.clock.set_wall(NOON_MS)
    had = blobs.have(name)
    with pytest.raises(Spent):
        blobs.get(name)
    assert blobs.have(name) == had
    blobs.clock.advance(DAY_S / 2 + 1)  # now a day begins that it knows of
    with pytest.raises(Spent):
        blobs.get(name)
    assert blobs.have(name) > had


@pytest.mark.parametrize("damage", [b"", b"{", b'{"number":1,"used":-5,"ran_s":0}', b"x" * 5000])
def test_a_damaged_count_does_not_end_downloads(blobs, damage):
    (blobs.folder / "download.json").write_bytes(damage)
    blobs.boot()
    blobs.ask(bytes_per_day=100_000)
    name = blobs.put(20_000)
    blobs.get(name)


def test_without_a_ration_nothing_is_written_but_the_file(blobs):
    name = blobs.put(20_000)
    blobs.get(name)
    assert not (blobs.folder / "download.json").exists()
    assert blobs.disk.written == 20_000


def test_a_ration_costs_few_writes(blobs):
    blobs.ask(bytes_per_day=1_000_000)
    name = blobs.put(900_000)
    blobs.get(name)
    assert blobs.disk.written < 900_000 + 20 * 100


def test_a_proxy_that_packs_or_answers_from_elsewhere_is_told_and_no_byte_is_mixed(blobs, monkeypatch):
    name = blobs.put(20_000)
    request = blobs.wire.request

    def packing(*given, **named):
        response = request(*given, **named)
        response.headers["Content-Encoding"] = "gzip"
        return response

    monkeypatch.setattr(blobs.wire, "request", packing)
    with pytest.raises(LinkDown, match="a proxy changes what it passes on"):
        blobs.get(name)

    def elsewhere(*given, **named):
        response = request(*given, **named)
        response.headers["Content-Range"] = "bytes 0-19999/20000"
        return response

    monkeypatch.setattr(blobs.wire, "request", elsewhere)
    (blobs.folder / name).write_bytes(bytes(500))
    with pytest.raises(LinkDown, match="expected bytes from 500, got those from 0"):
        blobs.get(name)
    monkeypatch.setattr(blobs.wire, "request", request)
    blobs.get(name)


def test_an_unsigned_file_that_was_replaced_meanwhile_is_begun_anew(tmp_path):
    repository = Repository(tmp_path / "repo")
    file, part = repository.folder / "blobs" / "patch", tmp_path / "part"
    file.write_bytes(b"a" * 40_000)
    with repository.served() as url:
        link = Link()
        repository.break_after = 500
        with pytest.raises(LinkDown):
            link.unsigned(RealDisk(), url + "blobs/patch", part, 50_000)
        assert part.stat().st_size == 500
        file.write_bytes(b"b" * 40_000)
        link.unsigned(RealDisk(), url + "blobs/patch", part, 50_000)
        assert part.read_bytes() == b"b" * 40_000
        link.unsigned(RealDisk(), url + "blobs/patch", part, 50_000)  # whole already
        part.unlink()
        with pytest.raises(WrongBytes, match="expected 30000 bytes, got more"):
            link.unsigned(RealDisk(), url + "blobs/patch", part, 30_000)
        assert not part.exists()


class Store:
    name = "digits"

    def __init__(self, root):
        self.root = root


class Waiting:
    """As much of a job as waits for its turn."""

    def __init__(self, root, clock):
        self.store, self._clock, self.told, self.retry_at_s = Store(root), clock, [], 0.0
        self.record = Record()

    @property
    def now_s(self):
        return self._clock.monotonic_ns() / 1e9

    def announce(self, record):
        self.record = record
        self.told.append(record.reason)


class Record(msgspec.Struct, frozen=True):
    digest: str = "d1"
    reason: str = ""
    failure: str | None = None


def test_devices_begin_within_the_time_that_the_hub_gives_them_and_say_so_once(tmp_path):
    clock, link = SimClock(), Link()
    link.pace(Download(spread_s=600.0))
    job, turns = Waiting(tmp_path, clock), Turns(RealDisk(), link, lambda: 0.5)
    for _ in range(3):  # whatever the hub repeats
        with pytest.raises(Interrupted):
            turns.wait(job)
    assert len(job.told) == 1
    assert job.retry_at_s - job.now_s == pytest.approx(300)
    clock.advance(300)
    turns.wait(job)
    job.record = Record("d2")
    with pytest.raises(Interrupted):
        turns.wait(job)


def test_a_download_that_has_begun_goes_on_at_once_after_a_restart(tmp_path):
    clock, link = SimClock(), Link()
    link.pace(Download(spread_s=600.0))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "f").write_bytes(b"x")
    Turns(RealDisk(), link, lambda: 0.9).wait(Waiting(tmp_path, clock))


def test_a_used_up_ration_is_told_and_waited_for_and_is_no_failed_attempt(world):
    package = world.package("v1")
    with world.agent() as agent:
        agent._link.pace(Download(bytes_per_day=4000))
        config = Config(window_s=0.5, download=Download(bytes_per_day=4000))
        model = DesiredModel(name="digits", digest=package.digest)
        world.hub.want("dev-1", Desired(rev=1, config=config, models=(model,)))
        assert world.hub.wait(lambda: any(e.failure for e in world.hub.events["dev-1"]))
        told = next(e for e in world.hub.events["dev-1"] if e.failure)
        assert (told.failure, told.before, told.after, told.attempt) == ("link", "fetch", "fetch", 1)
        assert told.reason.startswith("the 4000 bytes that this device may download in a day are used up")
        config = Config(version=1, window_s=0.5)
        world.hub.want("dev-1", Desired(rev=2, config=config, models=(model,)))
        assert world.hub.wait(lambda: "activate" in world.hub.trace("dev-1"))
        assert {e.attempt for e in world.hub.events["dev-1"] if e.model == "digits"} == {1}


@pytest.mark.parametrize("brings", [0, 1])
def test_a_repository_that_answers_and_brings_next_to_nothing_is_left(blobs, brings):
    asked = []

    class Drip:
        def request(self, method, url, *, headers, preload_content):
            at = int(headers.get("Range", "bytes=0-")[6:].partition("-")[0])
            asked.append(at)
            said = {"Content-Range": f"bytes {at}-{at + brings - 1}/20000", "Content-Length": str(brings)}
            return urllib3.HTTPResponse(io.BytesIO(b"x" * brings), said, 206, preload_content=False)

    link = Link(lambda **_: Drip(), clock=blobs.clock, wait=blobs.clock.advance)
    part = blobs.folder / "part"
    part.write_bytes(b"x" * 700)
    with pytest.raises(LinkDown, match="got less"):
        link.blob(blobs.disk, URL + "name", part, 20_000, "0" * 64)
    assert len(asked) == 1


def test_errors_of_the_network_are_the_links(blobs, monkeypatch):
    def refused(*_, **__):
        raise urllib3.exceptions.ProtocolError("refused")

    name = blobs.put(9)
    monkeypatch.setattr(blobs.wire, "request", refused)
    with pytest.raises(LinkDown, match="refused"):
        blobs.get(name)
