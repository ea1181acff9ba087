"""The examples run as they are, on a device that has no hub."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgewright.main import run
from edgewright_agent.agent import Agent
from edgewright_agent.serving import listening, service
from edgewright_contracts.package import write_ewp
from sim import packages

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def home(tmp_path):
    write_ewp(packages.make_package(tmp_path / "p").root, tmp_path / "digits.ewp")
    home = tmp_path / "home"
    assert run(["agent", "sideload", str(tmp_path / "digits.ewp"), "--home", str(home), "--trust-this-file"]) == 0
    return home


def example(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else done.stderr


@pytest.mark.process
def test_a_model_inside_an_application(home):
    assert "20 predictions, the last by onnx-fp32" in example(EXAMPLES / "in_process.py", home, 20)


@pytest.mark.process
def test_a_model_over_http(home):
    with Agent(home) as agent:
        server = service.serving(agent, listening.listen(listening.Port("127.0.0.1", 0)))
        thread = threading.Thread(target=server.run)
        thread.start()
        address = server.url.removeprefix("http://").removesuffix("/v2")
        said = example(EXAMPLES / "over_http.py", address, "digits")
        wrong = example(EXAMPLES / "over_http.py", address, "other")
        server.close()
        thread.join()
    assert said.startswith("digits 1.0.0\n  probabilities: [["), said
    assert wrong == "[404] no model 'other' here; there is: digits\n"
