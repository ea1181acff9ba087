"""The watch reads a device and makes the meter obey; days survive restarts and wrong clocks."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgewright_agent.limits import cgroup
from edgewright_agent.limits.consumption import Consumption
from edgewright_agent.limits.day import DAY_MS, KEEP_S, Day, Diary, advance
from edgewright_agent.limits.device import Device, resident_kb
from edgewright_agent.limits.governor import Step
from edgewright_agent.limits.share import Share
from edgewright_agent.limits.watch import LOOK_S, Watch
from edgewright_agent.telemetry.meter import Meter
from edgewright_agent.telemetry.notices import TELL_S, Notice, Notices
from edgewright_contracts.desired import Config, Limits
from edgewright_contracts.event import encode_event
from sim.clock import SimClock
from sim.disk import SimDisk

NOON = 20_000 * DAY_MS + DAY_MS // 2
HOME = Path("/agent")


def a_disk():
    disk = SimDisk()
    disk.mkdir(HOME)
    return disk


def used(day, seconds, wall_ms, link=0):
    return advance(day, run_s=seconds, wall_ms=wall_ms, link=link, written=0)


def test_a_day_ends_at_midnight_and_what_came_with_the_turn_is_of_the_new_one():
    day = used(Day(), 10, NOON, 500)
    assert day == Day(date=20_000, run_s=10, link=500)
    assert used(day, 60, NOON + DAY_MS // 2 - 1, 5).link == 505
    assert used(day, 60, NOON + DAY_MS // 2, 5) == Day(date=20_001, link=5)


def test_boots_in_1970_share_one_day_until_they_have_run_for_one():
    day = Day()
    for _ in range(23):
        day = used(day, 3600, None, 100)
    assert (day.link, day.date) == (2300, None)
    assert used(day, 3600, None, 100) == Day(link=100)


def test_a_clock_that_is_believed_at_last_takes_over_the_day_that_runs():
    day = used(used(Day(), 3600, None, 100), 3600, NOON, 100)
    assert (day.link, day.date) == (200, 20_000)


def test_a_clock_that_jumps_back_gives_no_second_budget_and_one_far_ahead_no_endless_day():
    day = used(Day(), 0, NOON, 100)
    for hours in range(23):
        day = used(day, 3600, NOON - 40 * DAY_MS + hours * 3_600_000, 100)
    assert day.link == 2400
    assert used(day, 3600, NOON - 39 * DAY_MS, 100) == Day(date=20_000 - 39, link=100)


def test_a_day_survives_a_restart_and_is_written_seldom():
    disk, path = a_disk(), HOME / "day.json"
    diary = Diary(path, disk)
    writes = 0
    for _ in range(24 * 60):
        before = disk.written
        diary.add(run_s=60, wall_ms=None, link=1, written=0)
        diary.keep(link_budget=100_000, disk_budget=None)
        writes += disk.written != before
    assert writes == DAY_MS // 1000 // KEEP_S
    diary.add(run_s=60, wall_ms=None, link=5000, written=0)  # a twentieth at once
    diary.keep(link_budget=100_000, disk_budget=None)
    assert Diary(path, disk).day == diary.day


def test_without_a_budget_nothing_is_written_and_a_torn_day_begins_anew():
    disk, path = a_disk(), HOME / "day.json"
    diary = Diary(path, disk)
    diary.add(run_s=1e6, wall_ms=NOON, link=1 << 40, written=0)
    diary.keep(link_budget=None, disk_budget=None, last=True)
    assert disk.written == 0
    for torn in (b"", b'{"v":1,"link":', b'{"v":2}'):
        disk.write(path, torn)
        assert Diary(path, disk).day == Day()


def sysfs(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_hottest_plausible_zone_and_the_emptiest_battery_count(tmp_path):
    device = Device(
        sysfs(
            tmp_path,
            {
                "thermal/thermal_zone0/temp": "45250\n",
                "thermal/thermal_zone1/temp": "51000\n",
                "thermal/thermal_zone2/temp": "-273150\n",
                "thermal/thermal_zone3/temp": "asleep",
                "power_supply/BAT0/type": "Battery\n",
                "power_supply/BAT0/capacity": "81\n",
                "power_supply/BAT1/type": "Battery\n",
                "power_supply/BAT1/capacity": "64\n",
                "power_supply/hidpp_battery_0/type": "Battery\n",
                "power_supply/hidpp_battery_0/scope": "Device\n",
                "power_supply/hidpp_battery_0/capacity": "3\n",
                "power_supply/AC/type": "Mains\n",
            },
        )
    )
    assert (device.temperature_c(), device.discharge_permille()) == (51.0, 360)


def test_a_device_without_sensors_says_nothing(tmp_path):
    device = Device(tmp_path)
    assert (device.temperature_c(), device.discharge_permille()) == (None, None)
    assert device.threads() >= 1
    assert resident_kb() > 1000


def test_the_time_of_the_agents_own_threads_is_read_and_not_that_of_serving():
    device, end = Device(), threading.Event()
    threads = [threading.Thread(target=end.wait, name=name) for name in ("edgewright-telemetry", "edgewright-http-1")]
    for thread in threads:
        thread.start()
    try:
        found = device.background_ns()
        assert threads[0].native_id in found
        assert threads[1].native_id not in found
        assert threading.main_thread().native_id not in found
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_the_share_of_a_core_slides_and_forgets_no_thread_that_ended():
    share, second = Share(), 10**9
    assert share.permille(0, {1: 50 * second}) is None  # what was before is not known to be of late
    assert share.permille(10, {1: 51 * second}) == 100
    assert share.permille(20, {2: 1 * second}) == 100  # one ended, one began
    assert share.permille(30, {}) == pytest.approx(2000 / 30)
    for now in range(40, 120, 10):
        last = share.permille(now, {})
    assert last == 0


def test_the_kernel_bounds_memory_only_where_the_agent_is_alone(tmp_path):
    group, proc = tmp_path / "cg" / "agent.service", tmp_path / "proc"
    group.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/agent.service\n")
    (group / "memory.high").write_text("max\n")
    seams = {"root": tmp_path / "cg", "proc": proc}
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    assert not cgroup.bound(64, **seams)
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert cgroup.bound(64, **seams)
    assert (group / "memory.high").read_text() == str(80 << 20)  # a quarter above
    assert cgroup.bound(None, **seams)
    assert (group / "memory.high").read_text() == "max"
    (proc / "self/cgroup").write_text("0::/\n")
    assert not cgroup.bound(64, **seams)
    assert not cgroup.bound(64, root=tmp_path / "cg", proc=tmp_path)


class Link:
    sent = 0

    def traffic(self):
        return self.sent, 0

    def overhead(self):
        return self.sent, 0  # as much again


class World:
    def __init__(self, tmp_path):
        self.disk, self.clock, self.link, self.events = a_disk(), SimClock(NOON), Link(), []
        self.meter = Meter(threading.Event())
        self.zone = sysfs(tmp_path, {"thermal/thermal_zone0/temp": "40000"}) / "class/thermal/thermal_zone0/temp"
        self.full = False
        self.device = Device(tmp_path)
        self.boot()

    def boot(self):
        self.notices = Notices(self.emit, self.clock, "b" * 16, threading.Event())
        consumption = Consumption(self.disk, self.link, lambda: (0, 0), self.device)
        self.watch = Watch(
            HOME / "day.json", disk=self.disk, clock=self.clock, meter=self.meter, consumption=consumption,
            device=self.device, notices=self.notices,
        )  # fmt: skip

    def emit(self, event):
        if self.full:
            raise OSError("full")
        encode_event(event)
        self.events.append(event)

    def run(self, config, seconds):
        for _ in range(int(seconds / LOOK_S)):
            self.clock.advance(LOOK_S)
            self.watch.turn(config)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_hot_device_gives_up_what_can_wait_and_takes_it_back_when_it_is_cool(world):
    config = Config(limits=Limits(temperature_c=70))
    world.run(config, 60)
    assert all(world.watch.may(step) for step in Step)
    world.zone.write_text("75000")
    world.run(config, 200)
    held = {step for step in Step if not world.watch.may(step)}
    assert held == {Step.SAMPLES, Step.SHADOW, Step.INSTALL, Step.CHANNELS}
    assert (world.meter.asked_every, world.meter.monitor_every) == (1, 10)
    world.zone.write_text("60000")
    world.run(config, 200)
    assert all(world.watch.may(step) for step in Step)
    assert world.meter.monitor_every == 1
    assert world.events[0].after == "temperature 1"
    assert "75.0 of 70 °C" in world.events[0].reason
    assert world.events[-1].after == "temperature 0"
    usage, rss_mb = world.watch.since_last(config, hurried=False, lasted_s=300)
    assert usage.temperature_dk.max == 3482
    assert usage.temperature_dk.n == usage.rss_kb.n > 40
    assert rss_mb > 1
    assert world.watch.readings.threads >= 1


def test_a_link_that_counts_back_makes_no_window_that_cannot_be_told(world):
    config = Config()
    world.watch.since_last(config, hurried=False, lasted_s=300)
    world.link.sent = 1000
    first, _ = world.watch.since_last(config, hurried=False, lasted_s=300)
    world.link.sent = 900  # an estimate gave way to the kernel's count
    second, _ = world.watch.since_last(config, hurried=False, lasted_s=300)
    world.link.sent = 1200
    third, _ = world.watch.since_last(config, hurried=False, lasted_s=300)
    assert [u.bytes_sent for u in (first, second, third)] == [2000, 0, 400]


def test_the_kernels_bound_follows_what_is_used_where_the_limit_is_smaller_than_the_agent(world, monkeypatch):
    bounds = []
    monkeypatch.setattr(cgroup, "bound", lambda high: bounds.append(high) or True)
    rss = resident_kb() / 1024
    world.run(Config(limits=Limits(rss_mb=1)), 30)
    assert len(bounds) == 1 or bounds[-1] > bounds[0]  # not again at every look
    assert bounds[0] >= 0.9 * rss
    world.run(Config(limits=Limits(rss_mb=10 * rss)), 30)
    assert bounds[-1] == 10 * rss
    world.run(Config(), 30)
    assert bounds[-1] is None


def test_the_kernel_is_told_of_a_limit_again_while_another_process_is_in_the_cgroup(world, monkeypatch):
    bounds = []
    monkeypatch.setattr(cgroup, "bound", lambda high: bounds.append(high) or len(bounds) > 2)
    world.run(Config(limits=Limits(rss_mb=10_000)), 60)
    assert bounds == [10_000] * 3


def test_bytes_count_as_the_wire_carries_them_and_a_restart_gives_no_new_budget(world):
    config = Config(bytes_per_day=10_000)
    world.run(config, 10)
    world.link.sent = 4000  # and 4000 around them
    world.run(config, 10)
    assert world.watch.config(config).window_s == 4 * config.window_s
    world.watch.since_last(config, hurried=False, lasted_s=300)
    world.meter.drain()
    world.watch.close(config)
    world.link.sent = 0
    world.boot()
    world.run(config, 10)
    assert not world.watch.may(Step.WINDOWS)
    assert world.watch.may(Step.REPORTS)
    world.clock.advance(86_400)
    world.run(config, 10)
    assert world.watch.may(Step.WINDOWS)


def test_the_meter_learns_what_the_hub_asks_for(world):
    world.watch.obey(Config(monitor_every=7, scene_s=2.5))
    assert (world.meter.asked_every, world.meter.monitor_every, world.meter.scene_ns) == (7, 7, 2_500_000_000)


def test_what_flaps_is_told_once_in_a_while_and_what_the_disk_refuses_later(world):
    notice = Notice("closed", "open", "5 errors in a row")
    world.full = True
    for _ in range(3):
        world.notices.note(notice)
        world.notices.spool()
    assert world.events == []
    world.full = False
    world.notices.spool()
    assert [e.reason for e in world.events] == ["5 errors in a row"]
    world.clock.advance(TELL_S)
    world.notices.note(notice)
    world.notices.spool()
    assert len(world.events) == 2
