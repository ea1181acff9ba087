"""The install thread: it listens while it works, loses no wish, and does not spin."""

from __future__ import annotations

import contextlib
import errno
import itertools
import threading

import msgspec
import pytest

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.inbox import Inbox, Sealed
from edgewright_agent.updating.update import State
from edgewright_contracts.desired import Desired, DesiredModel
from edgewright_contracts.errors import RequestError, Unavailable
from sim import packages

GOOD = ["idle", "fetch", "stage", "selftest", "warmup", "activate", "probation", "commit", "idle"]


class FullDisk(RealDisk):
    """Refuses to write while `full`; `refused` counts."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.refused = False, 0

    def _put(self, path, data, flags):
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, "no space left on device")
        super()._put(path, data, flags)


@pytest.fixture
def feed():
    """feed(agent, image) predicts until the test ends."""
    stop, threads = threading.Event(), []

    def start(agent, image):
        def run():
            while not stop.wait(0.003):
                with contextlib.suppress(RequestError, Unavailable):
                    agent.model("digits").predict({"image": image[0]})

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_a_release_that_is_withdrawn_while_it_comes_in_never_answers(world, feed, monkeypatch):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=2)
    image = [packages.draw(1, seed=1)[0][0]]
    with world.agent() as agent:
        feed(agent, image)
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        link = agent._link
        chunks, again = link.chunks, threading.Event()

        def withdrawn(response):
            for chunk in chunks(response):
                if "/blobs/" in str(response.url) and not again.is_set():
                    again.set()
                    world.want(first)  # the hub took it back, with the first bytes of it on the device
                yield chunk

        monkeypatch.setattr(link, "chunks", withdrawn)
        world.want(second)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[8:] == ["idle", "fetch", "idle"])
        told = next(e for e in reversed(world.hub.events["dev-1"]) if e.model)
        assert (told.failure, told.reason) == ("operator", "something else is wanted")
    assert {w.digest for w in world.hub.windows["dev-1"]} == {first.digest[:16]}


def test_a_release_that_is_withdrawn_during_its_selftest_is_not_switched_to(world, monkeypatch):
    package = world.package("v1")
    with world.agent() as agent:
        steps = agent._installer._steps
        selftest = steps._table[State.SELFTEST]

        def withdrawn(job):
            selftest(job)
            agent._installer.desire(Desired(rev=2, models=(DesiredModel(name="digits", digest=None),)))

        monkeypatch.setitem(steps._table, State.SELFTEST, withdrawn)
        world.want(package)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == [*GOOD[:5], "idle"])
        assert agent.model("digits").active is None


def test_a_trial_that_breaks_is_ended_while_another_model_comes_in(world, feed, monkeypatch):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=2)
    other = world.package("other", name="other")
    good = packages.draw(1, seed=1)[0][0]
    bad = good.copy()
    bad[0, 0] = 200  # out of range: every input is refused
    image = [good]
    with world.agent() as agent:
        feed(agent, image)
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(second, windows=10_000)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "probation")
        link = agent._link
        rolled_back, begun, chunks = threading.Event(), threading.Event(), link.chunks
        emit = agent._installer._host.emit

        def noted(event):
            emit(event)
            if event.model == "digits" and event.after == "blocked":
                rolled_back.set()

        def endless(response):
            """A slow link: one byte of the other model each 20 ms until the trial of the first has ended."""
            for chunk in chunks(response):
                if "/blobs/" in str(response.url) and not rolled_back.is_set():
                    begun.set()
                    for byte in chunk[: len(chunk) // 2]:
                        if rolled_back.wait(0.02):
                            break
                        yield bytes([byte])
                    return
                yield chunk

        monkeypatch.setattr(agent._models, "emit", noted)
        monkeypatch.setattr(link, "chunks", endless)
        wished = agent._reporter.desired
        world.rev += 1
        models = (*wished.models, DesiredModel(name="other", digest=other.digest))
        world.hub.want("dev-1", Desired(rev=world.rev, config=wished.config, models=models))
        assert begun.wait(60)
        image[0] = bad
        assert rolled_back.wait(60)
        assert agent.model("digits").active.digest == first.digest
        assert agent._installer.states()["other"].record.state is State.FETCH
        image[0] = good
        assert agent.model("other").wait(60)  # and its download went on


def test_a_wish_is_kept_until_the_disk_took_it(world, monkeypatch):
    package = world.package("v1")
    disk, refused = RealDisk(), itertools.count()
    mkdir = disk.mkdir

    def once(path):
        if path.name == "digits" and next(refused) == 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        mkdir(path)

    monkeypatch.setattr(disk, "mkdir", once)
    with world.agent(disk=disk) as agent:
        world.want(package)
        assert agent.model("digits").wait(60)
    assert next(refused) > 1


def test_a_disk_that_fills_up_before_the_switch_keeps_the_new_package_from_answering_and_nothing_spins(
    world, monkeypatch
):
    package = world.package("v1")
    disk = FullDisk()
    with world.agent(disk=disk) as agent:
        steps, installer = agent._installer._steps, agent._installer
        warm_up, tried, took = steps._table[State.WARMUP], threading.Event(), []
        activate = steps._table[State.ACTIVATE]

        def fill(job):
            warm_up(job)
            disk.full = True

        def counted(job):
            took.append(job.now_s)
            tried.set()
            activate(job)

        monkeypatch.setitem(steps._table, State.WARMUP, fill)
        monkeypatch.setitem(steps._table, State.ACTIVATE, counted)
        world.want(package)
        assert tried.wait(60)
        threading.Event().wait(2)  # time in which a thread that spins would try thousands of times
        assert len(took) == 1
        assert agent.model("digits").active is None
        installer.desire(Desired(rev=99, models=(DesiredModel(name="digits", digest=None),)))
        for _ in range(100):
            if installer._jobs["digits"].wanted.digest is None:
                break
            threading.Event().wait(0.05)
        assert installer._jobs["digits"].wanted.digest is None  # it listens all the while
        disk.full = False


def test_what_the_package_before_did_outlives_a_reboot_and_a_rollback(world, feed):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=2)
    good = packages.draw(1, seed=1)[0][0]
    bad = good.copy()
    bad[0, 0] = 200  # out of range: refused
    with world.agent() as agent:
        world.want(first)
        feed(agent, [good])
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        feed(agent, [bad])  # from now on half of all inputs are refused, whatever runs
        history = agent._installer._jobs["digits"]
        assert world.hub.wait(lambda: history.history.n > 200 and history.history.rejected > 100)
    seen = history.history
    with world.agent() as agent:
        assert agent._installer._jobs["digits"].history == seen
        feed(agent, [good])
        feed(agent, [bad])
        world.want(second, windows=2)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[9:] == GOOD[1:])  # no worse than before


def test_the_yardstick_of_a_trial_that_went_back_is_that_of_the_old_package_again(world, feed):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=2)
    good = packages.draw(1, seed=1)[0][0]
    with world.agent() as agent:
        world.want(first)
        feed(agent, [good])
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        job = agent._installer._jobs["digits"]
        assert world.hub.wait(lambda: job.history.n > 50)
        world.want(second, windows=10_000)
        assert world.hub.wait(lambda: agent.model("digits").active.digest == second.digest)  # behind every write
        before = job.record.before
        assert before.n > 50
        assert job.history.n == 0
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == ["rollback", "idle"])
        assert job.history.n >= before.n


def test_a_history_is_written_while_it_doubles_and_then_once_an_hour():
    from pathlib import Path

    from edgewright_agent.updating.job import Job
    from edgewright_agent.updating.slots import Slot, Store
    from edgewright_contracts.report import Window
    from sim.clock import SimClock
    from sim.disk import SimDisk

    disk, clock = SimDisk(), SimClock()
    store = Store(disk, Path("/models"), "digits")
    slot = Slot("a" * 64, "1.0", "onnx-fp32", "onnxruntime")
    store.save(msgspec.structs.replace(store.state, active="a", a=slot))
    job = Job(store, None, clock, "b" * 16)
    window = Window(
        boot_id="1" * 16, mono_start_ms=0, mono_end_ms=1, wall_start_ms=None, clock="unknown", next_due_s=1,
        digest="a" * 16, variant="onnx-fp32", edge_hash="e" * 16, n=10,
    )  # fmt: skip
    before = disk.calls
    for _ in range(60):
        job.remember([window])
    writes = (disk.calls - before) // 4  # write, fsync, rename, fsync
    assert writes == 6  # at 10, 20, 40 … 320
    clock.advance(3601)
    job.remember([window])
    assert Store(disk, Path("/models"), "digits").state.history.n == 610


class Wishes:
    """Handlers of an inbox whose disk may be full, and whose next call may hit a bug."""

    def __init__(self) -> None:
        self.full, self.bug, self.seen = False, False, []
        wanted = lambda w: self.take(w.model.name, w.model.digest)  # noqa: E731
        self.inbox = Inbox(wanted, self.observed, self.registered, self.registered, self)

    def observed(self, sealed) -> None:
        self.take(sealed.model, sealed.rss_mb)

    def registered(self, news) -> None:
        self.take(news)

    def take(self, *what) -> None:
        if self.bug:
            self.bug = False
            raise RuntimeError("a bug")
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.seen.append(what)

    def tell(self, thread, error) -> None:
        pass

    def wish(self, rev: int, digest: str, name: str = "digits") -> None:
        self.inbox.put(Desired(rev=rev, models=(DesiredModel(name=name, digest=digest * 64),)))


def test_what_the_disk_refuses_stays_in_the_inbox_and_a_newer_wish_replaces_it():
    w = Wishes()
    w.full = True
    w.inbox.put(Sealed("digits", [], 1.0))
    w.wish(1, "a")
    w.wish(1, "c", name="other")
    w.inbox.read()
    w.wish(2, "b")
    w.inbox.read()
    w.full = False
    w.inbox.read()
    w.inbox.read()
    assert w.seen == [("digits", "b" * 64), ("other", "c" * 64), ("digits", 1.0)]


def test_a_bug_loses_the_message_that_hit_it_and_no_other():
    w = Wishes()
    w.bug = True
    w.wish(1, "a")
    w.inbox.put(Sealed("digits", [], 1.0))
    w.inbox.read()
    assert w.seen == [("digits", 1.0)]


def test_an_active_package_that_has_rotted_gives_way_to_the_other_even_when_the_disk_is_full(world, feed):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=2)
    with world.agent() as agent:
        feed(agent, [packages.draw(1, seed=1)[0][0]])
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(second)
        assert world.hub.wait(lambda: len(world.hub.trace("dev-1")) == 17)
    disk = FullDisk()
    agent = world.agent(disk=disk)
    installer = agent._installer
    folder = world.home("dev-1") / "models" / "digits" / installer._job("digits").state.active
    (folder / "variants" / "onnx-fp32" / "model.onnx").write_bytes(b"rot")
    disk.full = True
    installer.boot(unclean=False)
    assert agent.model("digits").active.digest == first.digest
    disk.full = False
    agent.close()
