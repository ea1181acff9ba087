"""tflite-runtime 2.14, which only works beside numpy 1: the same session in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgewright_contracts.package import read_package
from edgewright_runtime.runtime import open_session
from sim import packages

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-legacy" / "bin" / "python"

SCRIPT = """
import json, sys
import numpy as np
from pathlib import Path
from edgewright_contracts.package import read_package
from edgewright_contracts.manifest import SessionOptions
from edgewright_runtime.runtime import available, open_session, optimise
from edgewright_runtime.selftest import run_selftest

package = read_package(Path(sys.argv[1]))
m = package.manifest
v = m.variant("tflite-fp32")
model = package.root / v.model
options = SessionOptions(threads=2)
session = open_session(model, "tflite-runtime", inputs=m.inputs, outputs=m.outputs, options=options)
made = optimise(model, "tflite-runtime", package.root, options)
result = run_selftest(session, package.read(v.selftest), m, v)
y = session.run({"image": np.load(sys.argv[2])})
np.savez(sys.argv[3], **y)
told = {"numpy": np.__version__, "available": available(), "passed": result.passed, "reason": result.reason}
print(json.dumps({**told, "optimised": len(made)}))
"""

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-legacy with numpy 1: `make legacy` creates it"),
]


def test_tflite_runtime_answers_like_litert_and_passes_the_same_selftest(tmp_path):
    package = packages.make_package(tmp_path / "p", with_tflite=True)
    x, _ = packages.draw(20, seed=3)
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [PYTHON, "-c", SCRIPT, package.root, tmp_path / "x.npy", tmp_path / "y.npz"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["numpy"].startswith("1.")
    assert told["available"]["tflite-runtime"].startswith("2.14")
    assert told["passed"], told["reason"]
    assert told["optimised"] == 0  # it maps the file as it is
    m = read_package(tmp_path / "p").manifest
    file = package.root / m.variant("tflite-fp32").model
    here = open_session(file, "litert", inputs=m.inputs, outputs=m.outputs).run({"image": x})
    with np.load(tmp_path / "y.npz") as there:
        for name, expected in here.items():
            np.testing.assert_allclose(there[name], expected, atol=1e-5)
