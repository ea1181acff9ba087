"""What a device gets: the built wheel with [agent,agent-onnx] and nothing of the workstation or the operator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "onnx",
    "fastapi",
    "sqlalchemy",
    "alembic",
    "amqtt",
    "scipy",
    "influxdb_client",
    "litert_torch",
    "sklearn",
)

PROBE = """
import importlib.util, json, sys, time
from pathlib import Path
start = time.perf_counter()
import edgewright_agent
from edgewright_agent import Agent
seconds = time.perf_counter() - start
rss_kb = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
print(json.dumps({
    "import_s": round(seconds, 3),
    "rss_mb": round(rss_kb / 1024, 1),
    "installed": [n for n in HEAVY if importlib.util.find_spec(n)],
    "parts": sorted({n.split(".")[0] for n in sys.modules if n.startswith("edgewright_")}),
}))
"""


@pytest.fixture(scope="module")
def device_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment as a device has it, from the wheel that would be published."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = place.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    python = place / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*install, f"{wheel}[agent,agent-onnx]"], check=True)
    return python


@pytest.mark.slow
@pytest.mark.process
def test_a_device_installs_and_imports_nothing_of_compiler_or_hub(
    device_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = PROBE.replace("HEAVY", repr(HEAVY))
    found = json.loads(subprocess.run([device_python, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert found["installed"] == []
    assert found["parts"] == ["edgewright_agent", "edgewright_contracts", "edgewright_runtime"]
    site = next((device_python.parents[1] / "lib").glob("python3*")) / "site-packages"
    size_mb = sum(f.stat().st_size for f in site.rglob("*") if f.is_file()) / 1e6
    with capsys.disabled():
        figures = f"{size_mb:.0f} MB installed, import {found['import_s']:.2f} s, RSS {found['rss_mb']} MB"
        print(f"\n  [agent,agent-onnx]: {figures}")  # noqa: T201


@pytest.mark.slow
@pytest.mark.process
def test_the_agent_of_the_wheel_runs_and_answers(
    device_python: Path, agent_answers: Callable[[list[str]], dict[str, object]]
) -> None:
    """Enrolled and rolled out to by a real hub, then asked for a prediction over the Open Inference Protocol."""
    answer = agent_answers([str(device_python.parent / "edgewright")])
    assert answer["model_name"] == "tiny"
