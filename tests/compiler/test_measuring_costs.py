"""Latency by an injected clock, memory in a child that may die, counts by hand, and the bench of a whole package."""

from __future__ import annotations

import io
import json
import mmap
import os
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgewright.main import run
from edgewright_compiler.measuring import footprint as footprints
from edgewright_compiler.measuring.bench import bench
from edgewright_compiler.measuring.counted import counted
from edgewright_compiler.measuring.footprint import footprint
from edgewright_compiler.measuring.latency import Kernel, interleaved
from edgewright_compiler.measuring.machine import celsius, describe
from edgewright_compiler.measuring.remote import bundle, file_for
from edgewright_contracts.errors import Refused, RequestError, Unavailable
from edgewright_contracts.manifest import TensorIn, TensorOut
from edgewright_contracts.package import Package, read_package, unpack
from edgewright_runtime.runtime import Array

TINY = Path(__file__).parent.parent / "data" / "tiny-1.0.0.ewp"
ROWS = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}


class Timed:
    """A session whose calls last what it is told, in µs, on a clock that only it moves."""

    runtime, version, concurrent = "timed", "0", False

    def __init__(self, now: list[int], lasts: Iterator[float], calls: list[str], name: str) -> None:
        self.now, self.lasts, self.calls, self.name = now, lasts, calls, name

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert inputs["x"].shape == (1, 2)
        self.calls.append(self.name)
        self.now[0] += int(next(self.lasts) * 1000)
        return {}


def test_latencies_are_quantiles_of_what_the_clock_said_after_warming_up() -> None:
    now, calls = [0], list[str]()
    cold = iter([1000.0] * 10 + [float(us) for us in range(1, 71)])
    even = iter([50.0] * 80)

    def clock() -> int:
        now[0] += 500  # so the kernel, which moves no clock, takes half a microsecond
        return now[0]

    sessions = {"cold": Timed(now, cold, calls, "cold"), "even": Timed(now, even, calls, "even")}
    found = interleaved(sessions, ROWS, calls=80, clock=clock)
    assert calls == ["cold", "even"] * 80, "one call each, in turns"
    assert found["even"].p50_us == found["even"].p99_us == 50.5
    assert found["cold"].p50_us == pytest.approx(np.quantile(np.arange(1, 71) + 0.5, 0.5))
    assert found["cold"].p95_us == pytest.approx(np.quantile(np.arange(1, 71) + 0.5, 0.95))
    assert (found["cold"].calls, found["cold"].reference_us) == (70, 0.5)
    assert found["even"].per_reference == pytest.approx(101)


def test_a_slow_model_is_measured_by_fewer_calls() -> None:
    now, calls = [0], list[str]()
    slow = {"slow": Timed(now, iter([1e6] * 400), calls, "slow")}
    found = interleaved(slow, ROWS, calls=400, clock=lambda: now[0] + 1)  # a second a call, a minute in all
    assert found["slow"].calls == len(calls) - 50 == 20
    with pytest.raises(RequestError, match="at least one, got none"):
        interleaved({}, {"x": np.zeros((0, 2))})


def test_the_reference_kernel_is_the_same_work_for_ever() -> None:
    """A change of it would make figures of old runs incomparable without anybody noticing."""
    found = Kernel().run()
    assert found.shape == (64, 64)
    assert float(found.sum()) == pytest.approx(7.2814, rel=1e-3)


@pytest.fixture
def tiny(tmp_path: Path) -> Package:
    return unpack(TINY, tmp_path / "tiny")


def rows_of(package: Package) -> dict[str, Array]:
    with np.load(io.BytesIO(package.read(package.manifest.variants[0].selftest))) as arrays:
        return {t.name: arrays[f"input:{t.name}"] for t in package.manifest.inputs}


def test_a_footprint_is_that_of_the_file_alone(tiny: Package) -> None:
    ballast = np.ones(30_000_000)  # of the parent, 240 MB: nothing of it may show in the child
    manifest = tiny.manifest
    found = footprint(
        tiny.root / manifest.variants[0].model, "onnxruntime", manifest.inputs, manifest.outputs, rows_of(tiny)
    )
    assert ballast.size
    assert 0 < found.growth_mb < 20 < found.peak_rss_mb < 200
    assert found.load_ms > 0


def test_a_file_that_cannot_be_loaded_is_refused_and_a_runtime_that_is_not_there_unavailable(
    tiny: Package, tmp_path: Path
) -> None:
    manifest, bad = tiny.manifest, tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    with pytest.raises(Refused, match=r"bad\.onnx in onnxruntime: .*does not load"):
        footprint(bad, "onnxruntime", manifest.inputs, manifest.outputs, rows_of(tiny))
    tflite = tiny.root / "variants/tflite-fp32/model.tflite"
    with pytest.raises(Unavailable, match="tflite-runtime is not installed"):
        footprint(tflite, "tflite-runtime", manifest.inputs, manifest.outputs, rows_of(tiny))


@pytest.mark.parametrize(
    ("death", "error", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", Refused, "its process died of SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", Unavailable, "killed by SIGKILL, most often for want of memory"),
        ("sys.exit('no room for numpy')", Unavailable, "ended with code 1 and no answer: no room for numpy"),
        ("time.sleep(60)", Unavailable, "did not load and run 8 rows in 0.5 s"),
    ],
)
def test_a_worker_that_dies_is_told_with_its_signal(
    death: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is this interpreter, with a module of the same name before ours on its path."""
    fake = tmp_path / "fake" / "edgewright_compiler" / "measuring"
    fake.mkdir(parents=True)
    for folder in (fake, fake.parent):
        (folder / "__init__.py").touch()
    (fake / "footprint.py").write_text(f"import os, signal, sys, time\n{death}\n")
    monkeypatch.syspath_prepend(tmp_path / "fake")
    x, y = TensorIn(name="x", dtype="float32", shape=(2,)), TensorOut(name="y", role="values", shape=(2,))
    with pytest.raises(error, match=message):
        footprint(tmp_path / "m.onnx", "onnxruntime", (x,), (y,), ROWS, timeout_s=0.5 if "sleep" in death else 60)


def test_the_peak_begins_at_what_is_resident() -> None:
    """In memory mapped anew: the heap of a process with a past has room for such a block that is resident already."""
    earlier = mmap.mmap(-1, 80_000_000)
    np.frombuffer(earlier, np.uint8)[:] = 1
    earlier.close()
    before = footprints._restarted()
    block = mmap.mmap(-1, 40_000_000)
    np.frombuffer(block, np.uint8)[:] = 1
    assert footprints._status("VmHWM") - before == pytest.approx(len(block) / 1e6, rel=0.2)


class Squared(nn.Module):
    """A bilinear form, in which both sides are one layer's answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(8, 8), nn.Bilinear(8, 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        answer: torch.Tensor = self.form(y, y)
        return answer


def test_counts_are_those_of_a_hand() -> None:
    assert counted(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 10, 10)).macs == 8 * 8 * 8 * 27
    assert counted(nn.GRU(8, 16, batch_first=True), torch.zeros(1, 10, 8)).macs == 10 * (8 * 48 + 16 * 48)
    assert counted(nn.LSTM(8, 16, batch_first=True), torch.zeros(1, 10, 8)).macs == 10 * (8 * 64 + 16 * 64)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert counted(layer, torch.zeros(1, 5, 16)).macs == 5 * 16 * 16 * 4 + 5 * 16 * 32 * 2 + 2 * 25 * 16
    assert layer.training, "its mode is left as it was"
    assert counted(Squared(), torch.zeros(1, 8)).macs == 8 * 8 + (4 * 8 * 8 + 4 * 8)
    assert counted(nn.Linear(4, 2), torch.zeros(1, 4)).params == 10


def test_a_machine_is_what_its_files_say(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor : 0\nFeatures : fp asimd crc32\nCPU implementer : 0x41\nCPU part : 0xd08\n",
        "proc/meminfo": "MemTotal:  948304 kB\nMemFree: 1 kB\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1500000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = describe(tmp_path)
    assert (found.cpu, found.board) == ("Cortex-A72", "Raspberry Pi 4 Model B Rev 1.4")
    assert (found.clock_mhz, found.governor, found.ram_mb, found.int8_dot) == (1500, "ondemand", 926, False)
    assert celsius(tmp_path) == 48.312
    nothing = describe(tmp_path / "nothing")
    assert (nothing.clock_mhz, nothing.ram_mb, nothing.int8_dot, celsius(tmp_path / "nothing")) == (None,) * 4


def test_a_bench_measures_what_runs_and_names_what_does_not(tiny: Package) -> None:
    manifest = tiny.manifest
    found = bench(tiny, calls=40)
    assert (found.name, found.version, found.digest) == (manifest.name, manifest.version, tiny.digest)
    assert {(v.variant, v.runtime) for v in found.variants} == {
        (v.id, "onnxruntime" if v.format == "onnx" else "litert") for v in manifest.variants
    }
    for one in found.variants:
        assert one.selftest
        assert one.failed == ""
        assert one.time_us is not None
        assert 0 < one.time_us.p50 <= one.time_us.p95 <= one.time_us.p99
        assert one.time_us.per_reference == pytest.approx(one.time_us.p50 / found.reference_us, rel=1e-2)
        assert one.memory is not None
    fastest = found.measured("onnx-int8")
    assert fastest is not None
    assert fastest.runtime == "onnxruntime"


def test_the_command_measures_an_archive_and_prints_one_object(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", str(TINY), "--calls", "40", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert {v["variant"] for v in told["variants"]} == {"onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"}
    assert list(tmp_path.iterdir()) == []
    assert run(["bench", str(TINY), "--calls", "40"]) == 0
    out = capfd.readouterr().out
    assert "reference kernel" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_file_that_fails_its_self_test_is_named_and_the_others_are_measured(
    tiny: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgewright_compiler.packaging import facts_of, write_package

    files = {name: tiny.read(name) for name in tiny.manifest.files}
    files["variants/onnx-int8/model.onnx"] = b"not a model"
    broken = write_package(tmp_path / "broken", facts_of(tiny.manifest), files, None)
    assert run(["bench", str(broken.root), "--calls", "40", "--json"]) == 1
    said = capsys.readouterr()
    assert "1 of 4 do not run as they should" in said.err
    assert "onnx-int8 in onnxruntime" in said.err
    told = {v["variant"]: v for v in json.loads(said.out)["variants"]}
    assert told["onnx-int8"]["time_us"] is None
    assert told["tflite-int8"]["time_us"]["p50"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "nothing.ewp"], "no package at nothing.ewp"),
        (["bench", str(TINY), "--python", "python3"], "--python names the Python of a host: it needs --ssh"),
        (["bench", str(TINY), "--ssh", "-oProxyCommand=touch x"], "expected a host as ssh takes it"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_ssh_the_program_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["bench", str(TINY), "--ssh", "pi@board"]) == 3
    assert "apt install openssh-client" in capsys.readouterr().err


def test_what_goes_to_a_host_is_enough_to_measure_there(tiny: Package, tmp_path: Path) -> None:
    """Run from the bundle alone: a module that a bench needs and that is not sent would be missed here."""
    there = tmp_path / "there"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 3.11 has no filter yet, 3.12 asks for one
        with tarfile.open(fileobj=io.BytesIO(bundle(tiny))) as archive:
            archive.extractall(there)
    code = "import edgewright_compiler.measuring.bench as b, sys; print(b.__file__, 'torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(there / "code"), "OMP_NUM_THREADS": "1"}
    where = subprocess.run([sys.executable, "-c", code], env=env, cwd=there, capture_output=True, text=True, check=True)
    assert where.stdout.split() == [str(there / "code/edgewright_compiler/measuring/bench.py"), "False"]
    command = [sys.executable, "-m", "edgewright_compiler.measuring.bench", str(there / "package"), "40"]
    done = subprocess.run(command, env=env, cwd=there, capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["error"] == ""
    assert told["bench"]["digest"] == tiny.digest
    bad = subprocess.run([*command[:3], str(tmp_path), "40"], env=env, cwd=there, capture_output=True, check=True)
    assert "a package directory" in json.loads(bad.stdout)["error"]


def test_evidence_of_a_host_lies_by_its_package(tmp_path: Path) -> None:
    assert file_for(tmp_path, "pi@kitchen").name == "bench-pi-kitchen.json"
    assert file_for(tmp_path, "ssh://pi@10.0.0.7:2222").name == "bench-pi-10.0.0.7-2222.json"
    assert file_for(tmp_path / "a.ewp", "../../x").name == "a.bench-x.json"


def test_the_archive_reads_as_before(tiny: Package) -> None:
    (tiny.root / "bench-board.json").write_text("{}")
    read_package(tiny.root).verify()
