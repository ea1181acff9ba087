"""A request to compile that cannot be met is refused before the tools are loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgewright.requests import asked
from edgewright_contracts.errors import RequestError

TOLD: dict[str, Any] = dict.fromkeys(("data", "task", "metric", "finetune", "name", "version"))


@pytest.mark.parametrize(
    ("model", "told", "message"),
    [
        ("lost.py:build", {"task": "classify"}, r"lost\.py: no such file"),
        ("lost.onnx", {"task": "classify"}, r"lost\.onnx: no such model file"),
        ("m.py:build", {"task": "classify", "data": "lost"}, "lost: no such file or directory"),
        ("m.py:build", {"task": "classify", "data": "/dev/null"}, "/dev/null: neither a folder nor a file"),
        ("m.py:build", {"task": "regress", "metric": "accuracy"}, "metric accuracy is for"),
        ("m.py:build", {"task": "classify", "finetune": Path("lost.pt")}, r"lost\.pt: no such file"),
        ("m.py:build", {"task": "classify", "name": "taken", "version": "1"}, "taken-1 exists already"),
        ("digits", {"metric": "nope"}, "unknown metric 'nope'"),
        ("digits", {"name": "../evil"}, r"name '\.\./evil': expected at most 63 small letters a-z, digits and -"),
        ("digits", {"name": "taken", "version": "1"}, "taken-1 exists already"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(tmp_path, monkeypatch, model, told, message):
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text("")
    Path("taken-1").mkdir()
    with pytest.raises(RequestError, match=message):
        asked(model, TOLD | told, Path(), Path("work"))


def test_a_work_folder_that_is_a_file_is_named_with_its_option(tmp_path):
    (tmp_path / "models.py").write_text("")
    with pytest.raises(RequestError, match=r"models\.py is a file: .* choose another --work"):
        asked("digits", TOLD, tmp_path, tmp_path / "models.py")


def test_a_request_is_checked_without_torch():
    code = "import sys, edgewright.compiling; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
