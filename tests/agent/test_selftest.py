"""The self-test in a process of its own: whatever that does, the agent goes on, and blames whom it must."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from edgewright_agent.updating import selftest
from edgewright_agent.updating.failures import classify
from edgewright_agent.updating.pressure import oom_kills, rose
from edgewright_agent.updating.slots import Damaged
from edgewright_agent.updating.update import State
from edgewright_agent.updating.verdict import NO_MEMORY, CutShort, NoVerdict
from edgewright_contracts.manifest import SessionOptions
from edgewright_runtime.runtime import NoMemory
from sim import homes, packages


def test_a_selftest_ends_with_the_agent(tmp_path, monkeypatch):
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\nexec sleep 60\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(CutShort, match="stops"):
        selftest.selftest(tmp_path, "onnx-fp32", "onnxruntime", stopping=stopping)


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize("signal", ["TERM", "INT", "HUP"])
def test_a_child_that_is_told_to_end_says_nothing_about_the_model(tmp_path, monkeypatch, signal):
    child = tmp_path / "python"
    child.write_text(f"#!/bin/sh\nkill -{signal} $$\nexec sleep 60\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    with pytest.raises(CutShort, match="run again"):
        selftest.selftest(tmp_path, "onnx-fp32", "onnxruntime", stopping=threading.Event())


def test_the_child_is_out_of_reach_of_what_ends_the_agents_process_group(tmp_path, monkeypatch):
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\ncut -d' ' -f6 /proc/$$/stat >&2\nexit 3\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    with pytest.raises(NoVerdict) as said:
        selftest.selftest(tmp_path, "onnx-fp32", "onnxruntime", stopping=threading.Event())
    assert int(str(said.value).rpartition(":")[2]) != os.getsid(0)


def test_a_device_whose_python_or_flash_is_broken_says_nothing_about_the_model(tmp_path, monkeypatch):
    package = packages.make_package(tmp_path / "p")
    (tmp_path / "msgspec.py").write_text("raise ImportError('whatever lies in the working directory')")
    monkeypatch.chdir(tmp_path)
    verdict, _ = selftest.selftest(package.root, "onnx-fp32", "onnxruntime", stopping=threading.Event())
    assert verdict.passed
    file = package.root / "variants" / "onnx-fp32" / "model.onnx"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Damaged, match="sha256"):
        selftest.selftest(package.root, "onnx-fp32", "onnxruntime", stopping=threading.Event())


def test_the_child_says_what_is_wrong_with_a_file(tmp_path):
    package = packages.make_package(tmp_path / "p", broken_model=True)
    verdict, _ = selftest.selftest(package.root, "onnx-fp32", "onnxruntime", stopping=threading.Event())
    assert not verdict.passed
    assert "model.onnx" in verdict.reason


def run(folder, **more):
    return selftest.selftest(folder, "onnx-fp32", "onnxruntime", stopping=threading.Event(), **more)


@pytest.fixture
def child(tmp_path, monkeypatch):
    """A function that makes a shell script take the child's place."""

    def make(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return make


def test_a_pass_tells_what_was_measured_here_and_what_it_tested(tmp_path):
    package = packages.make_package(tmp_path / "p")
    verdict, _ = run(package.root)
    assert verdict.passed
    assert verdict.ran
    assert 0 < verdict.rss_mb < 20  # of the model, not of Python and the runtime
    assert 0 < verdict.load_s < 10
    assert 0 < verdict.p95_ms < 1000
    assert sorted(verdict.files) == ["model.onnx"]
    assert (package.root / "optimised" / "model.onnx").stat().st_size == verdict.files["model.onnx"].size


def test_a_runtime_that_maps_its_files_has_no_other_form_of_them(tmp_path):
    package = packages.make_package(tmp_path / "p", with_tflite=True)
    verdict, _ = selftest.selftest(package.root, "tflite-fp32", "litert", stopping=threading.Event())
    assert (verdict.passed, verdict.files) == (True, {})


def test_what_a_package_says_of_its_session_is_what_is_tested_and_loaded(world):
    plain = world.package("v1", slow=1)
    (variant,) = plain.manifest.variants
    mapped = msgspec.structs.replace(variant, session=SessionOptions(threads=2, mmap=True, arena=False))
    package = world.altered(plain, "mapped", variants=(mapped,))
    homes.install(world.home("dev-1") / "models", package)
    made = world.home("dev-1") / "models" / "digits" / "a" / "optimised"
    assert {path.name: path.stat().st_size > 1 << 20 for path in made.iterdir()} == {
        "model.onnx": False,
        "weights.bin": True,
    }
    with world.agent() as agent:
        agent.model("digits").predict({"image": packages.draw(1, seed=1)[0][0]})


def test_the_peak_is_the_childs_own_however_large_the_agent_is(tmp_path):
    package = packages.make_package(tmp_path / "p")
    large = bytearray(b"x" * (300 << 20))
    verdict, _ = run(package.root)
    assert len(large) == 300 << 20
    assert verdict.rss_mb < 20


@pytest.mark.parametrize("signal", ["SEGV", "ABRT"])
def test_an_optimised_form_that_crashes_is_left_for_the_packages_own_file(tmp_path, child, signal):
    made = tmp_path / "optimised"
    passed = """echo '{"passed": true, "reason": "", "ran": true}'"""
    child(f'case "$7" in optimised) mkdir {made}; kill -{signal} $$;; plain) {passed};; esac')
    verdict, _ = run(tmp_path)
    assert verdict.passed
    assert not made.exists()


def test_memory_that_ran_out_is_the_devices(tmp_path, child, monkeypatch):
    child(f"echo MemoryError >&2; exit {NO_MEMORY}")
    with pytest.raises(NoMemory, match=r"self-test \(MemoryError\); free some"):
        run(tmp_path)
    child("kill -KILL $$")
    counts = iter(({"/proc/vmstat": 7}, {"/proc/vmstat": 8}))
    monkeypatch.setattr(selftest, "oom_kills", lambda: next(counts))
    with pytest.raises(NoMemory, match="the kernel ended it"):
        run(tmp_path)


def test_a_child_that_somebody_killed_says_nothing_about_the_model(tmp_path, child):
    child("kill -KILL $$")
    with pytest.raises(CutShort, match="signal 9; it will be run again"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo rubbish", "code 0 and no verdict"),
        ("yes | head -c 300000", "code 0 and too much to be a verdict"),
        ("yes | head -c 300000 >&2; exit 4", "code 4 and no verdict"),
    ],
)
def test_what_a_child_prints_is_read_only_as_far_as_it_is_of_use(tmp_path, child, script, reason):
    child(script)
    with pytest.raises(NoVerdict, match=reason):
        run(tmp_path)


def test_a_child_that_crashes_did_not_pass(tmp_path, child):
    child("echo last words >&2; kill -SEGV $$")
    verdict, log = run(tmp_path)
    assert (verdict.passed, verdict.reason) == (False, "the self-test was killed by signal 11")
    assert "last words" in log


@pytest.mark.parametrize("script", ["while :; do :; done", "exec yes", "exec >&- 2>&-; while :; do :; done"])
def test_a_child_that_works_without_end_did_not_pass_even_if_it_prints_or_says_nothing(tmp_path, child, script):
    child(script)
    verdict, log = run(tmp_path, busy_s=0.1, wall_s=60)
    assert not verdict.passed
    assert "the self-test hung: it used" in verdict.reason
    assert log == ""


@pytest.mark.parametrize("script", ["kill -STOP $$", "exec sleep 60"])
def test_a_child_that_got_no_processor_time_says_nothing_about_the_model(tmp_path, child, script):
    child(script)
    with pytest.raises(CutShort, match=r"s of processor time and did not end.*will be run again") as said:
        run(tmp_path, busy_s=0.5, wall_s=0.6)
    assert classify(said.value, State.SELFTEST) == "power"


def test_a_child_that_closes_its_streams_and_lives_on_leaves_nobody_behind(tmp_path, child):
    child(f"sleep 60 & echo $! > {tmp_path}/pid; exec >&- 2>&-; wait")
    with pytest.raises(CutShort):
        run(tmp_path, busy_s=0.5, wall_s=0.6)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):  # until its new parent has buried it
        try:
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError("a grandchild lives on")


def test_the_child_gives_way_dies_first_leaves_no_core(tmp_path):
    code = (
        "import os, resource, sys; from edgewright_agent.updating import selftest_child as c; c._confined();"
        "print(os.nice(0), resource.getrlimit(resource.RLIMIT_CORE)[0], open('/proc/self/oom_score_adj').read())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) >= 10
    assert said[1:] == ["0", "1000"]


def test_kills_for_want_of_memory_are_read_of_the_machine_and_of_either_kind_of_cgroup(tmp_path):
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert oom_kills(tmp_path) == {}
    put("proc/vmstat", "nr_free 12\noom_kill 3\n")
    put("proc/self/cgroup", "4:cpu,memory:/a\n0::/agent.service\n")
    put("sys/fs/cgroup/agent.service/memory.events", "low 0\noom 9\noom_kill 2\n")
    put("sys/fs/cgroup/memory/a/memory.oom_control", "under_oom 0\noom_kill 1\n")
    before = oom_kills(tmp_path)
    assert sorted(before.values()) == [1, 2, 3]
    assert not rose(before, oom_kills(tmp_path))
    put("sys/fs/cgroup/agent.service/memory.events", "oom_kill 4\n")
    assert rose(before, oom_kills(tmp_path))
