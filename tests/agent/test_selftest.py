"""The self-test in a process of its own: whatever that does, the agent goes on, and blames whom it must."""

from __future__ import annotations

import os
import threading

import pytest

from edgewright_agent.updating import selftest
from edgewright_agent.updating.selftest import CutShort, NoVerdict
from edgewright_agent.updating.slots import Damaged
from sim import packages


@pytest.mark.parametrize(
    ("script", "reason"),
    [("kill -SEGV $$", "killed by signal 11"), ("exec sleep 60", "hung for 1 s")],
)
def test_a_child_that_crashes_or_hangs_did_not_pass(tmp_path, monkeypatch, script, reason):
    child = tmp_path / "python"
    child.write_text(f"#!/bin/sh\necho last words >&2\n{script}\n")
    child.chmod(0o755)
    monkeypatch.setattr(selftest.sys, "executable", str(child))
    verdict, log = selftest.selftest(tmp_path, "onnx-fp32", "onnxruntime", stopping=threading.Event(), timeout_s=1)
    assert not verdict.passed
    assert reason in verdict.reason
    assert "hung" in reason or "last words" in log


def test_a_selftest_ends_with_the_agent(tmp_path, monkeypatch):
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\nexec sleep 60\n")
    child.chmod(0o755)
    monkeypatch.setattr(selftest.sys, "executable", str(child))
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(CutShort, match="stops"):
        selftest.selftest(tmp_path, "onnx-fp32", "onnxruntime", stopping=stopping)


@pytest.mark.parametrize("signal", ["TERM", "INT", "HUP"])
def test_a_child_that_is_told_to_end_says_nothing_about_the_model(tmp_path, monkeypatch, signal):
    child = tmp_path / "python"
    child.write_text(f"#!/bin/sh\nkill -{signal} $$\nexec sleep 60\n")
    child.chmod(0o755)
    monkeypatch.setattr(selftest.sys, "executable", str(child))
    with pytest.raises(CutShort, match="run again"):
        selftest.selftest(tmp_path, "onnx-fp32", "onnxruntime", stopping=threading.Event())


def test_the_child_is_out_of_reach_of_what_ends_the_agents_process_group(tmp_path, monkeypatch):
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\ncut -d' ' -f6 /proc/$$/stat >&2\nexit 3\n")
    child.chmod(0o755)
    monkeypatch.setattr(selftest.sys, "executable", str(child))
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
