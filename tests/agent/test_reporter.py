"""Windows end when they should, and reach the hub once, whatever the link and the disk do meanwhile."""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewright_agent import clock
from edgewright_agent.clock import SystemClock
from edgewright_agent.delivery import offers, wishes
from edgewright_agent.delivery import reporter as reporters
from edgewright_agent.delivery.reporter import Reporter
from edgewright_agent.delivery.span import length_s
from edgewright_agent.delivery.spool import Spool
from edgewright_agent.inference.model import Active, InferenceFailed, Model, Rejected
from edgewright_agent.limits.governor import Step
from edgewright_agent.telemetry.meter import Meter
from edgewright_agent.telemetry.notices import Notice
from edgewright_agent.telemetry.outcomes import Outcome
from edgewright_agent.telemetry.rows import Subject
from edgewright_agent.unforeseen import Unforeseen
from edgewright_contracts import binning, birth
from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.birth import Unclean
from edgewright_contracts.desired import REOFFER_S, Ack, Command, Config, Desired, Limits, encode_ack
from edgewright_runtime.runtime import open_session
from sim import packages
from sim.broker import SimBroker, SimTransport
from sim.clock import SimClock
from sim.disk import SimDisk
from sim.hub import SimHub

HOME = Path("/home")
BOOT = "b" * 16


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packages.make_package(tmp_path_factory.mktemp("package") / "p")


class Bench:
    """A reporter without its thread: `turn` is called by hand, time stands still until it is moved."""

    def __init__(self, package, clock: SimClock | None = None) -> None:
        self.clock, self.disk = clock or SimClock(), SimDisk()
        self.disk.mkdir(HOME)
        self.broker = SimBroker()
        self.hub = SimHub(self.broker)
        self.link = SimTransport(self.broker, "dev-1")
        variant = package.manifest.variant("onnx-fp32")
        baseline = decode_baseline(package.read(variant.baseline))
        self.subject = Subject("digits", package.manifest, package.digest, variant, baseline)
        io = {"inputs": package.manifest.inputs, "outputs": package.manifest.outputs}
        session = open_session(package.root / variant.model, "onnxruntime", **io)
        wake = threading.Event()
        self.meter = Meter(wake)
        self.model = Model("digits", self.meter, self.clock, itertools.count(1))
        self.model.switch(Active(self.subject, session))
        ids = itertools.count(1)
        self.spool = Spool(
            self.disk,
            HOME / "spool",
            new_id=lambda: f"{next(ids):016x}",
        )
        self.spool.begin(Unclean(boot_id=BOOT, open_since_mono_ms=0))
        self.subjects, self.predicted = [self.subject], 0
        self.sealed: list = []
        self.desired: list[Desired] = []
        self.hurry = False
        self.reporter = Reporter(
            HOME, disk=self.disk, clock=self.clock, meter=self.meter, spool=self.spool, transport=self.link, wake=wake,
            boot_id=BOOT, subjects=lambda: self.subjects, hurried=lambda: self.hurry,
            observe=lambda sealed, rss: self.sealed.append(sealed), desire=self.desired.append, born=self.born,
            https=lambda: (0, 0), unforeseen=Unforeseen(self.spool.event, self.clock, BOOT),
        )  # fmt: skip
        self.image = packages.draw(1, seed=1)[0][0]

    def born(self, connection: int, window_s: int) -> bytes:
        return birth.encode(
            birth.Birth(
                device="dev-1", boot_id=BOOT, connection=connection, agent="0.1.0",
                hardware=birth.Hardware(arch="x86_64"), runtimes={}, clock="synced", uptime_ms=0,
                window_s=window_s, spool=self.spool.told(), unclean=self.spool.state.unclean,
            )
        )  # fmt: skip

    def predict(self, times: int) -> None:
        self.predicted += times
        for _ in range(times):
            self.model.predict({"image": self.image})

    def pass_window(self, times: int, seconds: float = 300.0) -> None:
        self.predict(times)
        self.clock.advance(seconds)
        self.reporter.turn()

    def counts(self) -> list[int]:
        return [w.n for w in self.hub.windows["dev-1"]]


@pytest.fixture
def bench(package):
    return Bench(package)


def test_a_synced_window_ends_on_a_multiple_of_its_length():
    assert length_s(1_800_000_000_000, 300) == 300
    assert length_s(1_800_000_123_000, 300) == 177
    assert length_s(None, 300) == 300


def test_windows_are_sealed_at_their_time_and_carry_what_the_clock_knew(package):
    bench = Bench(package, SimClock(1_800_000_100_000))
    bench.link.start(bench.reporter)
    bench.predict(3)
    bench.clock.advance(199)
    bench.reporter.turn()
    assert bench.counts() == []
    bench.clock.advance(1)
    bench.reporter.turn()
    (window,) = bench.hub.windows["dev-1"]
    assert (window.n, window.clock, window.wall_start_ms) == (3, "synced", 1_800_000_100_000)
    assert window.mono_end_ms - window.mono_start_ms == 200_000
    assert window.next_due_s == 600
    bench.pass_window(0)
    assert bench.hub.windows["dev-1"][1].n == 0  # silence is told from idleness


def test_waits_and_runs_go_out_on_every_eighth_edge_and_the_device_judges_by_every_one(bench):
    bench.link.start(bench.reporter)
    times = [(3_000, 40_000), (3_500, 41_500), (90_000, 44_000), (5_000_000, 900_000)]
    for i, (wait, run) in enumerate(times, 1):
        bench.model.active.rows.add(i, 0, wait, wait + run, 0, False, b"")
    bench.pass_window(0)
    (told,) = bench.hub.windows["dev-1"]
    (((_, judged),),) = bench.sealed
    waits, runs, totals = (
        [binning.grid_index(ns).item() for ns in of] for of in (*zip(*times, strict=True), [w + r for w, r in times])
    )
    assert _cells(told.latency_queue) == sorted(cell // 8 * 8 for cell in waits)
    assert _cells(told.latency_run) == sorted(cell // 8 * 8 for cell in runs)
    assert _cells(judged.latency_run) == sorted(runs)
    assert _cells(told.latency_total) == _cells(judged.latency_total) == sorted(totals)


def _cells(grid: bytes) -> list[int]:
    """The cell of each duration."""
    counts = binning.unpack_grid(grid)
    return np.repeat(np.arange(counts.size), counts).tolist()


def test_a_device_without_a_clock_says_so(package):
    bench = Bench(package, SimClock(None))
    bench.link.start(bench.reporter)
    bench.pass_window(2)
    (window,) = bench.hub.windows["dev-1"]
    assert (window.wall_start_ms, window.clock, window.n) == (None, "unknown", 2)


def test_windows_are_short_while_a_rollout_asks_for_it(bench):
    bench.link.start(bench.reporter)
    bench.hurry = True
    bench.pass_window(1, 60)
    assert bench.counts() == [1]


def test_what_the_link_loses_is_offered_again_after_a_while_and_counted_once(bench):
    bench.link.start(bench.reporter)
    bench.broker.drop_up = True
    bench.pass_window(5)
    bench.broker.drop_up = False
    bench.clock.advance(REOFFER_S - 1)
    bench.reporter.turn()
    assert sum(bench.counts()) == 0
    bench.clock.advance(1)
    bench.reporter.turn()
    bench.reporter.turn()
    assert sum(bench.counts()) == 5
    assert bench.spool.state.items == ()


@pytest.mark.parametrize("late_s", [60.0, 301.0])
def test_what_an_acknowledgement_passes_over_is_offered_again_unless_it_was_offered_just_now(
    bench, monkeypatch, late_s
):
    monkeypatch.setattr(offers, "LATE_S", late_s)
    bench.link.start(bench.reporter)
    bench.reporter.turn()  # the birth is heard
    bench.hub.acking = False
    bench.broker.drop_up = True
    bench.pass_window(5)
    bench.broker.drop_up = False
    bench.pass_window(7)
    bench.hub.acking = True
    bench.link.publish("birth", bench.born(1, 300))  # a hub answers it at once
    bench.reporter.turn()
    bench.reporter.turn()
    lost = late_s == 60.0
    assert bench.counts() == ([7, 5] if lost else [7])
    assert len(bench.spool.state.items) == (0 if lost else 1)
    assert bench.hub.duplicates == 0


def test_a_reconnect_offers_at_once_what_is_not_acknowledged(bench):
    bench.link.start(bench.reporter)
    bench.hub.acking = False
    bench.pass_window(5)
    bench.link.cut()
    bench.pass_window(7)
    bench.link.connect()
    bench.reporter.turn()
    assert bench.counts() == [5, 7]
    assert bench.hub.duplicates == 1
    assert [b.connection for b in bench.hub.births["dev-1"]] == [1, 2]
    bench.hub.acking = True
    bench.clock.advance(REOFFER_S)
    bench.reporter.turn()
    bench.reporter.turn()
    assert bench.counts() == [5, 7, 0]
    assert bench.spool.state.items == ()


def test_offline_windows_wait_without_a_number_and_at_most_16_are_ever_open(bench):
    bench.link.start(bench.reporter)
    bench.link.cut()
    for i in range(40):
        bench.pass_window(i)
    assert all(i.seq == 0 for i in bench.spool.state.items)
    bench.hub.acking = False
    bench.link.connect()
    bench.reporter.turn()
    assert len(bench.spool.state.numbered) == 16
    bench.hub.acking = True
    for _ in range(8):
        bench.clock.advance(REOFFER_S)
        bench.reporter.turn()
    assert sum(bench.counts()) == sum(range(40))


def test_a_full_disk_keeps_the_window_in_memory_and_loses_no_count(bench):
    bench.link.start(bench.reporter)
    bench.disk.full = True
    bench.pass_window(5)
    bench.pass_window(6)
    assert bench.counts() == []
    bench.disk.full = False
    bench.pass_window(7)
    bench.reporter.turn()
    assert sum(bench.counts()) == 18


def test_a_disk_that_takes_nothing_is_told_at_once_by_a_birth_and_by_an_event_once_it_takes_something(bench):
    bench.link.start(bench.reporter)
    bench.pass_window(1)
    bench.disk.full = True
    bench.pass_window(5)
    assert "space" in bench.hub.births["dev-1"][-1].spool.trouble
    assert bench.hub.events["dev-1"] == []
    bench.disk.full = False
    bench.pass_window(7)
    bench.reporter.turn()
    (told,) = bench.hub.events["dev-1"]
    assert (told.failure, told.reason[:9], "space" in told.reason) == ("disk", "for 300 s", True)
    assert bench.spool.told().trouble == ""


def test_a_window_that_is_sealed_while_the_hub_is_there_costs_one_durable_write(bench):
    bench.link.start(bench.reporter)
    bench.pass_window(1)
    before = bench.disk.trace.count("fsync 00000001.log")
    for _ in range(4):
        bench.pass_window(1)
    assert bench.disk.trace.count("fsync 00000001.log") - before == 4
    assert bench.counts() == [1] * 5


def test_a_boot_that_learns_the_time_late_tells_when_its_windows_were(package):
    bench = Bench(package, SimClock(None))
    for n in range(3):
        bench.pass_window(n)
    wall = 1_800_000_000_000
    bench.clock.set_wall(wall)
    bench.link.start(bench.reporter)
    bench.reporter.turn()
    windows = bench.hub.windows["dev-1"]
    assert [(w.n, w.clock, w.wall_start_ms) for w in windows] == [
        (n, "free", wall - (3 - n) * 300_000) for n in range(3)
    ]
    bench.pass_window(9)
    assert bench.hub.windows["dev-1"][-1].clock == "synced"


@pytest.mark.parametrize("years", [10, -10])
def test_a_clock_that_jumps_by_years_ends_no_window_early_or_late_and_dates_each_by_its_own_end(package, years):
    bench = Bench(package)
    bench.link.start(bench.reporter)
    bench.pass_window(1)
    jumped = bench.clock.wall_ms() + years * 31_557_600_000 + 137_000
    bench.clock.advance(100)
    bench.clock.set_wall(jumped)
    bench.reporter.turn()
    assert bench.counts() == [1]
    bench.pass_window(2, 200)
    bench.pass_window(3, 300 - (jumped + 200_000) // 1000 % 300)  # to the next multiple by the new time
    bench.pass_window(4)
    first, second, third, fourth = bench.hub.windows["dev-1"]
    assert [w.n for w in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert [w.mono_start_ms for w in (second, third, fourth)] == [w.mono_end_ms for w in (first, second, third)]
    assert second.wall_start_ms == jumped - 100_000
    assert (fourth.wall_start_ms % 300_000, fourth.mono_end_ms - fourth.mono_start_ms) == (0, 300_000)


def test_an_older_wish_is_ignored_and_a_newer_one_survives_a_restart(bench, package):
    bench.link.start(bench.reporter)
    for rev, window_s in ((5, 60.0), (4, 10.0), (5, 10.0)):
        bench.hub.want("dev-1", Desired(rev=rev, config=Config(window_s=window_s)))
        bench.reporter.turn()
    assert [d.rev for d in bench.desired] == [5]
    assert bench.reporter.windows.window_s == 60
    again = bench.reporter._wishes._stored()
    assert again is not None
    assert again.rev == 5


def test_a_wish_and_a_command_that_the_disk_did_not_take_are_handled_when_it_does(bench):
    bench.link.start(bench.reporter)
    bench.reporter.turn()
    old = bench.spool.state.spool_id
    bench.disk.full = True
    bench.hub.want("dev-1", Desired(rev=2))
    wall = bench.clock.wall_ms() + 60_000
    bench.hub.command("dev-1", Command(id="1" * 16, verb="new_spool", expires_at=wall, argument=old))
    bench.reporter.turn()
    assert (bench.reporter.desired, bench.spool.state.spool_id) == (None, old)
    bench.disk.full = False
    bench.clock.advance(reporters.AGAIN_S)
    bench.reporter.turn()
    assert [d.rev for d in bench.desired] == [2]
    assert bench.reporter._wishes._stored().rev == 2
    assert bench.spool.state.spool_id != old


def test_a_revision_far_ahead_cannot_make_a_device_deaf(bench):
    bench.link.start(bench.reporter)
    for rev in (5, 2**40, 2**40, 5 + wishes.AHEAD + 1, 6, 6 + wishes.AHEAD):
        bench.hub.want("dev-1", Desired(rev=rev))
        bench.reporter.turn()
    bench.reporter.turn()
    assert [d.rev for d in bench.desired] == [5, 6, 6 + wishes.AHEAD]
    told = bench.hub.events["dev-1"]
    assert [(e.failure, str(2**40) in e.reason) for e in told] == [("hub", True), ("hub", False)]


def test_a_clock_that_fails_once_does_not_end_telemetry(bench):
    bench.link.start(bench.reporter)
    bench.predict(2)
    synced, failed = bench.clock.synced, threading.Event()

    def fails() -> bool:
        bench.clock.synced = synced
        failed.set()
        raise PermissionError(13, "Permission denied")

    bench.clock.synced = fails
    thread = threading.Thread(target=bench.reporter.run)
    thread.start()
    assert failed.wait(60)
    bench.reporter.stop()
    thread.join()
    assert bench.counts() == [2]


def test_a_folder_that_may_not_be_looked_into_is_no_sign_of_a_synced_clock(monkeypatch):
    class Closed:
        def exists(self) -> bool:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(clock, "_TIMESYNCD", Closed())
    monkeypatch.setattr(clock, "_disciplined", lambda: False)
    assert SystemClock().synced() is False


def test_commands_are_obeyed_once_and_not_after_they_expired(bench):
    bench.link.start(bench.reporter)
    bench.predict(4)
    bench.clock.advance(0.001)
    wall = bench.clock.wall_ms()
    late = Command(id="1" * 16, verb="report_now", expires_at=wall - 1)
    now = Command(id="2" * 16, verb="report_now", expires_at=wall + 1000)
    for command in (late, now, now):
        bench.hub.command("dev-1", command)
    bench.reporter.turn()
    assert bench.counts() == [4]


def test_a_clock_that_nothing_disciplines_makes_no_device_deaf_to_commands(package):
    bench = Bench(package)
    bench.clock.synced = lambda: False
    bench.link.start(bench.reporter)
    bench.predict(4)
    bench.clock.advance(1)
    hub_ms = bench.clock.wall_ms() - 86_400_000  # the device is a day ahead
    bench.hub.command("dev-1", Command(id="3" * 16, verb="report_now", expires_at=hub_ms))
    bench.reporter.turn()
    assert bench.counts() == [4]


def test_a_new_spool_is_asked_for_once_and_born_again(bench):
    bench.link.start(bench.reporter)
    bench.reporter.turn()
    old = bench.spool.state.spool_id
    for identifier in ("1", "2"):
        wall = bench.clock.wall_ms() + 1000
        bench.hub.command("dev-1", Command(id=identifier * 16, verb="new_spool", expires_at=wall, argument=old))
        bench.reporter.turn()
    assert bench.spool.state.spool_id != old
    assert bench.hub.births["dev-1"][-1].spool.id == bench.spool.state.spool_id
    assert bench.hub.births["dev-1"][-2].spool.id == bench.spool.state.spool_id


def test_boots_stay_untold_until_an_acknowledgement_names_the_birth_that_told_of_them(package):
    bench = Bench(package)
    lost = Unclean(boot_id="a" * 16, open_since_mono_ms=7)
    bench.spool._state = msgspec.structs.replace(bench.spool.state, unclean=(lost,))
    bench.broker.drop_up, bench.broker.dropped = True, ("birth",)
    bench.link.start(bench.reporter)
    bench.pass_window(3)  # acknowledged, as a queued ack of before this connection would be
    bench.hub._ack("dev-1", bench.spool.state.spool_id)
    for mark in (f"{'a' * 16}.1", f"{BOOT}.0"):  # births of another boot, and of an earlier connection
        bench.broker.send("dev-1", "ack", encode_ack(Ack(bench.spool.state.spool_id, 0, 0, mark)))
    bench.reporter.turn()
    assert bench.counts() == [3]
    assert bench.spool.state.unclean == (lost,)
    bench.broker.drop_up = False
    bench.clock.advance(60)
    bench.reporter.turn()  # the birth again, and this time the hub hears it
    bench.reporter.turn()
    assert [b.unclean for b in bench.hub.births["dev-1"]] == [(lost,)]
    assert bench.spool.state.unclean == ()


def test_a_birth_is_said_again_ever_more_seldom_and_not_after_it_is_acknowledged(bench):
    bench.hub.acking = False
    bench.link.start(bench.reporter)
    said = []
    for second in range(200):
        bench.reporter.turn()
        if len(bench.hub.births["dev-1"]) > len(said):
            said.append(second)
        bench.clock.advance(1)
    assert said == [0, 5, 15, 35, 75, 135, 195]
    bench.hub.acking = True
    for _ in range(200):
        bench.clock.advance(1)
        bench.reporter.turn()
    assert len(bench.hub.births["dev-1"]) == 8


def test_what_was_offered_before_the_hub_heard_of_the_connection_is_offered_again_once_it_has(bench):
    bench.broker.drop_up, bench.broker.dropped = True, ("birth", "report")  # as while the hub is not subscribed yet
    bench.link.start(bench.reporter)
    bench.pass_window(5)
    bench.broker.drop_up = False
    for _ in range(3):
        bench.clock.advance(offers.BIRTH_S[0])
        bench.reporter.turn()
    assert bench.counts() == [5]


def test_an_inference_during_the_sealing_falls_into_the_window_that_is_declared_from_then_on(bench):
    bench.link.start(bench.reporter)
    bench.predict(2)
    bench.clock.advance(300)
    drain = bench.meter.drain

    def drain_slowly(until_ns: int | None = None) -> None:
        bench.predict(1)  # after the moment that the window ends at, before and behind the rows are taken
        drain(until_ns)
        bench.predict(1)

    bench.meter.drain = drain_slowly
    bench.reporter.windows.seal()
    bench.meter.drain = drain
    since_ms = bench.spool.state.open.open_since_mono_ms
    assert since_ms == bench.clock.monotonic_ns() // 1_000_000
    bench.reporter.turn()
    assert bench.counts() == [2]
    bench.pass_window(0)
    assert bench.counts() == [2, 2]


def test_a_window_that_no_contract_allows_is_dropped_and_counted_and_stops_nothing(bench):
    bench.link.start(bench.reporter)
    prediction = bench.model.predict({"image": bench.image})
    bench.meter.outcome(Outcome(prediction.id, "größe_ok", 1))
    bench.pass_window(4)
    bench.pass_window(3)
    assert bench.counts() == [3]
    assert bench.spool.told().dropped == 1


def test_a_refused_input_of_a_context_that_nobody_declared_is_counted_under_none(bench):
    bench.link.start(bench.reporter)
    for context in ("x" * 65, "größe", *(f"made-up-{i}" for i in range(50))):
        with pytest.raises(Rejected):
            bench.model.predict({}, context=context)
    bench.pass_window(3)
    (window,) = bench.hub.windows["dev-1"]
    assert (window.context, window.n, sum(window.rejected.values())) == ("", 3, 52)


def test_an_exception_of_any_name_is_an_error_that_can_be_reported(bench):
    class Größenfehler(Exception):
        pass

    def fails(_batch):
        raise Größenfehler

    bench.link.start(bench.reporter)
    bench.model.active.run = fails
    with pytest.raises(InferenceFailed):
        bench.model.predict({"image": bench.image})
    bench.pass_window(0)
    (window,) = bench.hub.windows["dev-1"]
    assert window.errors == {"Gr??enfehler": 1}


def test_garbage_from_the_hub_is_ignored(bench):
    bench.link.start(bench.reporter)
    for kind in ("desired", "command", "ack"):
        bench.broker.send("dev-1", kind, b"\xff garbage")
    bench.pass_window(3)
    assert bench.counts() == [3]


def test_the_end_seals_the_open_window(bench):
    bench.link.start(bench.reporter)
    bench.predict(9)
    bench.reporter.stop()
    bench.reporter.run()
    assert bench.counts() == [9]
    assert bench.spool.state.open is None


def desire(bench, rev=1, **config):
    bench.hub.want("dev-1", Desired(rev=rev, config=Config(**config)))
    bench.reporter.turn()


def test_a_window_goes_on_until_it_holds_enough_and_says_how_long_that_may_take(bench):
    bench.link.start(bench.reporter)
    desire(bench, window_rows=10, window_max_s=1500)
    bench.pass_window(4)
    bench.pass_window(5)
    assert bench.counts() == []
    bench.pass_window(1)
    for _ in range(5):
        bench.pass_window(1)
    windows = bench.hub.windows["dev-1"]
    assert [w.n for w in windows] == [10, 5]
    assert [(w.mono_end_ms - w.mono_start_ms) / 1000 for w in windows] == [900, 1500]
    assert [w.next_due_s for w in windows] == [3000, 3000]


def test_a_window_that_is_not_full_ends_when_a_rollout_begins(bench):
    bench.link.start(bench.reporter)
    desire(bench, window_rows=1000)
    bench.pass_window(4)
    bench.hurry = True
    bench.pass_window(1, 1)
    bench.pass_window(2, 60)
    assert bench.counts() == [5, 2]
    assert {w.next_due_s for w in bench.hub.windows["dev-1"]} == {120}


def test_a_window_that_becomes_longer_keeps_the_promise_of_the_one_before(bench):
    bench.link.start(bench.reporter)
    desire(bench)
    bench.pass_window(1)
    desire(bench, rev=2, window_s=3600)
    bench.pass_window(1)
    bench.pass_window(1, 3600)
    windows = bench.hub.windows["dev-1"]
    assert [w.mono_end_ms - w.mono_start_ms for w in windows] == [300_000, 300_000, 3_600_000]
    assert [w.next_due_s for w in windows] == [600, 7200, 7200]


def test_a_window_that_waits_to_be_full_is_no_longer_than_one_length_more_when_lengths_change(bench):
    bench.link.start(bench.reporter)
    desire(bench, window_rows=1000, window_max_s=86_400)
    for _ in range(10):
        bench.pass_window(1)
    desire(bench, rev=2, window_s=3600, window_rows=5)
    bench.pass_window(1, 3599)
    assert bench.counts() == []
    bench.pass_window(1, 1)
    assert bench.counts() == [12]


def test_what_was_used_before_there_was_a_model_is_told_by_the_first_window(bench):
    bench.link.start(bench.reporter)
    desire(bench)
    subjects, bench.subjects = bench.subjects, []
    sent = bench.link.traffic()[0] + bench.link.overhead()[0]
    bench.pass_window(0)
    assert bench.hub.windows["dev-1"] == []
    bench.subjects = subjects
    bench.pass_window(1)
    (window,) = bench.hub.windows["dev-1"]
    assert window.usage.bytes_sent >= sent > 0
    assert window.usage.rss_kb.n >= 1


def test_a_device_whose_bytes_are_used_up_says_until_when_it_will_be_silent(bench):
    bench.link.start(bench.reporter)
    desire(bench, bytes_per_day=5000)
    while bench.reporter.watch.may(Step.REPORTS):
        bench.pass_window(1)
    last = bench.hub.windows["dev-1"][-1]
    left_s = 86_400 - bench.clock.wall_ms() / 1000 % 86_400
    assert last.next_due_s >= left_s + 2 * bench.reporter.windows.window_s - 1
    assert sum(bench.counts()) == bench.predicted
    bench.hub.births.clear()
    bench.link.stop()
    bench.link.start(bench.reporter)
    bench.reporter.turn()
    assert 2 * bench.hub.births["dev-1"][-1].window_s >= left_s


def test_a_device_that_may_send_nothing_promises_no_report_and_none_is_missed_on_the_next_day(bench):
    bench.link.start(bench.reporter)
    desire(bench, bytes_per_day=0)
    bench.pass_window(1, 10)
    year_s = 365 * 86_400
    assert bench.hub.windows["dev-1"][-1].next_due_s > year_s
    before = len(bench.counts())
    for _ in range(3):
        bench.pass_window(1, 86_400)
    assert len(bench.counts()) == before
    assert bench.reporter.windows.promise_s > year_s
    desire(bench, rev=2)
    for _ in range(4):
        bench.pass_window(1)
    assert sum(bench.counts()) == bench.predicted
    assert bench.hub.windows["dev-1"][-1].next_due_s == 2 * bench.reporter.windows.window_s


def test_a_budget_that_is_lowered_again_and_again_is_told_each_time_although_the_event_is_not(bench):
    bench.link.start(bench.reporter)
    for rev, budget in ((1, None), (2, 100), (3, None), (4, 100)):
        desire(bench, rev=rev, bytes_per_day=budget)
        for _ in range(4):
            bench.predict(1)
            bench.clock.advance(10)
            bench.reporter.turn()
    assert not bench.reporter.watch.may(Step.REPORTS)
    assert bench.hub.windows["dev-1"][-1].next_due_s > bench.reporter.watch.quiet_s > 600


def test_a_window_that_was_stretched_and_cut_short_all_the_same_says_nothing_of_others(bench):
    bench.link.start(bench.reporter)
    desire(bench)
    bench.reporter.watch._steps = frozenset({Step.WINDOWS})
    bench.reporter.windows.seal()  # promised from now on
    for seconds in (300, 700, 1200):
        bench.predict(1)
        bench.clock.advance(seconds)
        bench.reporter.windows.seal()
    bench.reporter.turn()
    assert [w.shed.get("windows", 0) for w in bench.hub.windows["dev-1"]][1:] == [0, 1, 3]


def test_a_label_that_comes_while_a_window_is_sealed_finds_its_inference_in_the_next(bench):
    bench.link.start(bench.reporter)
    bench.predict(1)
    bench.clock.advance(300)
    late = bench.model.predict({"image": bench.image})  # after the end of the window that is sealed now
    bench.meter.outcome(Outcome(late.id, "pick_ok", 1))
    bench.reporter.windows.seal()
    bench.reporter.turn()
    bench.pass_window(0)
    first, second = bench.hub.windows["dev-1"]
    assert (first.n, second.n) == (1, 1)
    assert (first.shed, second.shed) == ({}, {})
    assert second.outcomes["pick_ok"].n == 1


def test_a_metered_device_sends_a_window_every_quarter_of_an_hour(bench):
    bench.link.start(bench.reporter)
    desire(bench, profile="metered")
    for _ in range(6):
        bench.pass_window(1)
    assert bench.counts() == [3, 3]


def test_used_up_bytes_make_windows_long_and_then_wait_for_the_next_day_and_lose_no_count(bench):
    bench.link.start(bench.reporter)
    desire(bench, bytes_per_day=4000)
    for _ in range(100):
        bench.pass_window(1)
    sent = bench.link.traffic()[0] + bench.link.traffic()[1]
    assert sum(bench.counts()) < 100
    assert sent < 2 * 4000  # events say what is held back
    bench.clock.advance(86_400)
    desire(bench, rev=2)
    for _ in range(20):
        bench.clock.advance(REOFFER_S)
        bench.reporter.turn()
    bench.reporter.windows.seal()
    for _ in range(4):
        bench.reporter.turn()
    assert sum(bench.counts()) == 100
    held = [w.shed["windows"] for w in bench.hub.windows["dev-1"] if w.shed]
    assert held
    assert [e.after for e in bench.hub.events["dev-1"]][:3] == ["link 1", "link 2", "link 3"]


def test_an_event_takes_waiting_reports_along(bench):
    bench.link.start(bench.reporter)
    desire(bench, bytes_per_day=0)
    bench.reporter.turn()
    before = len(bench.counts())
    bench.pass_window(3, 4000)
    bench.pass_window(3, 4000)
    assert len(bench.counts()) == before
    bench.reporter.notices.note(Notice("closed", "open", "5 errors in a row", bench.subject))
    for _ in range(3):
        bench.reporter.turn()
    assert sum(bench.counts()) == 6
    assert bench.hub.events["dev-1"][-1].reason == "5 errors in a row"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_in_whatever_order_the_hub_counts_what_the_device_did(package, seed):
    rng = random.Random(seed)
    bench = Bench(package, SimClock(None) if seed % 3 == 0 else None)
    linked, revs = False, itertools.count(1)
    for _ in range(60):
        match rng.choice(
            ["predict"] * 3 + ["pass"] * 3 + ["clock", "disk", "link", "loss", "config", "hurry", "command"]
        ):
            case "predict":
                bench.predict(rng.randint(1, 5))
            case "pass":
                bench.clock.advance(rng.choice([1, 30, 300, 4000, 90_000]))
            case "clock":  # none, 2020, 2027, 2030
                bench.clock.set_wall(rng.choice([None, 1_577_836_800_000, 1_800_000_000_000, 1_900_000_000_000]))
            case "disk":
                bench.disk.full = rng.random() < 0.5
            case "link":
                bench.link.stop() if linked else bench.link.start(bench.reporter)
                linked = not linked
            case "loss":
                bench.broker.drop_up = rng.random() < 0.4
            case "config":
                bench.hub.want("dev-1", Desired(rev=next(revs), config=absurd(rng)))
            case "hurry":
                bench.hurry = not bench.hurry
            case "command":
                bench.hub.command(
                    "dev-1", Command(id=f"{rng.getrandbits(64):016x}", verb="report_now", expires_at=2**45)
                )
        try:
            bench.reporter.turn()
        except OSError:
            assert bench.disk.full
    bench.disk.full = bench.broker.drop_up = False
    bench.clock.set_wall(1_900_000_000_000)
    if not linked:
        bench.link.start(bench.reporter)
    desire(bench, rev=next(revs))
    for _ in range(40):
        bench.clock.advance(REOFFER_S)
        bench.reporter.turn()
    assert sum(bench.counts()) == bench.predicted


def absurd(rng) -> Config:
    return Config(
        window_s=rng.choice([0.5, 60, 300, 3600, 86_400]),
        window_rows=rng.choice([0, 0, 3, 1000]),
        window_max_s=rng.choice([0.5, 3600, 86_400]),
        bytes_per_day=rng.choice([None, None, 0, 3000, 10**6]),
        monitor_every=rng.choice([1, 3, 10**6]),
        scene_s=rng.choice([0, 0, 10]),
        profile=rng.choice(["normal", "metered"]),
        limits=Limits(
            cpu_permille=rng.choice([None, 0]),
            written_per_day=rng.choice([None, 0, 5000]),
        ),
    )  # fmt: skip
