"""What answers is what passed the self-test, on the runtime and the CPU that are here now."""

from __future__ import annotations

import shutil
import threading

import pytest

from edgewright_agent.console import bench, sideline
from edgewright_agent.disk import RealDisk
from edgewright_agent.updating import measurement, proof, proving, steps
from edgewright_agent.updating.measurement import Measured, missed
from edgewright_agent.updating.slots import Store
from edgewright_agent.updating.verdict import NoVerdict, Verdict
from edgewright_contracts.manifest import Budgets
from edgewright_runtime.runtime import NoMemory
from sim import homes, packages

CPU = """processor : 0
model name : A
flags : fpu sse
cpu MHz : 1800.1
processor : 1
model name : A
flags : fpu sse
cpu MHz : 600.0
"""


def test_a_cpu_is_what_it_can_do_and_not_how_fast_it_runs_or_how_many_it_has():
    assert proof.cpu(CPU) == proof.cpu("model name : A\nflags : fpu sse\ncpu MHz : 1\n")
    assert proof.cpu(CPU) != proof.cpu(CPU.replace("sse", "sse avx512"))
    assert proof.cpu("CPU part : 0xd03\nFeatures : fp asimd") != proof.cpu("CPU part : 0xd08\nFeatures : fp asimd")
    assert len(proof.cpu()) == 16


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(models folder, v1 in slot a, v2 in slot b): both passed, and v2 is active."""
    root = tmp_path_factory.mktemp("installed")
    made = [packages.make_package(root / str(i), version=f"{i}.0.0", seed=i) for i in (1, 2)]
    for package in made:
        homes.install(root / "models", package)
    return root / "models", *made


@pytest.fixture
def home(world, installed):
    """The same in a home of its own: (world, v1, v2)."""
    models, first, second = installed
    shutil.copytree(models, world.home("dev-1") / "models")
    return world, first, second


def slot(world, side):
    return world.home("dev-1") / "models" / "digits" / side


def elsewhere(monkeypatch) -> None:
    """The SD card was moved to another board."""
    monkeypatch.setattr(proof, "cpu", lambda: "f" * 16)


def told(world) -> list[str]:
    return [e.reason for e in world.hub.events["dev-1"] if e.model]


def test_what_is_loaded_is_the_optimised_form_that_passed(home, monkeypatch):
    world, _, second = home
    loaded = []
    whole = steps.open_session
    monkeypatch.setattr(
        steps, "open_session", lambda file, *a, **k: loaded.append((file, k["optimised"])) or whole(file, *a, **k)
    )
    with world.agent() as agent:
        assert agent.model("digits").active.digest == second.digest
    assert loaded == [(slot(world, "b") / "optimised" / "model.onnx", True)]


def test_a_person_who_asks_beside_the_agent_is_answered_by_the_form_that_passed(home, monkeypatch):
    world, _, _ = home
    opened, whole = [], sideline.open_session
    monkeypatch.setattr(
        sideline, "open_session", lambda file, *a, **k: opened.append((file, k["optimised"])) or whole(file, *a, **k)
    )
    sideline.predict(world.home("dev-1"), "digits", packages.draw(1, seed=3)[0][0])
    bench.measure(world.home("dev-1"), "digits")
    assert opened == 2 * [(slot(world, "b") / "optimised" / "model.onnx", True)]


def test_a_damaged_optimised_form_is_made_again_before_it_is_loaded(home):
    world, _, second = home
    file = slot(world, "b") / "optimised" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with world.agent() as agent:
        assert agent.model("digits").active.digest == second.digest
        assert world.hub.wait(lambda: any("self-test again: passed" in reason for reason in told(world)))
    assert file.read_bytes() == good


def test_the_optimised_form_counts_as_bytes_written_although_a_child_writes_it(home):
    world, *_ = home
    store, disk = Store(RealDisk(), world.home("dev-1") / "models", "digits"), RealDisk()
    shutil.rmtree(slot(world, "b") / "optimised")
    proving.Proving(disk, threading.Event()).prove(store, "b")
    assert disk.written > (slot(world, "b") / "optimised" / "model.onnx").stat().st_size


def test_on_another_cpu_the_self_test_runs_once_more_before_anything_answers(home, monkeypatch):
    world, _, second = home
    elsewhere(monkeypatch)
    runs, whole = [], proving.selftest
    monkeypatch.setattr(proving, "selftest", lambda *a, **k: runs.append(a) or whole(*a, **k))
    for _ in range(2):
        with world.agent() as agent:
            assert agent.model("digits").active.digest == second.digest
    assert [root.name for root, *_ in runs] == ["b", "a"]  # what answers, and what it could go back to


def test_a_previous_package_that_crashes_on_another_cpu_is_forgotten(home, monkeypatch):
    world, _, second = home
    elsewhere(monkeypatch)
    monkeypatch.setattr(proving, "selftest", lambda root, *_, **__: (Verdict(root.name == "b", "killed"), ""))
    with world.agent() as agent:
        assert agent.model("digits").active.digest == second.digest
        assert world.hub.wait(lambda: any("1.0.0 fails here: killed" in reason for reason in told(world)))
    assert Store(RealDisk(), world.home("dev-1") / "models", "digits").state.a is None


def test_a_package_that_fails_on_another_cpu_gives_way_to_the_one_before_it(home, monkeypatch):
    world, first, _ = home
    elsewhere(monkeypatch)

    def only_first(root, *_, **__):
        return Verdict(root.name == "a", "10 % of elements within tolerance", ran=True), ""

    monkeypatch.setattr(proving, "selftest", only_first)
    with world.agent() as agent:
        assert agent.model("digits").active.digest == first.digest
        assert world.hub.wait(lambda: any("the previous package answers" in reason for reason in told(world)))


@pytest.mark.parametrize(("ran", "answers"), [(True, True), (False, False)])
def test_where_none_passes_a_device_answers_with_a_warning_unless_it_crashes(home, monkeypatch, ran, answers):
    world, _, second = home
    elsewhere(monkeypatch)
    runs = []

    def fails(root, *_, **__):
        runs.append(root.name)
        return Verdict(False, "killed by signal 11" if not ran else "off by 2 %", ran=ran), ""

    monkeypatch.setattr(proving, "selftest", fails)
    for _ in range(2):
        with world.agent() as agent:
            active = agent.model("digits").active
            assert (active is not None) == answers
            assert not answers or active.digest == second.digest
            how = "it answers all the same" if answers else "nothing answers"
            assert world.hub.wait(lambda how=how: any(how in reason for reason in told(world)))
    assert runs.count("b") == (1 if ran else 2)


def test_whatever_goes_wrong_with_a_proof_the_agent_starts_and_what_loads_answers(home, monkeypatch):
    world, _, second = home
    elsewhere(monkeypatch)

    def bug(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(proving, "selftest", bug)
    with world.agent() as agent:
        assert agent.model("digits").active.digest == second.digest
        assert world.hub.wait(lambda: any("a bug" in e.reason for e in world.hub.events["dev-1"]))


@pytest.mark.parametrize("error", [NoMemory("too little memory"), NoVerdict("no Python")])
def test_a_self_test_that_cannot_be_run_again_is_told_and_leaves_the_model_answering(home, monkeypatch, error):
    world, _, second = home
    elsewhere(monkeypatch)

    def cannot(*_, **__):
        raise error

    monkeypatch.setattr(proving, "selftest", cannot)
    with world.agent() as agent:
        assert agent.model("digits").active.digest == second.digest
        assert world.hub.wait(lambda: any("cannot be run again" in reason for reason in told(world)))


def test_a_damaged_proof_is_none(tmp_path):
    package = packages.make_package(tmp_path / "p")
    variant, disk = package.manifest.variants[0], RealDisk()
    assert proof.read(disk, package, variant, "onnxruntime") is None
    one = proof.make(package, variant, "onnxruntime", {})
    proof.write(disk, package.root, one)
    assert proof.read(disk, package, variant, "onnxruntime") == one
    (package.root / proof.FILE).write_bytes(b"{")
    assert proof.read(disk, package, variant, "onnxruntime") is None


def test_a_budget_missed_by_far_is_the_models_and_a_little_is_left_to_probation():
    budgets = Budgets(p95_ms=2, rss_mb=50, load_s=1)
    assert missed(budgets, Measured(9, 0.9, 9, 1.9, 49)) == ("", "")  # it waited for others, and worked 0.9 s, 1.9 ms
    strained = missed(budgets, Measured(0.9, 0.9, 3, 3, 80))
    assert strained == ("", "p95 latency 3 ms, budget 2 ms; memory 80 MB, budget 50 MB")
    assert missed(budgets, Measured(0.9, 0.9, 5, 5, 80)).failure == "p95 latency 5 ms, budget 2 ms"
    assert missed(budgets, Measured(0.9, 0.9, 1, 1, 101)).failure == "memory 101 MB, budget 50 MB"
    assert missed(budgets, Measured(1.2, 1.1, 1, 1, 1)).failure == "loading takes 1.1 s, budget 1 s"
    assert missed(Budgets(), Measured(9, 9, 9, 9, 9)) == ("", "")


def test_the_peak_is_that_of_the_model_and_not_of_what_was_there_before():
    big = bytearray(64 << 20)
    del big
    measurement.restart_peak()
    assert measurement.resident_mb("VmHWM") < measurement.resident_mb("VmRSS") + 5


def test_loading_is_measured_three_times_only_when_it_is_over_its_budget():
    class Fake:
        def run(self, _):
            return {}

    for budget, loads in ((None, 1), (60.0, 1), (1e-9, 3)):
        opened = []
        found = measurement.measured(
            lambda to=opened: to.append(1) or Fake(), lambda _: None, {}, Budgets(load_s=budget)
        )
        assert len(opened) == loads
        assert 0 <= found.busy_ms <= found.p95_ms
        assert 0 <= found.loading_s <= found.load_s
