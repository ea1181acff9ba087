"""Every exception has a class or is told; none ends a thread."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from edgewright_agent.clock import SystemClock
from edgewright_agent.disk import RealDisk
from edgewright_agent.unforeseen import Unforeseen
from edgewright_agent.updating import proving, steps
from edgewright_agent.updating.failures import DiskFull, Unsuited, classify
from edgewright_agent.updating.refusals import Distrusted, LinkDown, NotAllowed, WrongBytes
from edgewright_agent.updating.slots import Damaged
from edgewright_agent.updating.update import S
from edgewright_agent.updating.verdict import CutShort, NoVerdict
from edgewright_contracts.errors import ContractError, Refused, Unavailable
from edgewright_runtime.runtime import LoadFailed, NoMemory
from sim import homes, packages
from sim.clock import SimClock


@pytest.mark.parametrize(
    ("error", "state", "failure"),
    [
        (LinkDown("x"), S.FETCH, "link"),
        (Unavailable("x"), S.SELFTEST, "link"),
        (Distrusted("x"), S.FETCH, "hub"),
        (NotAllowed("x"), S.FETCH, "hub"),
        (WrongBytes("x"), S.FETCH, "hub"),
        (Unsuited("x"), S.FETCH, "operator"),
        (DiskFull("x"), S.FETCH, "disk"),
        (CutShort("x"), S.SELFTEST, "power"),
        (NoVerdict("x"), S.SELFTEST, "disk"),
        (NoMemory("x"), S.SELFTEST, "operator"),
        (NoMemory("x"), S.WARMUP, "operator"),
        (MemoryError("x"), S.WARMUP, "operator"),
        (Damaged("x", "y", "z"), S.WARMUP, "disk"),
        (OSError("x"), S.STAGE, "disk"),
        (LoadFailed("x"), S.WARMUP, "model"),
        (ContractError("x", "y", "z"), S.FETCH, "model"),
        (ValueError("x"), S.WARMUP, "model"),
        (ValueError("x"), S.FETCH, "disk"),
        (Refused("x"), S.COMMIT, "disk"),
        (Refused("x"), S.ROLLBACK, "disk"),
    ],
)
def test_only_what_the_model_did_is_blamed_on_it(error, state, failure):
    assert classify(error, state) == failure


def test_what_nobody_foresaw_is_told_once_an_hour_for_each_kind():
    told, clock = [], SimClock()
    unforeseen = Unforeseen(told.append, clock, "b" * 16)
    for error in (ValueError("first"), ValueError("second"), KeyError("third")):
        unforeseen.tell("telemetry", error)
    clock.advance(3601)
    unforeseen.tell("telemetry", ValueError("fourth"))
    assert [e.reason for e in told] == [
        "unforeseen: ValueError: first", "unforeseen: KeyError: 'third'", "unforeseen: ValueError: fourth",
    ]  # fmt: skip
    assert {(e.before, e.after) for e in told} == {("telemetry", "telemetry")}


def test_what_a_full_disk_does_not_take_is_told_when_it_comes_again():
    told, full = [], True

    def emit(event):
        if full:
            raise OSError("no space left")
        told.append(event)

    unforeseen = Unforeseen(emit, SimClock(), "b" * 16)
    unforeseen.tell("install", ValueError("x"))
    full = False
    unforeseen.tell("install", ValueError("x"))
    assert len(told) == 1
    assert "ValueError" in told[0].log


@pytest.mark.parametrize(
    ("thread", "place", "method"), [("telemetry", "_meter", "drain"), ("install", "_installer", "_advance")]
)
def test_a_bug_in_a_thread_reaches_the_hub_and_the_thread_goes_on(world, monkeypatch, thread, place, method):
    package = world.package("v1")
    with world.agent() as agent:
        target = getattr(agent, place)
        whole, broken = getattr(target, method), threading.Event()

        def once(*given, **named):
            if not broken.is_set():
                broken.set()
                raise RuntimeError("a bug")
            return whole(*given, **named)

        monkeypatch.setattr(target, method, once)
        world.want(package)
        assert world.hub.wait(lambda: any(e.before == thread for e in world.hub.events["dev-1"]))
        world.want(package)
        assert agent.model("digits").wait(60)
    (told,) = [e for e in world.hub.events["dev-1"] if e.before == thread]
    assert told.reason == "unforeseen: RuntimeError: a bug"
    assert "RuntimeError" in told.log


def test_a_package_for_a_later_agent_is_refused_once_and_nothing_is_blocked(world):
    good = world.package("v1")
    later = world.altered(good, "later", version="2.0.0", requires_agent="99.0")
    with world.agent() as agent:
        world.want(later, rollout="r1")
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == ["idle", "fetch", "idle"])
        last = world.hub.events["dev-1"][-1]
        assert last.failure == "operator"
        assert last.reason.startswith("expected agent >= 99.0, this is ")
        world.want(later, rollout="r1")  # nothing else is wanted, so nothing is tried again
        world.want(later, rollout="r2")  # another rollout hears it, too
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == ["idle", "fetch", "idle", "fetch", "idle"])
        assert world.hub.events["dev-1"][-1].rollout == "r2"
        world.want(good)
        assert agent.model("digits").wait(60)
    assert not any(e.after == "blocked" for e in world.hub.events["dev-1"])


def test_a_package_without_a_variant_for_this_device_is_refused_likewise(world):
    good = world.package("v1")
    other = world.altered(good, "other", version="2.0.0", ranking={"riscv64/litert": ("onnx-fp32",)})
    with world.agent():
        world.want(other)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == ["idle", "fetch", "idle"])
        last = world.hub.events["dev-1"][-1]
    assert (last.failure, "riscv64/litert" in last.reason) == ("operator", True)


def test_channels_that_do_not_fit_the_outputs_are_found_before_the_package_answers(world):
    from edgewright_contracts import baseline
    from edgewright_contracts.channels import Channel, Source

    package = world.package("v1")
    name = package.manifest.variant("onnx-fp32").baseline
    channel = Channel(
        name="far", group="embedding", kind="numeric", source=Source("monitor", "column", 999), edges=(0, 1)
    )
    data = baseline.encode_baseline(baseline.make((channel,), [1, 40, 1, 0], 40))
    bad = world.altered(package, "bad", version="2.0.0", replaced={name: data})
    with world.agent():
        world.want(bad)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == ["warmup", "blocked"])
        assert "at least 1000 columns" in world.hub.events["dev-1"][-1].reason


@pytest.mark.parametrize("step", ["_selftest", "_warm_up"])
def test_bit_rot_in_the_slot_is_the_disks_and_the_package_is_fetched_again(world, monkeypatch, step):
    package = world.package("v1")
    with world.agent() as agent:
        steps = agent._installer._steps
        state = {"_selftest": S.SELFTEST, "_warm_up": S.WARMUP}[step]
        whole, rotten = steps._table[state], threading.Event()

        def rot(job):
            if not rotten.is_set():
                rotten.set()
                file = job.store.side(job.state.spare) / "variants" / "onnx-fp32" / "model.onnx"
                data = file.read_bytes()
                file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            whole(job)

        monkeypatch.setitem(steps._table, state, rot)
        world.want(package)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == [state.value, "idle"])
        told = world.hub.events["dev-1"][-1]
        assert told.failure == "disk"
        assert "sha256" in told.reason
        world.want(package)
        assert agent.model("digits").wait(60)
    assert not any(e.after == "blocked" for e in world.hub.events["dev-1"])


class Refusing(RealDisk):
    """A disk that says `code` to whatever is written below `models`, while it is told to."""

    code = 0

    def _put(self, path, data, flags):
        if self.code and "models" in path.parts:
            raise OSError(self.code, os.strerror(self.code), str(path))
        super()._put(path, data, flags)

    def rename(self, source, target):
        if self.code and "models" in target.parts:
            raise OSError(self.code, os.strerror(self.code), str(target))
        super().rename(source, target)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_told_and_the_old_model_answers(world, code):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=2)
    disk = Refusing()
    homes.install(world.home("dev-1") / "models", first)
    with world.agent(disk=disk) as agent:
        disk.code = code
        world.want(second)
        said = os.strerror(code)
        assert world.hub.wait(lambda: any(said in e.reason + e.log for e in world.hub.events["dev-1"]))
        assert agent.model("digits").active.digest == first.digest
        agent.model("digits").predict({"image": packages.draw(1, seed=1)[0][0]})
        disk.code = 0
        world.want(second)
        assert world.hub.wait(lambda: agent.model("digits").active.digest == second.digest)
    assert not any(e.failure == "model" for e in world.hub.events["dev-1"])


@pytest.mark.parametrize(("place", "state"), [("selftest", "selftest"), ("load", "warmup")])
def test_too_little_memory_for_a_new_package_is_told_and_the_old_one_answers(world, monkeypatch, place, state):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=2)

    def starved(*_, **__):
        raise NoMemory("too little memory to load model.onnx; free some") if place == "selftest" else MemoryError

    homes.install(world.home("dev-1") / "models", first)
    with world.agent() as agent:
        monkeypatch.setattr(*{"selftest": (proving, "selftest"), "load": (steps, "load")}[place], starved)
        world.want(second)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == [state, "idle"])
        last = [e for e in world.hub.events["dev-1"] if e.model][-1]
        assert (last.failure, last.digest) == ("operator", second.digest)
        assert "memory" in last.reason.lower()
        assert agent.model("digits").active.digest == first.digest
    assert not any(e.after == "blocked" for e in world.hub.events["dev-1"])


def test_a_device_without_a_clock_installs_and_answers(world):
    class NoClock(SystemClock):
        def wall_ms(self):
            return None

        def synced(self):
            return False

    package = world.package("v1")
    with world.agent(clock=NoClock()) as agent:
        world.want(package)
        assert agent.model("digits").wait(60)
        agent.model("digits").predict({"image": packages.draw(1, seed=1)[0][0]})
        assert world.hub.wait(lambda: "probation" in world.hub.trace("dev-1"))
    assert {e.wall_ms for e in world.hub.events["dev-1"]} == {None}
